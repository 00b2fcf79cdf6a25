from __future__ import annotations

from pathlib import Path

import pytest

from index_store.compact import compact
from index_store.errors import DamageError
from index_store.repair import repair
from index_store.store import Store
from index_store.verify import verify
from tests.index_store.samples import SETTINGS, bad, copy_of, fill, ok, state
from tests.index_store.test_verify import flip, place_of, publish

ROW = SETTINGS.bytes_per_video


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Shards: 1 half waste, 2 whole and small, 3 only waste, 4 whole."""
    store = Store.create(tmp_path / "store", SETTINGS)
    fill(store, ok("a", 1), ok("b", 2), ok("c", 3), ok("d", 4))
    fill(store, ok("e", 5), copy_of("f", 4))
    fill(store, ok("g", 6))
    fill(store, ok("a", 11), ok("b", 12), ok("g", 16), bad("q"))
    publish(store)
    return store


def contents(store: Store) -> object:
    """All that does not depend on where rows lie. Every checksum is right."""
    assert verify(store.directory, read_data=True).problems == []
    with store.snapshot() as snapshot:
        return state(snapshot), snapshot.commit_number, [index.id for index in snapshot.generations()]


def shards(store: Store) -> list[tuple[int, int]]:
    """(id, rows) of every shard; no other file is there."""
    with store.snapshot() as snapshot:
        found = [(shard.id, shard.num_rows) for shard in snapshot.shards()]
    assert len(list((store.directory / "shards").iterdir())) == len(found)
    return found


def test_waste_goes_and_nothing_else_changes(store: Store) -> None:
    before = contents(store)
    planned = compact(store, 0.5, shard_bytes=1, dry_run=True)
    assert contents(store) == before
    assert shards(store) == [(1, 4), (2, 1), (3, 1), (4, 3)]
    report = compact(store, 0.5, shard_bytes=1)
    assert report == planned
    assert (report.num_shards, report.num_wasteful, report.num_small, report.num_new) == (4, 2, 0, 1)
    assert report.num_rows_moved == 2
    assert report.bytes_freed > 3 * ROW
    assert contents(store) == before
    assert shards(store) == [(2, 1), (4, 3), (5, 2)]
    assert compact(store, 0.5, shard_bytes=1).num_new == 0


def test_small_shards_become_one_of_the_wanted_size(store: Store) -> None:
    before = contents(store)
    assert compact(store, 0.9, shard_bytes=1 << 30).num_small == 3
    assert shards(store) == [(5, 6)]
    assert contents(store) == before


def times(store: Store) -> dict[Path, int]:
    """When every file that matters was written."""
    passing = ("-wal", "-shm", "writer.lock")
    files = (path for path in store.directory.rglob("*") if path.is_file() and not path.name.endswith(passing))
    return {path: path.stat().st_mtime_ns for path in files}


def test_a_store_without_waste_is_left_alone(store: Store) -> None:
    compact(store)
    before = times(store)
    report = compact(store)
    assert (report.num_new, report.bytes_freed, report.num_held) == (0, 0, 0)
    assert times(store) == before


def test_a_reader_keeps_its_shards_until_it_leaves(store: Store) -> None:
    with store.snapshot() as snapshot:
        before = state(snapshot)
        assert compact(store).num_held > 0
        assert state(snapshot) == before
    with store.writer():
        pass
    with store.snapshot() as snapshot:
        assert snapshot.num_retired == 0
        assert state(snapshot) == before
    assert len(shards(store)) == 1


def test_a_damaged_row_is_not_copied(store: Store) -> None:
    flip(store.directory / "shards" / "00000001.h5", place_of(store, "tokens", 2))
    with pytest.raises(DamageError, match=r"features of c \(id 3\) have checksum .* run 'tbpipe repair'"):
        compact(store)
    repair(store.directory)
    compact(store)
    fill(store, ok("c", 3))
    contents(store)


def test_stopped_between_two_shards_the_next_compact_goes_on(store: Store) -> None:
    before = contents(store)
    stops = iter([False, True])
    report = compact(store, 0.5, shard_bytes=1, should_stop=lambda: next(stops))
    assert report.interrupted
    assert report.num_new == 1
    assert contents(store) == before
    assert compact(store, 0.5, shard_bytes=1).num_wasteful == 1
    assert shards(store) == [(2, 1), (4, 3), (5, 2)]
    assert contents(store) == before
