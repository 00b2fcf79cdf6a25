"""What users call a video: its key."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from index_store.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class TakenKeys:
    """Keys of the catalog's living videos and of this run, as one container; that of a removed video is free."""

    snapshot: Snapshot | None
    taken: Container[str]

    def __contains__(self, key: object) -> bool:
        if key in self.taken or not isinstance(key, str):
            return True
        record = self.snapshot.by_key(key) if self.snapshot is not None else None
        return record is not None and record.status != "removed"


def unique_key(key: str, path: Path, taken: Container[str]) -> str:
    """``key``, or the shortest longer tail of ``path`` that nobody has taken, or at last ``key~2``, ``key~3`` ..."""
    parts = [printable_name(part) for part in path.parts[1:]]
    shortest = key.count("/") + 2
    tails = ("/".join(parts[-length:]) for length in range(shortest, len(parts) + 1))
    numbered = (f"{key}~{number}" for number in itertools.count(2))
    return next(wanted for wanted in itertools.chain([key], tails, numbered) if wanted not in taken)


def in_part(key: str, part: int, num_parts: int) -> bool:
    """Whether ``key`` belongs to a part of ``num_parts``, which may be counted from 0 or from 1 (n of n is 0 of n).

    The choice hangs on the key alone, so adding a video never moves another one to a different part.
    """
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % num_parts == part % num_parts


def printable_name(name: str) -> str:
    r"""A file name as text that every encoder takes: bytes that are not UTF-8 become ``\xNN``."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")
