"""What can go wrong, as a tree that callers catch by branch and the command line turns into exit codes.

TbpipeError                     1   anything below; alone it means a bug
├── UsageError                  2   the options contradict each other
├── StoreError                  1
│   ├── StoreMissingError      10   no store in that directory
│   ├── StoreLockedError       11   another process is writing to it
│   ├── FingerprintError       12   features, index or weights made with other settings
│   ├── DamageError            13   bytes on disk are not the bytes that were written
│   ├── NoSpaceError           14   the disk is full
│   └── NotWritableError       18   the store may be read but not written
├── SafetyStopError            15   going on would destroy more than expected
├── ComponentMissingError      16   an optional library or a weight file is not installed
├── InputError                 17   an input file or folder cannot be used
└── InterruptedRunError   130/143   Ctrl-C or SIGTERM; everything finished was committed
"""

from __future__ import annotations

import errno
import signal
from pathlib import Path


class TbpipeError(Exception):
    """Base of every error that tbpipe raises on purpose. The message says what to do next."""

    exit_code = 1


class UsageError(TbpipeError):
    """Options that contradict each other or are out of range."""

    exit_code = 2


class StoreError(TbpipeError):
    """The store cannot serve the request."""


class StoreMissingError(StoreError):
    """There is no store in the directory."""

    exit_code = 10


class StoreLockedError(StoreError):
    """Another process holds the writer lock."""

    exit_code = 11


class FingerprintError(StoreError):
    """Two things were made with different settings and must not be mixed."""

    exit_code = 12


class DamageError(StoreError):
    """Bytes on disk differ from the bytes that were committed."""

    exit_code = 13


class NoSpaceError(StoreError):
    """The file system is full."""

    exit_code = 14


class NotWritableError(StoreError):
    """The store may be read but not written."""

    exit_code = 18


class SafetyStopError(TbpipeError):
    """Stopped because going on would destroy more than expected."""

    exit_code = 15


class ComponentMissingError(TbpipeError):
    """An optional library, a decoder or a weight file is missing."""

    exit_code = 16


class InputError(TbpipeError):
    """An input file or folder cannot be used."""

    exit_code = 17


class InterruptedRunError(TbpipeError):
    """The run was asked to stop; what was finished is committed."""

    def __init__(self, message: str, signal_number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def from_os_error(error: OSError, path: Path | str) -> StoreError:
    """The store error that says what ``error`` means for a writer at ``path``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpaceError(
            f"no space left while writing {path}; nothing half-written was kept: free some space and run again"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return NotWritableError(
            f"cannot write {path} ({error.strerror}); check its permissions and its mount, then run again"
        )
    return StoreError(f"cannot write {path}: {error.strerror or error}; the store is as it was before")
