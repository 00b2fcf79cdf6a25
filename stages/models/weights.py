"""Tag or path -> weight file -> the tensors of one tower.

Nothing is ever unpickled outside ``weights_only``. Two layouts are understood: the original CLIP one, where the text
tower lies at the top level, and open_clip's, where it lies under ``text.``; both come out as ``visual.*``, ``text.*``.
"""

from __future__ import annotations

import difflib
import hashlib
import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from index_store.atomic import replacing
from index_store.errors import ComponentMissingError, InputError, UsageError
from index_store.settings import ModelSettings
from stages.models import remembered
from stages.models.architecture import (
    CONFIG_FILE,
    FOLDER_NAME,
    HUB_PREFIX,
    Architecture,
    ImagePreprocessing,
    with_quick_gelu,
)
from stages.models.torchscript import is_torchscript, read_torchscript

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
MERGES_FILE = "bpe_merges.txt.gz"
FOLDER_WEIGHTS = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin")
"""Names a weight file may have in a model folder or a Hugging Face repository, best first."""
SHIPPED = "shipped"
"""What stands for the weights of a model that brings its own, in place of a tag or a path."""

_SAFETENSORS_START = 8
"""Bytes before a safetensors file's header, a JSON object: its length, far below 2^48."""

TEXT_KEYS = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final", "cls_emb")
"""First parts of the text tower's keys in the original CLIP layout."""


@dataclass(frozen=True, slots=True)
class WeightSource:
    """A weight file and the architecture that fits it."""

    architecture: Architecture
    pretrained: str
    """What the user asked for: a tag, or an absolute path."""
    path: Path
    companions: tuple[Path, ...] = ()
    """Other files of the model folder that change the numbers: configuration and merges."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that changes the numbers, the weights last."""
        return (*self.companions, self.path)

    def digest(self) -> str:
        """SHA-256, hex: of the weight file; of a folder, that of the lines that sha256sum prints for its files."""
        if not self.companions:
            return file_sha256(self.path)
        lines = [f"{file_sha256(path)}  {path.name}\n" for path in self.files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def find_weights(architecture: Architecture, pretrained: str) -> WeightSource:
    """The weight file that ``pretrained`` names for ``architecture``; downloads it where a tag is not in the cache.

    Raises UsageError for an unknown tag, InputError for a missing file, ComponentMissingError without network.
    """
    path = Path(pretrained).expanduser().resolve()
    if pretrained and path.is_file():
        prepared = architecture
        if architecture.folder is None and not architecture.video_kind:
            prepared = replace(architecture, preprocessing=_usual_preprocessing(architecture.name))
        return WeightSource(prepared, str(path), path, _companions(architecture.folder))
    if path.suffix in SUFFIXES:
        raise InputError(f"no weight file {pretrained}")
    if architecture.folder is not None:
        if pretrained not in ("", SHIPPED) and path != architecture.folder:
            raise UsageError(f"model {architecture.name} has its own weights: leave {pretrained!r} out, or give a file")
        return _folder_weights(architecture, architecture.folder)
    return _tag_weights(architecture, pretrained)


def find_pinned(architecture: Architecture, pinned: ModelSettings) -> tuple[WeightSource, str | None]:
    """The weight file that a store's settings name, and its SHA-256 where that is known without reading the file.

    The preprocessing is what the settings say: whoever asks has no frames to prepare. Errors as of ``find_weights``.
    """
    prepared = replace(
        architecture,
        preprocessing=ImagePreprocessing(pinned.mean, pinned.std, pinned.interpolation, pinned.resize_mode),
    )
    known = remembered.find(pinned.weights_sha256)
    if known:
        return WeightSource(prepared, pinned.pretrained, known[-1], tuple(known[:-1])), pinned.weights_sha256
    return find_weights(architecture, pinned.pretrained), None


def file_sha256(path: Path) -> str:
    """SHA-256 of the file, hex. Raises InputError when it cannot be read."""
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def download_from_hub(repository: str, names: Sequence[str], what: str) -> Path:
    """The first of ``names`` that a Hugging Face repository has: from the cache without any network, or downloaded.

    Raises ComponentMissingError saying that ``what`` is missing.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in names:
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    reason: Exception = FileNotFoundError(f"the repository has none of {', '.join(names)}")
    for name in names:
        try:
            return Path(hf_hub_download(repository, name))
        except LocalEntryNotFoundError as error:  # no network: another name will not help
            reason = error
            break
        except EntryNotFoundError:
            continue
        except Exception as error:  # anything from a bad repository name to a full disk
            reason = error
            break
    raise ComponentMissingError(_download_failed(what, reason)) from reason


class StateReader:
    """The tensors of one weight file by their normalised keys; a safetensors file is read tensor by tensor."""

    def __init__(self, path: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Of the file at ``path``; or of a ``state`` that was read from it already."""
        self.path = path
        self._state = read_state(path) if state is None else state
        keys = [key.removeprefix("module.") for key in self._state]
        is_original_layout = "text_projection" in keys
        self._stored_key = {
            f"text.{key}" if is_original_layout and key.startswith(TEXT_KEYS) else key: stored
            for key, stored in zip(keys, self._state, strict=True)
        }

    def scalar(self, key: str, default: float) -> float:
        """The single number under ``key``, or ``default``."""
        return float(self._state[self._stored_key[key]].item()) if key in self._stored_key else default

    def tower(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose keys begin with ``prefix``, the prefix taken off."""
        return {
            key.removeprefix(prefix): self._state[stored]
            for key, stored in self._stored_key.items()
            if key.startswith(prefix)
        }


def read_state(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a weight file by their own keys. Raises InputError for one that cannot be used."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} is not a weight file; expected one of {', '.join(SUFFIXES)}")
    return _open_safetensors(path) if path.suffix == ".safetensors" else _load_pickle(path)


def read_checkpoint(path: Path) -> Mapping[str, Tensor]:
    """The same of a file of any name, such as pytorch_model.bin.4: what it is, its bytes say."""
    try:
        with path.open("rb") as file:
            start = file.read(_SAFETENSORS_START + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    is_safetensors = (
        start[_SAFETENSORS_START:] == b"{" and start[_SAFETENSORS_START - 2 : _SAFETENSORS_START] == b"\0\0"
    )
    return _open_safetensors(path) if is_safetensors else _load_pickle(path)


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file that ``find_weights`` takes, in float32, whole or not at all."""
    from safetensors.torch import save_file

    kept = {name: tensor.detach().float().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}
    with replacing(path) as temporary:
        save_file(kept, temporary, metadata={"format": "pt"})


def fill(module: nn.Module, state: Mapping[str, Tensor], prefix: str, path: Path) -> None:
    """Copy ``state`` into ``module``; every tensor must be there with its shape. Raises InputError naming the key."""
    expected = module.state_dict()
    found = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    missing = [key for key in expected if key not in found]
    if missing:
        raise InputError(
            f"{path} has no tensor {prefix}{missing[0]} ({len(missing)} of {len(expected)} missing); "
            "are these the weights of another model?"
        )
    surplus = [key for key in found if key not in expected]
    if surplus:
        raise InputError(f"{path} has a tensor {prefix}{surplus[0]} that the model lacks ({len(surplus)} of them)")
    for key, parameter in expected.items():
        if found[key].shape != parameter.shape:
            raise InputError(
                f"{path}: tensor {prefix}{key} is {list(found[key].shape)}, expected {list(parameter.shape)}; "
                "are these the weights of another model?"
            )
    module.load_state_dict(found)


@contextmanager
def unfilled() -> Iterator[None]:
    """Modules built inside keep their random weights unset: a file is about to overwrite every one of them."""
    with _SkipRandomFill():
        yield


class _SkipRandomFill(TorchFunctionMode):
    """Random initialisation costs 1.6 CPU s for a ViT-B/32, more than reading the file does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init" or func in _RANDOM_FILLS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


_RANDOM_FILLS = (Tensor.normal_, Tensor.uniform_, Tensor.erfinv_)


def _folder_weights(architecture: Architecture, folder: Path) -> WeightSource:
    weights = next((folder / name for name in FOLDER_WEIGHTS if (folder / name).is_file()), None)
    if weights is None and architecture.name.startswith(HUB_PREFIX):
        weights = download_from_hub(architecture.name.removeprefix(HUB_PREFIX), FOLDER_WEIGHTS, architecture.name)
    if weights is None:
        raise InputError(f"no weight file in {folder}; expected one of {', '.join(FOLDER_WEIGHTS)}")
    pretrained = str(folder) if architecture.name == FOLDER_NAME else SHIPPED
    return WeightSource(architecture, pretrained, weights, _companions(folder))


def _companions(folder: Path | None) -> tuple[Path, ...]:
    files = (folder / CONFIG_FILE, folder / MERGES_FILE) if folder else ()
    return tuple(path for path in files if path.is_file())


def _tag_weights(architecture: Architecture, tag: str) -> WeightSource:
    from open_clip.pretrained import get_pretrained_cfg

    entry = get_pretrained_cfg(architecture.name, tag) if tag else {}
    if not entry:
        raise UsageError(_unknown_tag(architecture.name, tag))
    fitting = with_quick_gelu(architecture, bool(entry.get("quick_gelu", False)))
    prepared = replace(fitting, preprocessing=ImagePreprocessing().updated(entry))
    return WeightSource(prepared, tag, _download(entry, f"{architecture.name}/{tag}"))


def _download(entry: Mapping[str, Any], what: str) -> Path:
    """The weight file of one row of open_clip's table: "org/name/" or "org/name/file" on the hub, or a plain URL."""
    from open_clip.pretrained import download_pretrained_from_url

    if entry.get("hf_hub"):
        repository, _, name = str(entry["hf_hub"]).rpartition("/")
        names = (str(Path(name).with_suffix(".safetensors")), name) if name else FOLDER_WEIGHTS
        return download_from_hub(repository, names, what)
    try:
        return Path(download_pretrained_from_url(entry["url"]))
    except (OSError, RuntimeError) as error:
        raise ComponentMissingError(_download_failed(what, error)) from error


def _usual_preprocessing(name: str) -> ImagePreprocessing:
    """What all released weights of the model expect, CLIP's own where they differ: a weight file does not say."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    tags = list_pretrained_tags_by_model(name)
    known = {ImagePreprocessing().updated(get_pretrained_cfg(name, tag)) for tag in tags}
    return known.pop() if len(known) == 1 else ImagePreprocessing()


def _unknown_tag(name: str, tag: str) -> str:
    from open_clip.pretrained import list_pretrained_tags_by_model

    tags = list_pretrained_tags_by_model(name)
    nearest = difflib.get_close_matches(tag.lower(), tags, n=3, cutoff=0.5) or tags[:6]
    choice = f"a tag such as {', '.join(nearest)}, or " if tags else ""
    found = f"no weights {tag!r} for model {name}" if tag else f"model {name} needs weights"
    return f"{found}; give {choice}a {', '.join(SUFFIXES)} file"


def _download_failed(what: str, error: Exception) -> str:
    return (
        f"the files of {what} are not in the cache and could not be downloaded ({_first_line(error)}); "
        "fetch them once with network access, give --pretrained FILE, or use --model tbpipe-small, which is all here"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


class _SafetensorsState(Mapping[str, Tensor]):
    """A safetensors file as a mapping that reads a tensor when it is asked for."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self._file: Any = safe_open(path, framework="pt", device="cpu")

    def __getitem__(self, key: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.keys())

    def __len__(self) -> int:
        return len(self._file.keys())


def _open_safetensors(path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError

    try:
        return _SafetensorsState(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error


def _load_pickle(path: Path) -> Mapping[str, Tensor]:
    if is_torchscript(path):
        return read_torchscript(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} cannot be read as plain tensors, and nothing else is ever unpickled: save its state dict as "
            f"safetensors ({_first_line(error)})"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} holds a {type(content).__name__}, expected a state dict of tensors")
    return dict(state)
