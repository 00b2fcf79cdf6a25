from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from index_store.catalog import Catalog, DatasetRecord, IndexManifestFields, RowLocation, ShardRecord
from index_store.errors import DamageError, NoSpaceError, NotWritableError, StoreError
from index_store.layout import Layout
from index_store.records import VideoFile, VideoOutcome
from tests.index_store.samples import bad, file

FINGERPRINT = "f" * 64
SHARD = ShardRecord(1, "00000001.h5", 9, 4096, FINGERPRINT, "a" * 64, (DatasetRecord("pooled", "<f4", (9, 8), 64, 32),))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    Catalog.create(layout, FINGERPRINT)
    return layout


@pytest.fixture
def catalog(layout: Layout) -> Iterator[Catalog]:
    catalog = Catalog.open_for_writing(layout, FINGERPRINT)
    yield catalog
    catalog.close()


def ok(name: str, content_hash: str = "c") -> VideoOutcome:
    return VideoOutcome(file(name), "ok", content_hash)


def put(catalog: Catalog, *outcomes: VideoOutcome) -> None:
    """Give every searchable outcome the next row of shard 1."""
    with catalog.transaction():
        if not catalog.shards():
            catalog.add_shard(SHARD)
        for row, outcome in enumerate(outcomes):
            catalog.put_video(outcome, RowLocation(1, row) if outcome.status == "ok" else None, "")


def test_a_row_comes_back_as_it_was_written(catalog: Catalog) -> None:
    seen = VideoFile("k/ü 1.mp4", Path("/v/ü 1.mp4"), 12, -5, 99)
    outcome = VideoOutcome(seen, "ok", "c", 1.5, "decord 0.6", "note", "", "", None, "")
    with catalog.transaction():
        catalog.add_shard(SHARD)
        catalog.put_video(outcome, RowLocation(1, 7), "abc")
    record = catalog.by_key("k/ü 1.mp4")
    assert record is not None
    assert (record.id, record.key, record.path, record.size_bytes, record.mtime_ns, record.inode) == (
        1, "k/ü 1.mp4", Path("/v/ü 1.mp4"), 12, -5, 99,
    )  # fmt: skip
    assert (record.content_hash, record.duration_seconds, record.decoder, record.decoder_note) == (
        "c", 1.5, "decord 0.6", "note",
    )  # fmt: skip
    assert (record.status, record.attempts, record.shard, record.row, record.checksum) == ("ok", 0, 1, 7, "abc")
    assert catalog.shards() == [SHARD]
    assert catalog.shard(1) == SHARD


def test_any_file_name_and_any_inode_survive(catalog: Catalog) -> None:
    raw = Path(os.fsdecode(b"/v/\xff\xfe.mp4"))
    for number, inode in enumerate((0, 2**63 - 1, 2**63, 2**64 - 1)):
        put(catalog, VideoOutcome(VideoFile(f"k{number}", raw, 1, 1, inode), "quarantined"))
        record = catalog.by_key(f"k{number}")
        assert record is not None
        assert (record.path, record.inode) == (raw, inode)
    first = catalog.by_path(raw)
    assert first is not None
    assert first.key == "k0"


def test_the_same_key_keeps_its_id_and_a_new_key_gets_a_new_one(catalog: Catalog) -> None:
    put(catalog, bad("a"), bad("b"))
    put(catalog, bad("a"), bad("a"), bad("c"))
    assert [(record.id, record.key) for record in catalog.videos(("quarantined",))] == [(1, "a"), (2, "b"), (3, "c")]


def test_attempts_count_failures_in_a_row(catalog: Catalog) -> None:
    found = []
    for outcome in (bad("a"), bad("a"), ok("a"), bad("a")):
        put(catalog, outcome)
        found.append(catalog.by_ids([1])[0].attempts)
    assert found == [1, 2, 0, 1]


def test_ids_beyond_one_statement_keep_their_order(catalog: Catalog) -> None:
    put(catalog, *[ok(str(number)) for number in range(1200)])
    ids = [(7 * number) % 1200 + 1 for number in range(1200)]
    assert [record.id for record in catalog.by_ids(ids)] == ids
    assert catalog.locations(ids) == [(1, video_id - 1) for video_id in ids]


def test_unknown_ids_and_ids_without_features_are_named(catalog: Catalog) -> None:
    put(catalog, ok("a"), bad("b"))
    with pytest.raises(StoreError, match=r"no video with id 5 \(2 of 3 ids are unknown\)"):
        catalog.by_ids([1, 5, 6])
    with pytest.raises(StoreError, match=r"video 'b' \(id 2\) has no features: it is quarantined"):
        catalog.locations([1, 2])
    with pytest.raises(StoreError, match="no video with id 9"):
        catalog.locations([9])


def test_only_videos_with_features_are_found_by_content_and_size(catalog: Catalog) -> None:
    put(catalog, ok("a", "x"), ok("b", "x"), ok("c", "w"), VideoOutcome(file("d"), "quarantined", "y"))
    assert catalog.hashes_of_size(1001) == ["w", "x"]
    assert catalog.hashes_of_size(7) == []
    found = catalog.by_content("x")
    assert found is not None
    assert found.key == "a"
    assert catalog.by_content("y") is None
    assert list(catalog.searchable_locations()) == [(1, 1, 0), (2, 1, 1), (3, 1, 2)]


def test_a_failed_transaction_changes_nothing(catalog: Catalog) -> None:
    def fail() -> None:
        with catalog.transaction():
            catalog.put_video(bad("a"), None, "")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(catalog.videos(("quarantined",))) == []


def test_the_schema_refuses_a_searchable_video_without_a_row(catalog: Catalog) -> None:
    with pytest.raises(sqlite3.IntegrityError), catalog.transaction():
        catalog.put_video(ok("a"), None, "")
    with pytest.raises(sqlite3.IntegrityError), catalog.transaction():
        catalog.put_video(ok("a"), RowLocation(77, 0), "")


def test_generations_keep_their_numbers(catalog: Catalog) -> None:
    for number in range(1, 5):
        with catalog.transaction():
            assert catalog.next_generation_id() == number
            catalog.add_generation(number, IndexManifestFields(10 * number, "Flat", FINGERPRINT, number))
            catalog.keep_generations(2)
    assert [(record.id, record.name, record.num_vectors) for record in catalog.generations()] == [
        (3, "00000003", 30),
        (4, "00000004", 40),
    ]


@pytest.mark.parametrize(
    ("condition", "index"),
    [
        ("key = 'a' ORDER BY id LIMIT 1", "sqlite_autoindex_videos_1"),
        ("path = 'a' ORDER BY id LIMIT 1", "videos_by_path"),
        ("content_hash = 'a' AND shard IS NOT NULL ORDER BY id LIMIT 1", "videos_by_content"),
        ("size_bytes = 1 AND shard IS NOT NULL", "videos_by_size"),
        ("changed_at > 1", "videos_by_change"),
    ],
)
def test_looking_up_one_video_does_not_read_the_table(layout: Layout, condition: str, index: str) -> None:
    connection = sqlite3.connect(layout.catalog_path)
    plan = connection.execute(f"EXPLAIN QUERY PLAN SELECT * FROM videos WHERE {condition}").fetchall()
    connection.close()
    assert f"USING INDEX {index}" in plan[0][3]
    assert not any("SCAN" in step[3] for step in plan)


def test_what_a_scan_is_compared_with_is_read_from_an_index_alone(layout: Layout) -> None:
    connection = sqlite3.connect(layout.catalog_path)
    statement = "SELECT path, size_bytes, mtime_ns, inode FROM videos WHERE status != 'removed' ORDER BY path"
    ((*_, step),) = connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
    connection.close()
    assert "COVERING INDEX videos_by_path" in step


def test_another_stores_catalog_is_refused(layout: Layout) -> None:
    for opened in (Catalog.open_for_writing, Catalog.open_snapshot):
        with pytest.raises(DamageError, match="they belong to two stores"):
            opened(layout, "e" * 64)


def test_a_missing_or_broken_catalog_is_refused(layout: Layout) -> None:
    layout.catalog_path.write_bytes(b"no database at all" * 100)
    for opened in (Catalog.open_for_writing, Catalog.open_snapshot):
        with pytest.raises(DamageError, match="not a database"):
            opened(layout, FINGERPRINT)
    layout.catalog_path.unlink()
    for opened in (Catalog.open_for_writing, Catalog.open_snapshot):
        with pytest.raises(DamageError, match="is missing; restore it"):
            opened(layout, FINGERPRINT)


def test_a_full_disk_and_a_reader_that_writes_have_their_own_errors(layout: Layout) -> None:
    with Catalog.open_for_writing(layout, FINGERPRINT)._connection as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.close()
    catalog = Catalog.open_for_writing(layout, FINGERPRINT)
    catalog._connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own way to be full
    with pytest.raises(NoSpaceError, match="free some"):
        put(catalog, *[bad(f"{number}" * 50) for number in range(500)])
    assert catalog.counts()["quarantined"] == 0
    catalog.close()
    reader = Catalog.open_snapshot(layout, FINGERPRINT)
    with pytest.raises(NotWritableError, match="readonly"):
        reader.requeue(None)
    reader.close()
