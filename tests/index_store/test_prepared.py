"""Files of prepared rows: whole or not there, and used only where everything about them fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from index_store.prepared import PreparedKey
from index_store.store import Store
from tests.index_store.crash_child import ACTIONS
from tests.index_store.samples import SETTINGS, fill, ok
from tests.index_store.test_crash import kill_at_steps

KEY = PreparedKey("method", "ab" * 32)
LOCATIONS = [(2, 1), (1, 0), (2, 0), (1, 1), (1, 0)]


def base_store(directory: Path) -> Store:
    """Two shards of two videos."""
    store = Store.create(directory, SETTINGS)
    fill(store, ok("a", 1), ok("b", 2))
    fill(store, ok("c", 3), ok("d", 4))
    return store


def found(store: Store) -> dict[tuple[int, int], list[float]]:
    """The rows that can be read, each of which must be what was written."""
    with store.snapshot() as snapshot:
        reader = snapshot.open_prepared(KEY)
        if reader is None:
            return {}
        rows = reader.read(LOCATIONS)
        assert reader.same == {"other": "field"}
        reader.close()
    there = [place for place in range(len(LOCATIONS)) if rows.is_there[place]]
    for place in there:
        shard, row = LOCATIONS[place]
        assert rows.fields["field"][place].tolist() == [10 * shard + row] * 3
        assert rows.fields["mask"][place].all()
    return {LOCATIONS[place]: rows.fields["field"][place].tolist() for place in there}


def files(store: Store) -> dict[str, bytes]:
    directory = store.directory / "prepared"
    paths = [path for path in directory.rglob("*") if path.is_file() and path.name != "writer.lock"]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


@pytest.mark.crash
def test_killed_at_any_step_rows_are_whole_or_not_there(tmp_path: Path) -> None:
    base_store(tmp_path / "base")
    *killed, (finished, _) = kill_at_steps("prepare", tmp_path, 1)
    expected = files(Store.open(finished))
    numbers = []
    for directory, _ in killed:
        store = Store.open(directory)
        numbers.append(len(found(store)))
        ACTIONS["prepare"](directory)
        assert files(store) == expected
    assert numbers == sorted(numbers)
    assert {0, 2} <= set(numbers) <= {0, 2, 4}
    assert len(found(Store.open(finished))) == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", "tbpipe-prepared-0"),
        ("digest", "cd" * 32),
        ("shard_sha256", "0" * 64),
        ("same", "{"),
        ("same", '{"mask": "field"}'),
        ("checksum", ""),
    ],
)
def test_a_header_that_does_not_fit_makes_the_file_absent(tmp_path: Path, name: str, value: str) -> None:
    store = base_store(tmp_path)
    ACTIONS["prepare"](tmp_path)
    path = tmp_path / "prepared" / KEY.directory_name / "00000001.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"][name] = value
    changed = json.dumps(header).encode().ljust(length)[:length]
    path.write_bytes(content[:8] + changed + content[8 + length :])
    load_file(path)  # a sound file all the same
    assert sorted(found(store)) == [(2, 0), (2, 1)]


@pytest.mark.slow
def test_no_byte_of_a_file_can_change_unnoticed(tmp_path: Path) -> None:
    store = base_store(tmp_path)
    ACTIONS["prepare"](tmp_path)
    path = tmp_path / "prepared" / KEY.directory_name / "00000001.safetensors"
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for place in (*range(0, 8 + 600, 7), *range(start, len(content))):
        spoiled = bytearray(content)
        spoiled[place] ^= 0x21
        path.write_bytes(bytes(spoiled))
        num_found = len(found(store))  # which compares what they hold
        assert num_found == 3 if place >= start else num_found in (2, 4)  # a space may become something else


def test_rows_that_nobody_has_are_not_there(tmp_path: Path) -> None:
    store = base_store(tmp_path)
    ACTIONS["prepare"](tmp_path)
    fill(store, ok("a", 9))
    with store.snapshot() as snapshot:
        rows = {shard: of_shard.tolist() for shard, of_shard in snapshot.rows_by_shard().items()}
        assert rows == {1: [1], 2: [0, 1], 3: [0]}
        (entry,) = snapshot.prepared_sets()
        assert (entry.num_prepared, entry.num_distinct) == (3, 4)
        reader = snapshot.open_prepared(KEY)
        assert reader is not None
        assert reader.read([(3, 0), (1, 1)]).is_there.tolist() == [False, True]
        assert reader.row_bytes == 4 * 3 + 3
