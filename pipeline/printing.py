"""How every command prints: text that cannot steer a terminal, sizes and times for people, one JSON object."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def printable(text: str) -> str:
    """``text`` on one line without control characters, so that a file name cannot steer the terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "backslashreplace").decode("ascii")
        for character in text.encode("utf-8", "backslashreplace").decode("utf-8")
    )


def size(num_bytes: float) -> str:
    """Bytes for people: 614.4 KB, 58.3 MB."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    """Seconds for people: 4.2 s, 3 min 20 s, 5 h 2 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def remark(text: str) -> None:
    """One line on stderr."""
    print(printable(text), file=sys.stderr)


def print_json(value: object) -> None:
    """One line on stdout; dataclasses are objects, and bytes of a path that are not UTF-8 become escapes."""
    json.dump(value, sys.stdout, default=_plain, ensure_ascii=True, allow_nan=False)
    sys.stdout.write("\n")


def _plain(value: Any) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return os.fsencode(value).decode("utf-8", "backslashreplace")
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
