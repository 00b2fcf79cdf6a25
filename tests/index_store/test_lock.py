from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from index_store.errors import StoreError, StoreLockedError
from index_store.lock import writer_lock

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from index_store.lock import writer_lock
with writer_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@contextmanager
def holder(path: Path, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(path), str(seconds)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_process_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    with holder(tmp_path / "writer.lock", 60) as process:
        message = f"being written by pid {process.pid} on {socket.gethostname()}; wait for it"
        with pytest.raises(StoreLockedError, match=re.escape(message)), writer_lock(tmp_path / "writer.lock"):
            pass
    assert StoreLockedError.exit_code == 11


def test_a_waiting_process_gets_the_lock(tmp_path: Path) -> None:
    with holder(tmp_path / "writer.lock", 0.3), writer_lock(tmp_path / "writer.lock", timeout_seconds=30):
        text = (tmp_path / "writer.lock").read_text()
    assert text == f"pid {os.getpid()} on {socket.gethostname()}\n"


def test_waiting_ends(tmp_path: Path) -> None:
    with holder(tmp_path / "writer.lock", 60):
        start = time.monotonic()
        with pytest.raises(StoreLockedError, match=r"for 0\.2 s"), writer_lock(tmp_path / "writer.lock", 0.2):
            pass
        assert time.monotonic() - start >= 0.2


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    with holder(tmp_path / "writer.lock", 60) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with writer_lock(tmp_path / "writer.lock"):
            pass


def test_the_lock_holds_within_one_process_too(tmp_path: Path) -> None:
    with writer_lock(tmp_path / "writer.lock"), pytest.raises(StoreLockedError), writer_lock(tmp_path / "writer.lock"):
        pass
    with writer_lock(tmp_path / "writer.lock"):
        pass


def test_a_missing_directory_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot write"), writer_lock(tmp_path / "none" / "writer.lock"):
        pass
