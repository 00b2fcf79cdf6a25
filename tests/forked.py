"""Processes of their own that need no time to start: forks of one server that has imported what takes seconds.

For what must be a process because it is killed, stopped, limited or one of several that work together. That the
installed program starts by itself is shown elsewhere, by tests that start Python anew.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pytest", "tests.heavy"])
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
"""Of glibc's malloc.h."""


class Forked:
    """A function that is running, or has run, in a process of its own."""

    def __init__(self, function: Callable[[], object]) -> None:
        """Start it; it must be one that can be pickled. What it prints is kept."""
        self._folder = Path(tempfile.mkdtemp(prefix="forked-"))
        for name in ("out", "err"):
            (self._folder / name).touch()
        self._printed: tuple[str, str] | None = None
        self._process = SERVER.Process(target=_serve, args=(function, dict(os.environ), self._folder))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it and wait for its end."""
        self._process.kill()
        self.communicate()

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """Wait for its end; gives what it has printed to stdout and to stderr."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"still running after {timeout} s: {self._read()}")
        return self._read()

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def printed(self) -> str:
        """What it has printed to stdout so far."""
        return self._printed[0] if self._printed else (self._folder / "out").read_text()

    def _read(self) -> tuple[str, str]:
        if self._printed is None:
            self._printed = (self._folder / "out").read_text(), (self._folder / "err").read_text()
            shutil.rmtree(self._folder)
        return self._printed


def start_function(function: Callable[..., object], *arguments: object) -> Forked:
    """Start a function of a module in a process of its own."""
    return Forked(partial(function, *arguments))


def start_command(*arguments: object, limit_bytes: int | None = None, **environment: str) -> Forked:
    """Start tbpipe in a process of its own. ``limit_bytes``: no file may become longer, as on a full disk."""
    return Forked(partial(_command, [str(argument) for argument in arguments], limit_bytes, environment))


def peak_memory(function: Callable[..., object], *arguments: object) -> int:
    """Bytes that a process which does this takes at most, with what it has imported."""
    process = start_function(_measured, function, *arguments)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return int(out) << 10


def _measured(function: Callable[..., object], *arguments: object) -> None:
    import torch

    torch.set_num_threads(1)  # each thread has memory of its own
    if sys.platform == "linux":
        _allocate_steadily()
    function(*arguments)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _allocate_steadily() -> None:
    """Let all threads share one heap, and large blocks go back at once: else equal runs differ by up to 17 MB."""
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_THRESHOLD, 128 << 10)


def _serve(function: Callable[[], object], environment: dict[str, str], folder: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(folder / name, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    function()


def _command(arguments: list[str], limit_bytes: int | None, environment: dict[str, str]) -> None:
    from pipeline.cli import main

    if limit_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    os.environ.update(environment)
    sys.argv = ["tbpipe", *arguments]
    main()
