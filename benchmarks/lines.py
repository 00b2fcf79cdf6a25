"""Finished work as lines of JSON: each is on disk before the next piece of work begins."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from index_store.atomic import sync
from index_store.errors import from_os_error


def append(path: Path, fields: Mapping[str, Any]) -> None:
    """Add a line, durably; a line that a kill has cut stays a line of its own."""
    try:
        is_cut = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
        with path.open("a", encoding="ascii") as file:
            file.write("\n" * is_cut + json.dumps(fields) + "\n")
            file.flush()
            os.fsync(file.fileno())
        sync(path.parent)
    except OSError as error:
        raise from_os_error(error, path) from error


def read(path: Path) -> Iterator[tuple[int, Any]]:
    """Number from 1 and content of each line, without those that a kill has cut."""
    for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), start=1):
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError:
            continue
