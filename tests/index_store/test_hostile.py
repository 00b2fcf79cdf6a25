"""A full disk, a read-only store, a second writer: one clear error each, and an intact store."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from index_store.errors import NoSpaceError, NotWritableError, StoreError
from index_store.store import Store
from tests.index_store.crash_child import ACTIONS
from tests.index_store.samples import SETTINGS, bad, fill, ok, state
from tests.index_store.test_crash import base_store, everything, files

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def mounted(directory: Path, options: str) -> Iterator[Path]:
    """A small file system of its own; skips where it cannot be had."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs root and the right to mount")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


# 200 shard rows do not fit; or one does, and 1000 catalog rows do not
@pytest.mark.slow
@pytest.mark.parametrize(("num_ok", "num_bad"), [(200, 0), (1, 1000)])
@pytest.mark.parametrize("free_pages", [0, 2, 8, 20])
def test_a_full_disk_changes_nothing_and_is_no_obstacle_later(
    tmp_path: Path, free_pages: int, num_ok: int, num_bad: int
) -> None:
    with mounted(tmp_path / "disk", "size=1m") as disk:
        store = base_store(disk / "store")
        old, old_files = everything(store.directory), files(store.directory)
        filler = disk / "filler"
        fill_up(filler, free_pages)
        outcomes = [ok(f"v{number}", number) for number in range(num_ok)]
        outcomes += [bad(f"w{number}") for number in range(num_bad)]
        with pytest.raises(NoSpaceError, match="free some") as caught:
            fill(store, *outcomes)
        assert caught.value.exit_code == 14
        assert everything(store.directory) == old
        assert files(store.directory) == old_files
        filler.unlink()
        fill(store, ok("v1", 1))
        with store.snapshot() as snapshot:
            assert set(state(snapshot)) == {"a", "b", "q", "v1"}


def test_a_full_disk_can_be_read_and_has_no_room_for_rows_alone(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m") as disk:
        store = Store.create(disk / "store", SETTINGS)
        fill(store, ok("a", 1))
        fill_up(disk / "filler", 0)
        for _ in range(2):  # without and with what the reader leaves beside the catalog
            with pytest.raises(NoSpaceError):
                fill(store, *[bad(f"v{number}") for number in range(500)])
            with store.snapshot() as snapshot:
                assert set(state(snapshot)) == {"a"}
        (disk / "filler").unlink()
        fill(store, *[bad(f"v{number}") for number in range(500)])
        with store.snapshot() as snapshot:
            assert snapshot.counts()["quarantined"] == 500


def fill_up(filler: Path, free_pages: int) -> None:
    """Leave this many pages of 4 KB."""
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    os.truncate(filler, max(0, filler.stat().st_size - 4096 * free_pages))


LIMITED = """
import resource, sys
from pathlib import Path
from index_store.errors import StoreError
from index_store.store import Store
from tests.index_store.samples import ok
store = Store.open(Path(sys.argv[1]))
with store.writer() as writer:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    try:
        writer.commit([ok(f"v{number}", number) for number in range(40)])
    except StoreError as error:
        print(type(error).__name__, error.exit_code, error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit_bytes", [0, 2000, 10_000])
def test_a_file_that_may_not_grow_is_a_full_disk(tmp_path: Path, limit_bytes: int) -> None:
    store = base_store(tmp_path / "store")
    old, old_files = everything(store.directory), files(store.directory)
    command = [sys.executable, "-c", LIMITED, str(store.directory), str(limit_bytes)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("NoSpaceError 14 no space left while writing"), done.stdout + done.stderr
    assert "shards/00000002.h5" in done.stdout
    assert everything(store.directory) == old
    assert files(store.directory) == old_files


@pytest.mark.parametrize("log_left", [False, True])
def test_a_store_on_a_read_only_disk_can_be_read_and_not_written(tmp_path: Path, log_left: bool) -> None:
    with mounted(tmp_path / "disk", "size=4m") as disk:
        store = base_store(tmp_path / "made")
        with store.snapshot():
            fill(store, ok("late", 7))
            if log_left:  # as after a copy while a reader was there
                shutil.copytree(store.directory, disk / "store")
        if not log_left:
            with store.writer():  # the last one to leave empties the log; a reader may not
                pass
            shutil.copytree(store.directory, disk / "store", ignore=shutil.ignore_patterns("*-wal", "*-shm"))
        expected = everything(store.directory)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        before = sorted(disk.rglob("*"))
        assert everything(disk / "store") == expected
        with pytest.raises(NotWritableError) as caught, Store.open(disk / "store").writer():
            pass
        assert caught.value.exit_code == 18
        assert "check its permissions and its mount" in str(caught.value)
        with pytest.raises(NotWritableError):
            Store.create(disk / "new", SETTINGS)
        assert sorted(disk.rglob("*")) == before


def test_a_log_that_cannot_be_read_is_not_ignored(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=4m") as disk:
        store = base_store(tmp_path / "made")
        with store.snapshot():
            fill(store, ok("late", 7))
            shutil.copytree(store.directory, disk / "store", ignore=shutil.ignore_patterns("*-shm"))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StoreError, match="let tbpipe write there once"), Store.open(disk / "store").snapshot():
            pass


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from index_store.errors import NotWritableError
from index_store.store import Store
if os.geteuid() == 0:
    os.setuid(65534)
store = Store.open(Path(sys.argv[1]))
with store.snapshot() as snapshot:
    print(snapshot.counts()["ok"], snapshot.read_tokens([1]).tokens.shape)
try:
    with store.writer():
        print("written")
except NotWritableError as error:
    print(error.exit_code)
"""


def test_somebody_elses_store_can_be_read_and_not_written(tmp_path: Path) -> None:
    store = base_store(tmp_path / "store")
    for leftover in ("catalog.sqlite-wal", "catalog.sqlite-shm"):
        (store.directory / leftover).unlink(missing_ok=True)
    paths = [store.directory, *store.directory.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    opened = [parent for parent in store.directory.parents if not parent.stat().st_mode & 0o005]
    for parent in opened:
        parent.chmod(0o755)
    try:
        command = [sys.executable, "-c", UNPRIVILEGED, str(store.directory)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    finally:
        for parent in opened:
            parent.chmod(0o700)
        for path in paths:
            path.chmod(0o755)
    assert done.stdout.splitlines() == ["2 (1, 3, 5, 8)", "18"], done.stderr


def test_a_second_writer_in_another_process_is_refused_and_readers_are_not(tmp_path: Path) -> None:
    store = base_store(tmp_path / "store")
    code = (
        "import sys; from pathlib import Path; from index_store.errors import StoreLockedError\n"
        "from index_store.store import Store; store = Store.open(Path(sys.argv[1]))\n"
        "with store.snapshot() as snapshot: print(snapshot.counts()['ok'])\n"
        "try:\n    with store.writer(): print('written')\n"
        "except StoreLockedError as error: print(error.exit_code, error)"
    )
    with store.writer() as writer:
        writer.commit([ok("c", 3)])
        command = [sys.executable, "-c", code, str(store.directory)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        counted, refused = done.stdout.splitlines()
        assert counted == "3"
        assert refused.startswith(f"11 {store.directory} is being written by pid {os.getpid()} on ")
        writer.commit([bad("d")])
    with store.snapshot() as snapshot:
        assert set(state(snapshot)) == {"a", "b", "c", "d", "q"}


def test_a_catalog_without_its_shard_is_damage_and_the_rest_is_served(tmp_path: Path) -> None:
    store = base_store(tmp_path / "store")
    ACTIONS["commit"](store.directory)
    (store.directory / "shards" / "00000002.h5").unlink()
    with store.snapshot() as snapshot:
        ids = {record.key: record.id for record in snapshot.videos()}
        assert snapshot.read_tokens([ids["d"]]).tokens.shape == (1, 3, 5, 8)  # shares a row of shard 1
        with pytest.raises(StoreError, match=r"00000002\.h5 is missing") as caught:
            snapshot.read_tokens([ids["c"], ids["d"]])
        assert caught.value.exit_code == 13
