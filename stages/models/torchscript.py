"""The tensors of a TorchScript archive, such as OpenAI's ViT-B-32.pt, read as data: no program in it is ever run.

An archive is a zip file. Its data.pkl builds a tree of modules from names, numbers and storages, with a handful of the
instructions of Python's pickle format; here those are followed with plain dictionaries in the place of the modules,
and anything else is refused. The storages lie beside it as raw bytes.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from index_store.errors import InputError

_STORAGES = {
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch DoubleStorage": torch.float64,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch BoolStorage": torch.bool,
}
_REBUILD = "torch._utils _rebuild_tensor_v2"
_ORDERED = "collections OrderedDict"
_MODULE = "__torch__"
"""How the names of the archive's own classes begin."""
_INDEX = "data.pkl"
_MOST_BYTES = 64 << 20
"""Of data.pkl: it holds names and sizes."""


def is_torchscript(path: Path) -> bool:
    """Whether ``path`` is such an archive; torch.save writes none of these files."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The tensors by their names in the tree of modules, as a state dict has them. Raises InputError."""
    try:
        with zipfile.ZipFile(path) as archive:
            index = next((entry for entry in archive.infolist() if entry.filename.endswith(f"/{_INDEX}")), None)
            if index is None or index.file_size > _MOST_BYTES:
                raise InputError(f"{path} is a TorchScript archive without a readable {_INDEX}")
            storages = _Storages(archive, index.filename.removesuffix(_INDEX) + "data/")
            return dict(_tensors(_Program(storages).result(archive.read(index)), ""))
    except (OSError, zipfile.BadZipFile, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} cannot be read as a TorchScript archive of tensors: {first[:160]}") from error


@dataclass(frozen=True, slots=True, eq=False)
class _Global:
    """A name of something that the archive would have called."""

    name: str


class _Module(dict[str, Any]):
    """What the archive would have made a module of: attribute -> value."""


class _Storages:
    """The raw bytes beside the index."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive = archive
        self._folder = folder
        self._read: dict[str, Tensor] = {}

    def get(self, kind: Any, key: Any) -> Tensor:
        """A whole storage as a flat tensor."""
        if key not in self._read:
            content = bytearray(self._archive.read(f"{self._folder}{key}"))
            self._read[key] = torch.frombuffer(content, dtype=_STORAGES[kind.name])
        return self._read[key]


class _Program:
    """Follows the instructions of data.pkl that build a tree of tensors."""

    def __init__(self, storages: _Storages) -> None:
        self._storages = storages
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def result(self, program: bytes) -> Any:
        """What is on top in the end. Raises ValueError for an instruction that no archive of tensors needs."""
        for instruction, argument, _ in pickletools.genops(program):
            if instruction.name == "STOP":
                return self._stack.pop()
            self._follow(instruction.name, argument)
        raise ValueError("it has no end")

    def _follow(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            self._stack.append(argument)
        elif name == "GLOBAL":
            self._stack.append(_Global(argument))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(self._stack))
        elif name != "PROTO":
            self._build(name)

    def _build(self, name: str) -> None:
        if name == "TUPLE":
            self._stack.append(tuple(self._since_mark()))
        elif name == "SETITEMS":
            items = self._since_mark()
            self._stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "APPENDS":
            items = self._since_mark()
            self._stack[-1].extend(items)
        elif name == "BINPERSID":
            _, kind, key, *_ = self._stack.pop()
            self._stack.append(self._storages.get(kind, key))
        elif name in ("NEWOBJ", "REDUCE"):
            arguments, made = self._stack.pop(), self._stack.pop()
            self._stack.append(_made(made, arguments))
        elif name == "BUILD":
            state = self._stack.pop()
            self._stack[-1].update(state)
        else:
            raise ValueError(f"it has the instruction {name}, which no archive of tensors needs")

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items, self._stack[start:] = self._stack[start:], []
        return items


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE")


def _made(made: Any, arguments: Any) -> Any:
    """What stands for the call of one of the few names that archives of tensors have."""
    if isinstance(made, _Global) and made.name.startswith(_MODULE) and arguments == ():
        return _Module()
    if isinstance(made, _Global) and made.name == _ORDERED and arguments == ():
        return {}
    if isinstance(made, _Global) and made.name == _REBUILD:
        storage, offset, shape, stride, *_ = arguments
        return storage.as_strided(shape, stride, offset).contiguous()
    raise ValueError(f"it asks for {getattr(made, 'name', type(made).__name__)}, which no archive of tensors needs")


def _tensors(node: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a tree of modules, named as in a state dict."""
    if not isinstance(node, _Module):
        raise ValueError("it holds no module")
    for name, value in node.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")
