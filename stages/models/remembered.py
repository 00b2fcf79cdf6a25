"""Which weight files have which SHA-256, remembered in the user's cache folder.

Hashing 600 MB takes as long as importing torch, and a search needs the hash only to know that the weights are those of
its store. A file is taken for the same as long as its path, size, inode and times are; whoever computes features hashes
it all the same. The folder (``~/.cache/tbpipe``, or ``$TBPIPE_CACHE_DIR``) may be removed at any time, or be read-only.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

Stamps = list[list[str | int]]
"""Of each file: path, size, time of change in both forms (nanoseconds), inode, device."""

SETTLED_SECONDS = 2.0
"""A file that was just written may change again and keep its times: the clocks of some file systems are that coarse."""


def stamps_of(files: Sequence[Path]) -> Stamps:
    """What would be different if one of the files changed. Raises OSError."""
    found: Stamps = []
    for path in files:
        about = path.stat()
        found.append(
            [str(path), about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino, about.st_dev],
        )
    return found


def remember(sha256: str, stamps: Stamps) -> None:
    """Note that the files with these stamps, taken before they were read, have this hash; where it cannot be, not."""
    newest = max(int(stamp) for _, _, *times, _, _ in stamps for stamp in times) / 1e9
    folder = _folder()
    if folder is None or time.time() - newest < SETTLED_SECONDS:
        return
    with contextlib.suppress(OSError):
        if stamps != stamps_of([Path(str(path)) for path, *_ in stamps]):
            return
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".", encoding="utf-8", delete=False) as file:
            json.dump(stamps, file)
        os.replace(file.name, folder / f"{sha256}.json")


def find(sha256: str) -> list[Path]:
    """The files that have this hash, the weights last; none where nothing is known or something has changed."""
    folder = _folder()
    if folder is None or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        return []
    try:
        with (folder / f"{sha256}.json").open(encoding="utf-8") as file:
            about = os.fstat(file.fileno())
            if about.st_uid != os.geteuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return []  # somebody else may have written it
            stamps: Stamps = json.load(file)
        files = [Path(str(path)) for path, *_ in stamps]
        return files if stamps == stamps_of(files) else []
    except (OSError, ValueError, TypeError):
        return []


def _folder() -> Path | None:
    own, base = os.environ.get("TBPIPE_CACHE_DIR", ""), os.environ.get("XDG_CACHE_HOME", "")
    try:
        cache = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # there is no home
        return None
    return (Path(own) if own else cache / "tbpipe") / "weights"
