"""Durable writes: a name holds its old bytes or its new bytes, never half, also after a power cut."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from index_store.layout import temporary_path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write a file or directory at; it becomes ``path`` when the block ends well.

    The bytes are on disk before the name changes and the name is on disk when the block is left. If the block raises,
    what was written is removed and ``path`` is untouched. A directory may only replace nothing (or an empty directory).
    One writer at a time: the temporary name is a fixed function of ``path``, so a killed writer's rest is overwritten.
    """
    temporary = temporary_path(path)
    remove(temporary)
    try:
        yield temporary
        sync_tree(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error says more than a failed removal
            remove(temporary)
        raise
    sync(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Give ``path`` these bytes, durably."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def sync(path: Path) -> None:
    """Return once the content of a file, or the names in a directory, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """``sync`` for a file, or for a directory with everything below it."""
    if path.is_dir():
        for child in sorted(path.iterdir()):
            sync_tree(child)
    sync(path)


def remove(path: Path) -> None:
    """Remove a file or a whole directory; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
