"""Ends this process, as by kill -9, just before its n-th durable step in one directory; or lets the disk fail there.

A step is a write (half of it is done), truncation, fsync, rename, removal, mkdir, the opening of a file for writing, or
a SQL statement that changes something. Reads are no steps, nor is what happens outside the directory.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

KILLED = 137
NAMED = {"os.rename": 0, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.truncate": 0, "os.link": 1, "os.symlink": 1}
"""Audit event -> which argument is the path."""
OPENED_FOR_WRITING = os.O_WRONLY | os.O_RDWR
SYNCS = ("fsync", "fdatasync")
WRITES = ("write", "pwrite", "writev", "pwritev")
COPIES = {"copy_file_range": 1, "sendfile": 0}
"""Call -> which argument is the target."""
GIVE_SPACE = ("os.remove", "os.rmdir", "os.truncate")
NO_CHANGE = ("SELECT", "PRAGMA", "BEGIN", "--", "ROLLBACK", "EXPLAIN", "WITH")


class Killer:
    """Counts durable steps below ``directory``; ``install`` makes the ``last_step``-th one the last.

    With ``error``, an errno, it lives on, and that step and all later ones fail with it: SQL statements excepted, which
    fail inside SQLite, and removals where the disk is full.
    """

    def __init__(self, directory: Path, last_step: int, tell: Callable[[str], object], error: int = 0) -> None:
        self._root = os.path.realpath(directory)
        self._remaining = last_step
        self._tell = tell
        self._error = error
        self._lock = threading.RLock()

    def install(self) -> None:
        """From now on. There is no way back, this is for a process that ends afterwards."""
        sys.addaudithook(self._on_audit)
        for name in SYNCS:
            self._wrap(name, 0, is_write=False)
        for name in WRITES:
            self._wrap(name, 0, is_write=True)
        for name, place in COPIES.items():
            self._wrap(name, place, is_write=False)
        connect = sqlite3.connect

        def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*arguments, **options)
            connection.set_trace_callback(self._on_sql)
            return connection

        sqlite3.connect = traced  # type: ignore[assignment]

    def _step(self, name: str) -> bool:
        """Whether this is the step to die in."""
        with self._lock:
            self._remaining -= 1
            if self._remaining == 0:
                self._tell(name)
            return self._remaining == 0

    def _die_at(self, name: str) -> None:
        if self._error:
            self._fail_at(name)
        elif self._step(name):
            os._exit(KILLED)

    def _fail_at(self, name: str) -> None:
        if self._error == errno.ENOSPC and name.startswith(GIVE_SPACE):
            return
        if self._step(name) or self._remaining < 0:
            raise OSError(self._error, os.strerror(self._error))

    def _wrap(self, name: str, place: int, is_write: bool) -> None:
        original: Callable[..., Any] | None = getattr(os, name, None)
        if original is None:
            return

        def counted(*arguments: Any, **options: Any) -> Any:
            assert original is not None
            path = self._path_of(arguments[place])
            if path and self._error:
                self._fail_at(f"{name} {path}")
            elif path and self._step(f"{name} {path}"):
                if is_write and isinstance(arguments[1], bytes | bytearray | memoryview):
                    half = memoryview(arguments[1]).cast("B")
                    original(arguments[0], half[: len(half) // 2], *arguments[2:])
                os._exit(KILLED)
            return original(*arguments, **options)

        setattr(os, name, counted)

    def _on_sql(self, text: str) -> None:
        if not self._error and not text.lstrip().upper().startswith(NO_CHANGE):
            self._die_at(f"sql {' '.join(text.split())[:40]}")

    def _on_audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in NAMED:
            folder = next((part for part in reversed(arguments) if isinstance(part, int) and part >= 0), -1)
            path = self._path_of(arguments[NAMED[event]], folder)
        elif event == "open" and arguments[2] & OPENED_FOR_WRITING:
            path = self._path_of(arguments[0])
        else:
            return
        if path:
            self._die_at(f"{event} {path}")

    def _path_of(self, file: Any, folder: int = -1) -> str:
        """Where below the directory a path or a descriptor is; empty for what is elsewhere."""
        if isinstance(file, int):
            name = os.readlink(f"/proc/self/fd/{file}")
        else:
            name = os.fsdecode(file)
            if folder >= 0 and not os.path.isabs(name):
                name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
            name = os.path.join(os.path.realpath(os.path.dirname(name) or "."), os.path.basename(name))
        return os.path.relpath(name, self._root) if name.startswith(self._root + os.sep) else ""
