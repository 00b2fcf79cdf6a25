from __future__ import annotations

import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from index_store.errors import DamageError, StoreError
from index_store.layout import Layout
from index_store.seal import (
    BLOCK_BYTES,
    break_seal,
    check_seal,
    describe_damage,
    remove_seal,
    restore_catalog,
    write_seal,
)


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A catalog of 9 blocks, the last one short, and a log of 2, in three groups."""
    monkeypatch.setattr("index_store.seal._GROUP_BLOCKS", 4)
    layout = Layout(tmp_path)
    rng = random.Random(0)
    layout.catalog_path.write_bytes(rng.randbytes(8 * BLOCK_BYTES + 1000))
    layout.catalog_journal_paths[0].write_bytes(rng.randbytes(BLOCK_BYTES + 1))
    write_seal(layout)
    return layout


def flip(path: Path, place: int) -> None:
    """Change one byte."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 0x40]))


def contents(layout: Layout) -> list[bytes]:
    return [layout.catalog_path.read_bytes(), layout.catalog_journal_paths[0].read_bytes()]


def test_what_was_sealed_is_whole(layout: Layout) -> None:
    report = check_seal(layout)
    assert report.is_whole
    assert report.faults == []
    assert report.seal is not None
    assert len(report.seal.parity_checksums) == 3
    assert layout.seal_path.stat().st_size < 4 * BLOCK_BYTES
    assert sorted(path.name for path in layout.directory.iterdir()) == [
        "catalog.seal",
        "catalog.sqlite",
        "catalog.sqlite-wal",
    ]


@pytest.mark.parametrize("place", [0, 3, BLOCK_BYTES - 1, 5 * BLOCK_BYTES + 5, 8 * BLOCK_BYTES + 999])
def test_a_flipped_byte_of_the_catalog_is_named_and_put_back(layout: Layout, place: int) -> None:
    right = contents(layout)
    flip(layout.catalog_path, place)
    report = check_seal(layout)
    assert not report.is_whole
    (found,) = describe_damage(layout, report)
    assert f"catalog.sqlite: byte {place} in block {place // BLOCK_BYTES} (bytes" in found
    with pytest.raises(DamageError, match="tbpipe repair"):
        break_seal(layout)
    assert layout.seal_path.exists()
    restore_catalog(layout, report)
    assert contents(layout) == right
    assert check_seal(layout).is_whole


def test_a_flipped_byte_of_the_log_is_named_and_put_back(layout: Layout) -> None:
    right = contents(layout)
    flip(layout.catalog_journal_paths[0], BLOCK_BYTES)
    report = check_seal(layout)
    assert f"catalog.sqlite-wal: byte {BLOCK_BYTES} in block 1" in describe_damage(layout, report)[0]
    restore_catalog(layout, report)
    assert contents(layout) == right


def test_a_damaged_stretch_takes_one_block_of_each_group(layout: Layout) -> None:
    right = contents(layout)
    with layout.catalog_path.open("r+b") as file:
        file.seek(2 * BLOCK_BYTES + 3)
        file.write(bytes(2 * BLOCK_BYTES))
    report = check_seal(layout)
    assert len(report.damaged) == 3
    restore_catalog(layout, report)
    assert contents(layout) == right


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES, BLOCK_BYTES + 2])
def test_a_log_of_another_length_is_put_back(layout: Layout, size: int) -> None:
    right = contents(layout)
    os.truncate(layout.catalog_journal_paths[0], size)
    report = check_seal(layout)
    assert f"has {size} bytes, {BLOCK_BYTES + 1} were sealed" in describe_damage(layout, report)[0]
    restore_catalog(layout, report)
    assert contents(layout) == right


def test_two_lost_blocks_of_a_group_cannot_be_put_back_and_nothing_is_changed(layout: Layout) -> None:
    flip(layout.catalog_path, 5)
    flip(layout.catalog_path, 3 * BLOCK_BYTES + 5)  # 3 groups: blocks 0 and 3 are of one
    flip(layout.catalog_path, 4 * BLOCK_BYTES)
    wrong = contents(layout)
    report = check_seal(layout)
    with pytest.raises(DamageError, match=r"block 0 .* cannot be restored.*\(2 such blocks\).*from a copy"):
        restore_catalog(layout, report)
    assert contents(layout) == wrong


def test_every_byte_of_the_seal_is_guarded_and_no_single_one_is_needed(layout: Layout) -> None:
    size = layout.seal_path.stat().st_size
    rng = random.Random(1)
    for place in [0, 7, 8, 100, size // 2, size - 1, size - 9, *rng.sample(range(size), 20)]:
        flip(layout.seal_path, place)
        report = check_seal(layout)
        assert report.is_whole, place
        assert len(report.faults) == 1, place
        flip(layout.catalog_path, 12345)
        assert [block.start for block in check_seal(layout).damaged] == [0], place
        flip(layout.catalog_path, 12345)
        flip(layout.seal_path, place)
    assert check_seal(layout).faults == []


def test_a_seal_of_which_nothing_is_left_is_damage(layout: Layout) -> None:
    layout.seal_path.write_bytes(b"")
    report = check_seal(layout)
    assert report.is_sealed
    assert not report.is_whole
    with pytest.raises(DamageError, match="header is damaged"):
        break_seal(layout)


def test_no_seal_is_no_damage(layout: Layout) -> None:
    remove_seal(layout)
    assert not check_seal(layout).is_sealed
    break_seal(layout)
    remove_seal(layout)


def test_a_log_that_came_or_went_is_damage(layout: Layout) -> None:
    (log, _), right = layout.catalog_journal_paths, contents(layout)
    log.unlink()
    assert check_seal(layout).wrong_sizes == {log.name: (0, BLOCK_BYTES + 1)}
    write_seal(layout)
    log.write_bytes(right[1])
    report = check_seal(layout)
    assert report.wrong_sizes == {log.name: (BLOCK_BYTES + 1, 0)}
    restore_catalog(layout, report)
    assert not log.exists()


def test_a_seal_of_a_newer_format_is_refused(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index_store.seal.FORMAT", "tbpipe-seal-9")
    with pytest.raises(StoreError, match="has format tbpipe-seal-1, this tbpipe reads tbpipe-seal-9"):
        check_seal(layout)


def test_a_restored_database_answers(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    with sqlite3.connect(layout.catalog_path) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * 1000)
    connection.close()
    write_seal(layout)
    shutil.copy(layout.catalog_path, tmp_path / "copy")
    flip(layout.catalog_path, 20)
    restore_catalog(layout, check_seal(layout))
    assert layout.catalog_path.read_bytes() == (tmp_path / "copy").read_bytes()
