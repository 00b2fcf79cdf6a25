"""Ended at any step, a store is as it was before or as it should be after; doing it again gives exactly that."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from index_store.errors import StoreMissingError
from index_store.store import Store
from tests.forked import start_function
from tests.index_store.crash_child import ACTIONS
from tests.index_store.samples import SETTINGS, bad, copy_of, fill, ok, state

ROOT = Path(__file__).parents[2]


def base_store(directory: Path) -> Store:
    """Commit 1: a and b have features, q is quarantined; index generations 1 and 2."""
    store = Store.create(directory, SETTINGS)
    fill(store, ok("a", 1), ok("b", 2), bad("q"))
    for _ in range(2):
        ACTIONS["publish"](directory)
    return store


def files(directory: Path) -> dict[str, bytes]:
    """Every shard and index file, and every name that should not be there."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name not in ("catalog.sqlite", "catalog.seal", "writer.lock"):
            found[str(path.relative_to(directory))] = path.read_bytes()
    return {name: data for name, data in found.items() if not name.startswith("catalog.sqlite-")}


def everything(directory: Path) -> object:
    """All that a reader can see, and all files."""
    with Store.open(directory).snapshot() as snapshot:
        generations = [(generation.id, generation.num_vectors) for generation in snapshot.generations()]
        for generation in snapshot.generations():
            assert {path.name for path in generation.path.iterdir()} == {"index.faiss", "ids.npy"}
        attempts = [(record.key, record.attempts, record.mtime_ns) for record in snapshot.videos()]
        return state(snapshot), generations, attempts, snapshot.commit_number, snapshot.shards()


@pytest.mark.crash
@pytest.mark.parametrize(
    ("action", "stride"),
    [
        ("requeue", 1),
        ("compact", 6),
        ("commit", 1),
        ("publish", 1),
    ],
)
def test_killed_at_any_step_a_store_is_old_or_new(tmp_path: Path, action: str, stride: int) -> None:
    base_store(tmp_path / "base")
    if action == "compact":
        ACTIONS["commit"](tmp_path / "base")
    old = everything(tmp_path / "base")
    *steps, (finished, _) = kill_at_steps(action, tmp_path, stride)
    new, new_files = everything(finished), files(finished)
    assert new != old
    seen = []
    for directory, step in steps:
        found = everything(directory)
        assert found in (old, new), f"killed before {step}: neither old nor new"
        seen.append(found == new)
        if not seen[-1]:
            ACTIONS[action](directory)
        else:
            with Store.open(directory).writer():  # removes the rest
                pass
        assert everything(directory) == new, f"killed before {step}: repeating it gave something else"
        assert files(directory) == new_files
    assert seen == sorted(seen)  # one commit point: old up to it, new from there on
    assert not seen[0]
    if stride == 1:
        names = {step.split()[-1] for _, step in steps}
        assert names >= ({"COMMIT"} if action == "requeue" else {"COMMIT", "fsync", "os.rename"})


@pytest.mark.crash
def test_killed_at_any_step_a_repair_goes_on_with_the_next_one(tmp_path: Path) -> None:
    """The last row of a shard and the catalog are damaged; both indexes have no manifest."""
    base = base_store(tmp_path / "base").directory
    for name, place in (("shards/00000001.h5", -10), ("catalog.sqlite", 4321)):
        content = bytearray((base / name).read_bytes())
        content[place] ^= 1
        (base / name).write_bytes(content)
    *steps, (finished, _) = kill_at_steps("repair", tmp_path, 9)
    new, new_files = everything(finished), files(finished)
    with Store.open(finished).snapshot() as snapshot:
        assert snapshot.counts() == {"ok": 1, "partial": 0, "quarantined": 2, "removed": 0}
        assert snapshot.generations() == []
    for directory, step in steps:
        ACTIONS["repair"](directory)
        assert everything(directory) == new, f"killed before {step}: repairing it again gave something else"
        assert files(directory) == new_files


@pytest.mark.slow
def test_killed_at_any_step_of_its_making_a_store_is_absent_or_empty(tmp_path: Path) -> None:
    *steps, (finished, _) = kill_at_steps("create", tmp_path, 2)
    expected = everything(finished)
    num_absent = 0
    for directory, _ in steps:
        try:
            store = Store.open(directory)
        except StoreMissingError:
            num_absent += 1
            store = Store.create(directory, SETTINGS)
        assert everything(directory) == expected
        fill(store, ok("a", 1))
    assert num_absent >= 5


def kill_at_steps(action: str, directory: Path, stride: int) -> list[tuple[Path, str]]:
    """The copies that were worked on, each with the step before which its process died; the last one was finished."""
    command = [sys.executable, "-m", "tests.index_store.crash_child", action, str(directory), str(stride)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert lines[-1][1] == "finished"
    assert len(lines) > 3
    return [(directory / number, step) for number, step in lines]


@pytest.mark.slow
def test_a_power_cut_in_the_middle_of_the_log_leaves_old_or_new(tmp_path: Path) -> None:
    store = base_store(tmp_path / "base")
    old = everything(store.directory)
    with store.snapshot():  # keeps SQLite from emptying its log at the end
        ACTIONS["commit"](store.directory)
        new = everything(store.directory)
        shutil.copytree(store.directory, tmp_path / "cut")
    (tmp_path / "cut" / "catalog.seal").unlink()  # there is none while a commit is under way
    log = tmp_path / "cut" / "catalog.sqlite-wal"
    content = log.read_bytes()
    assert len(content) > 4 * 4096
    seen = []
    for length in sorted({*range(0, len(content), 1000), len(content) - 1, len(content)}):
        (tmp_path / "cut" / "catalog.sqlite-shm").unlink(missing_ok=True)  # not kept through a power cut
        shutil.copytree(tmp_path / "cut", tmp_path / "try")
        os.truncate(tmp_path / "try" / log.name, length)
        seen.append(everything(tmp_path / "try") == new)
        assert seen[-1] or everything(tmp_path / "try") == old
        with Store.open(tmp_path / "try").writer():
            pass
        num_shards = len(list((tmp_path / "try" / "shards").iterdir()))
        assert num_shards == (2 if seen[-1] else 1)
        shutil.rmtree(tmp_path / "try")
    assert seen == sorted(seen)
    assert not seen[0]
    assert seen[-1]


def test_a_commit_whose_last_word_fails_stays_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = base_store(tmp_path / "base")
    old, old_files = everything(store.directory), files(store.directory)
    connect = sqlite3.connect

    class FailingConnection(sqlite3.Connection):
        def execute(self, sql: str, values: object = ()) -> sqlite3.Cursor:
            if sql == "COMMIT":
                super().execute("ROLLBACK")  # as SQLite does when the disk refuses the last sync
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(sql, values)  # type: ignore[arg-type]

    with store.writer() as writer:
        writer._catalog._connection.close()
        path = store.directory / "catalog.sqlite"
        writer._catalog._connection = connect(path, isolation_level=None, factory=FailingConnection)
        with pytest.raises(Exception, match=r"cannot use .*disk I/O error"):
            writer.commit([ok("x", 9), copy_of("y", 1)])
    assert everything(store.directory) == old
    assert files(store.directory) == old_files


def commit_forever(directory: Path) -> None:
    store = Store.open(directory)
    with store.snapshot() as snapshot:
        start = snapshot.counts()["ok"]
    with store.writer() as writer:
        for number in range(start, 10_000):
            writer.commit([ok(f"v{number}", number)])
            print(number)


@pytest.mark.crash
def test_killed_at_random_moments_nothing_committed_is_lost(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", SETTINGS)
    moments = random.Random(0)
    num_committed = 0
    for _ in range(20):
        process = start_function(commit_forever, store.directory)
        while not process.printed() and process.poll() is None:
            time.sleep(0.005)
        time.sleep(moments.random() / 5)
        process.kill()
        reported = [int(line) for line in process.printed().split()]
        assert reported[0] >= num_committed  # what was reported is not done again
        num_committed = reported[-1] + 1
        with store.snapshot() as snapshot:
            assert snapshot.counts()["ok"] in (num_committed, num_committed + 1)
            for record in snapshot.videos():
                snapshot.verify_record(record.id)
    with store.writer(), store.snapshot() as snapshot:
        clean = Store.create(tmp_path / "clean", SETTINGS)
        with clean.writer() as writer:
            for number in range(snapshot.counts()["ok"]):
                writer.commit([ok(f"v{number}", number)])
        with clean.snapshot() as expected:
            assert state(snapshot) == state(expected)
            assert snapshot.shards() == expected.shards()
    assert {**files(store.directory), "tbpipe.toml": b""} == {**files(clean.directory), "tbpipe.toml": b""}
