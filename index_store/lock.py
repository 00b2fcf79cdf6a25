"""The writer lock: one process writes to a store, and the kernel frees the lock when that process dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from index_store.errors import StoreError, StoreLockedError, from_os_error

_RETRY_SECONDS = 0.1


@contextlib.contextmanager
def writer_lock(path: Path, timeout_seconds: float = 0.0) -> Iterator[None]:
    """Hold the writer lock of a store; ``path`` names its lock file, which stays when the lock is freed.

    Waits up to ``timeout_seconds`` (0: does not wait). Raises StoreLockedError with the holder's pid and host,
    NotWritableError or StoreError when the file cannot be locked at all.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise from_os_error(error, path) from error
    try:
        _acquire(descriptor, path, timeout_seconds)
        _write_holder(descriptor, path, f"pid {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        os.close(descriptor)  # frees the lock; the file stays, because removing it would let two writers lock two files


def _acquire(descriptor: int, path: Path, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not _try_lock(descriptor, path):
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            holder = os.pread(descriptor, 1000, 0).decode("utf-8", "replace").strip() or "another process"
            waited = f" for {timeout_seconds:g} s" if timeout_seconds > 0 else ""
            raise StoreLockedError(
                f"{path.parent} is being written by {holder}{waited}; wait for it, or give --lock-timeout SECONDS"
            )
        time.sleep(min(_RETRY_SECONDS, remaining))


def _try_lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise StoreError(f"cannot lock {path}: {error.strerror}; keep the store on a file system with locks") from error
    return True


def _write_holder(descriptor: int, path: Path, holder: str) -> None:
    """Leave a line for the message that the next writer will see; it has no other meaning."""
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{holder}\n".encode(), 0)
    except OSError as error:
        raise from_os_error(error, path) from error
