"""A catalog that an older tbpipe made is read as it is and migrated by the next writer; a newer one is refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from index_store.errors import StoreError
from index_store.store import Store
from tests.index_store.samples import SETTINGS, bad, copy_of, fill, ok, state

SCHEMA_1 = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE shards (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    num_rows INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    fingerprint TEXT NOT NULL,
    sha256 TEXT NOT NULL
);
CREATE TABLE datasets (
    shard INTEGER NOT NULL REFERENCES shards (id),
    name TEXT NOT NULL,
    dtype TEXT NOT NULL,
    shape_json TEXT NOT NULL,
    offset INTEGER NOT NULL,
    row_bytes INTEGER NOT NULL,
    PRIMARY KEY (shard, name)
) WITHOUT ROWID;
CREATE TABLE videos (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    path NOT NULL,
    size_bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    content_hash TEXT NOT NULL,
    duration_seconds REAL NOT NULL,
    decoder TEXT NOT NULL,
    decoder_note TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('ok', 'partial', 'quarantined', 'removed')),
    reason_code TEXT NOT NULL,
    reason_detail TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    shard INTEGER REFERENCES shards (id),
    row INTEGER,
    checksum TEXT NOT NULL,
    CHECK ((status IN ('ok', 'partial')) = (shard IS NOT NULL)),
    CHECK ((shard IS NULL) = (row IS NULL))
);
CREATE INDEX videos_by_path ON videos (path);
CREATE INDEX videos_by_status ON videos (status);
CREATE INDEX videos_by_content ON videos (content_hash) WHERE shard IS NOT NULL;
CREATE INDEX videos_by_size ON videos (size_bytes) WHERE shard IS NOT NULL;
CREATE TABLE generations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    num_vectors INTEGER NOT NULL,
    factory TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    commit_number INTEGER NOT NULL
);
"""
"""As it was; never changed."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Commits: 1 gives a and b, 2 gives c, a copy of b and bad d."""
    store = Store.create(tmp_path / "store", SETTINGS)
    fill(store, ok("a", 1), ok("b", 2))
    fill(store, ok("c", 3), copy_of("d", 2), bad("e"))
    return store


def rewritten(store: Store) -> None:
    """Put the store's rows into a catalog of schema 1."""
    path = store.directory / "catalog.sqlite"
    old = sqlite3.connect(path.with_name("old.sqlite"))
    old.executescript(SCHEMA_1)
    old.execute("ATTACH ? AS new", (str(path),))
    for table in ("meta", "shards", "datasets", "videos", "generations", "sqlite_sequence"):
        names = ", ".join(row[1] for row in old.execute("SELECT * FROM pragma_table_info(?)", (table,)))
        old.execute(f"INSERT INTO main.{table} ({names}) SELECT {names} FROM new.{table}")
    old.commit()
    old.execute("DETACH new")
    old.execute("PRAGMA journal_mode = WAL")
    old.close()
    path.with_name("old.sqlite").replace(path)
    path.with_name("catalog.seal").unlink()  # an older tbpipe made none


def changed(store: Store, commit_number: int) -> list[tuple[int, bool]]:
    with store.snapshot() as snapshot:
        return list(snapshot.changed_since(commit_number))


def test_what_changed_is_known_by_commit(store: Store) -> None:
    assert changed(store, 0) == [(1, True), (2, True), (3, True), (4, True), (5, False)]
    assert changed(store, 1) == [(3, True), (4, True), (5, False)]
    assert changed(store, 2) == []
    fill(store, bad("b", "removed"), ok("e", 5))
    assert changed(store, 2) == [(2, False), (5, True)]
    fill(store, ok("a", 6))
    assert changed(store, 2) == [(1, True), (2, False), (5, True)]
    assert changed(store, 3) == [(1, True)]


def test_moving_a_file_changes_no_features(store: Store) -> None:
    with store.snapshot() as snapshot, store.writer() as writer:
        writer.touch(snapshot.videos())
        writer.requeue(None)
    assert changed(store, 2) == []


def test_an_older_catalog_is_read_then_migrated_then_read(store: Store) -> None:
    with store.snapshot() as snapshot:
        before = state(snapshot)
    rewritten(store)
    every = [(1, True), (2, True), (3, True), (4, True), (5, False)]
    assert (changed(store, 0), changed(store, 1), changed(store, 2)) == (every, every, [])
    with store.snapshot() as reader:
        with store.writer():
            pass
        assert list(reader.changed_since(1)) == every  # the old tables, as of its commit
    assert (changed(store, 0), changed(store, 1), changed(store, 2)) == (every, every, [])
    fill(store, ok("c", 7))
    assert changed(store, 2) == [(3, True)]
    with store.snapshot() as snapshot:
        after = state(snapshot)
    assert {key: after[key] for key in "abde"} == {key: before[key] for key in "abde"}
    with Store.open(store.directory).writer():
        pass  # it is migrated once


def test_migrated_tables_are_those_of_a_new_catalog(store: Store, tmp_path: Path) -> None:
    rewritten(store)
    with store.writer():
        pass
    found = []
    for directory in (store.directory, Store.create(tmp_path / "new", SETTINGS).directory):
        connection = sqlite3.connect(directory / "catalog.sqlite")
        columns = sorted(
            connection.execute("SELECT name, type, \"notnull\", dflt_value FROM pragma_table_info('videos')")
        )
        indexes = sorted(
            connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql NOT NULL")
        )
        found.append((columns, indexes, connection.execute("PRAGMA user_version").fetchone()))
        connection.close()
    assert found[0] == found[1]


def test_a_newer_catalog_is_refused(store: Store) -> None:
    connection = sqlite3.connect(store.directory / "catalog.sqlite")
    connection.execute("PRAGMA user_version = 3")
    connection.close()
    for opened in (store.writer, store.snapshot):
        with pytest.raises(StoreError, match=r"has schema 3, this tbpipe knows 2.* install"), opened():
            pass
