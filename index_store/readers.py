"""The readers' lock: whoever reads a state of the store keeps the files of that state from being removed.

A reader holds a shared lock on ONE byte of ``readers.lock``: the one whose offset is the commit number that it reads.
The file has no content; the kernel frees the lock when its process dies. Whoever wants to remove files that the
catalog no longer names asks whether anybody holds that commit or an older one. The first byte also stands for readers
who have not yet seen which commit they read.

Where the system has no locks of this kind (macOS), readers share a lock on the whole file. Where the file system has
no locks at all, and for a reader who may not open the file, there is none, and a removed file is damage to that reader.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

ARRIVING = 0
"""The number of a reader that is about to open a snapshot; commit 0 is empty, so nobody needs it otherwise."""

ANY_COMMIT = (1 << 63) - 2
"""Beyond every commit number."""

_FLOCK = "hhqqi0q"
"""struct flock of the kernel: type, whence, start, length, pid (must be 0)."""
_SET, _GET = getattr(fcntl, "F_OFD_SETLK", 0), getattr(fcntl, "F_OFD_GETLK", 0)


@contextlib.contextmanager
def reader_lock(path: Path) -> Iterator[Callable[[int], None]]:
    """Be a reader while inside; ``path`` names the lock file, which is made if it can be.

    Enter first, then open the catalog, then call what is given with the commit number that was found there.
    """
    descriptor = _open(path)
    if descriptor is None:
        yield lambda commit_number: None
        return
    try:
        _hold(descriptor, ARRIVING)
        yield lambda commit_number: _move(descriptor, commit_number)
    finally:
        os.close(descriptor)  # frees every lock of this reader and no other's


def is_read(path: Path, commit_number: int) -> bool:
    """Whether anybody reads this commit or an older one; False where nobody can tell."""
    descriptor = _open(path)
    if descriptor is None:
        return False
    try:
        if not _SET:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, commit_number + 1, 0)
        found = fcntl.fcntl(descriptor, _GET, asked)
        return bool(struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)


def _open(path: Path) -> int | None:
    """The lock file, for reading: a shared lock needs no more, so a reader that may not write can hold one."""
    for flags in (os.O_RDONLY, os.O_RDONLY | os.O_CREAT):
        with contextlib.suppress(OSError):
            return os.open(path, flags, 0o666)
    return None


def _hold(descriptor: int, number: int) -> None:
    with contextlib.suppress(OSError):  # a file system without locks
        if _SET:
            fcntl.fcntl(descriptor, _SET, struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, number, 1, 0))
        else:
            fcntl.flock(descriptor, fcntl.LOCK_SH)


def _move(descriptor: int, number: int) -> None:
    """Hold ``number`` and no longer ARRIVING; in between both, so that no moment is unguarded."""
    if _SET and number != ARRIVING:
        _hold(descriptor, number)
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, _SET, struct.pack(_FLOCK, fcntl.F_UNLCK, os.SEEK_SET, ARRIVING, 1, 0))
