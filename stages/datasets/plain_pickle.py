"""A pickle of lists, dicts, texts and numbers, read without the machine that runs pickles.

pickletools lists the opcodes and executes nothing; those that build plain containers are carried out here. Every other
one (a class, a call, a persistent id) is refused by its name: there is nothing here that could carry it out.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from index_store.errors import InputError

_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT")
_STRINGS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_ARGUMENTS = frozenset(_NUMBERS + _STRINGS)
"""Opcodes that push their argument."""
_SHORT_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


def read_plain_pickle(path: Path) -> Any:
    """What the pickle holds; tuples come as lists. Raises InputError for one that is broken or holds anything else."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; name a file that can be read") from error
    machine = _Machine()
    try:
        for opcode, argument, place in pickletools.genops(content):
            if opcode.name == "STOP":
                return machine.result()
            if not machine.run(opcode.name, argument):
                raise InputError(
                    f"{path} holds more than lists and texts (opcode {opcode.name} at byte {place}) and was not "
                    "read; give the captions as JSON: {id: [caption, ...]}"
                )
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeError) as error:
        raise InputError(f"{path} is not a whole pickle: {error}; copy it again") from error
    raise InputError(f"{path} is not a whole pickle: it has no end; copy it again")


class _Machine:
    """Stack and memo; what does not fit the stack raises one of the errors that ``read_plain_pickle`` catches."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._steps: dict[str, Callable[[Any], object]] = {
            "PROTO": lambda argument: None,
            "FRAME": lambda argument: None,
            "MARK": lambda argument: self._stack.append(_MARK),
            "POP": lambda argument: self._stack.pop(),
            "EMPTY_LIST": lambda argument: self._stack.append([]),
            "EMPTY_DICT": lambda argument: self._stack.append({}),
            "LIST": lambda argument: self._stack.append(self._from_mark()),
            "TUPLE": lambda argument: self._stack.append(self._from_mark()),
            "DICT": lambda argument: self._stack.append(dict(_pairs(self._from_mark()))),
            "APPEND": lambda argument: self._extend([self._stack.pop()]),
            "APPENDS": lambda argument: self._extend(self._from_mark()),
            "SETITEM": lambda argument: self._set(self._last(2)),
            "SETITEMS": lambda argument: self._set(self._from_mark()),
            "MEMOIZE": lambda argument: self._keep(len(self._memo)),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self._keep),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda place: self._stack.append(self._memo[place])),
        }

    def run(self, name: str, argument: Any) -> bool:
        """Carry out one opcode; False for one that is not allowed."""
        if name in _ARGUMENTS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _SHORT_TUPLES:
            self._stack.append(self._last(_SHORT_TUPLES[name]))
        elif name in self._steps:
            self._steps[name](argument)
        else:
            return False
        return True

    def result(self) -> Any:
        """What was built."""
        (found,) = self._stack
        return found

    def _keep(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    def _last(self, number: int) -> list[Any]:
        """The topmost ``number`` items, taken off."""
        if number > len(self._stack):
            raise ValueError("an opcode wants more than there is")
        start = len(self._stack) - number
        found = self._stack[start:]
        del self._stack[start:]
        return found

    def _from_mark(self) -> list[Any]:
        """What lies above the last mark; both are taken off."""
        above = next(at for at in range(len(self._stack) - 1, -2, -1) if at < 0 or self._stack[at] is _MARK)
        if above < 0:
            raise ValueError("an opcode wants a mark, and there is none")
        found = self._last(len(self._stack) - above)
        return found[1:]

    def _extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise ValueError("something is added to what is no list")
        self._stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not dict:
            raise ValueError("something is added to what is no dictionary")
        self._stack[-1].update(_pairs(items))


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Keys and values, which take turns."""
    return zip(items[::2], items[1::2], strict=True)
