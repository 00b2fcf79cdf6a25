from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from index_store import readers
from index_store.readers import ANY_COMMIT, is_read, reader_lock

ROOT = Path(__file__).parents[2]
READ = """
import os, sys
from pathlib import Path
from index_store.readers import reader_lock
if len(sys.argv) > 3 and os.geteuid() == 0:
    os.setuid(65534)
with reader_lock(Path(sys.argv[1])) as hold:
    hold(int(sys.argv[2]))
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def other_reader(path: Path, number: int, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that reads commit ``number``."""
    command = [sys.executable, "-c", READ, str(path), str(number), *options]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(params=["by commit", "whole file"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lock file, with the system's locks on bytes and as on a system that has none."""
    if request.param == "whole file":
        monkeypatch.setattr(readers, "_SET", 0)
    elif not hasattr(fcntl, "F_OFD_SETLK"):
        pytest.skip("this system has no locks on bytes that belong to an open file")
    return tmp_path / "readers.lock"


def test_nobody_reads_at_first_and_at_last(path: Path) -> None:
    assert not is_read(path, ANY_COMMIT)
    with reader_lock(path) as hold:
        hold(7)
        assert is_read(path, 7)
        assert is_read(path, ANY_COMMIT)
    assert not is_read(path, ANY_COMMIT)
    assert path.stat().st_size == 0


def test_a_reader_that_has_not_seen_its_commit_yet_counts_as_older_than_any(path: Path) -> None:
    with reader_lock(path) as hold:
        assert is_read(path, 0)
        hold(0)
        assert is_read(path, 0)


def test_only_readers_of_that_commit_or_older_ones_count(tmp_path: Path) -> None:
    path = tmp_path / "readers.lock"
    with reader_lock(path) as one, reader_lock(path) as other:
        one(5)
        other(8)
        assert [is_read(path, number) for number in (0, 4, 5, 7, 8)] == [False, False, True, True, True]


def test_one_of_two_readers_of_a_commit_may_leave(path: Path) -> None:
    with reader_lock(path) as stays:
        stays(3)
        with reader_lock(path) as leaves:
            leaves(3)
        assert is_read(path, 3)


def test_a_process_that_may_not_write_is_seen_and_its_lock_dies_with_it(tmp_path: Path) -> None:
    path = tmp_path / "readers.lock"
    path.touch()
    path.chmod(0o444)
    opened = [parent for parent in path.parents if not parent.stat().st_mode & 0o005]
    for parent in opened:
        parent.chmod(0o755)
    try:
        with other_reader(path, 3, "unprivileged") as process:
            assert not is_read(path, 2)
            assert is_read(path, 3)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not is_read(path, 3)
    finally:
        for parent in opened:
            parent.chmod(0o700)


def test_where_there_can_be_no_lock_reading_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "readers.lock"
    with reader_lock(path) as hold:
        hold(1)
        assert not is_read(path, 1)
    assert os.listdir(tmp_path) == []
