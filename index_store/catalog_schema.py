"""The tables of the catalog, and how those of an older tbpipe become them.

schema  user_version  what is new
1       0
2       2             videos.changed_at: the commit that last changed what features a video has;
                      retired: files that readers of older commits may still open;
                      videos_by_path: all that a scan is compared with, so that it need not look into the table
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

SCHEMA_VERSION = 2
"""Written as ``PRAGMA user_version``. Not part of the fingerprint: features and indexes stay as they are."""

_TABLES = """
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
    changed_at INTEGER NOT NULL DEFAULT 0,
    CHECK ((status IN ('ok', 'partial')) = (shard IS NOT NULL)),
    CHECK ((shard IS NULL) = (row IS NULL))
);
CREATE INDEX videos_by_path ON videos (path, status, size_bytes, mtime_ns, inode);
CREATE INDEX videos_by_status ON videos (status);
CREATE INDEX videos_by_content ON videos (content_hash) WHERE shard IS NOT NULL;
CREATE INDEX videos_by_size ON videos (size_bytes) WHERE shard IS NOT NULL;
CREATE INDEX videos_by_change ON videos (changed_at);
CREATE TABLE generations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    num_vectors INTEGER NOT NULL,
    factory TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    commit_number INTEGER NOT NULL
);
"""
_RETIRED = "CREATE TABLE retired (name TEXT PRIMARY KEY, commit_number INTEGER NOT NULL) WITHOUT ROWID"

_ADD_CHANGED_AT = (
    "ALTER TABLE videos ADD COLUMN changed_at INTEGER NOT NULL DEFAULT 0",
    # When a video changed was not written down. The last commit at the latest: an older index is not trusted then.
    "UPDATE videos SET changed_at = (SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'commit_number')",
    "CREATE INDEX videos_by_change ON videos (changed_at)",
    "DROP INDEX videos_by_path",
    "CREATE INDEX videos_by_path ON videos (path, status, size_bytes, mtime_ns, inode)",
)


def schema_version(connection: sqlite3.Connection) -> int:
    """The schema of a catalog; the first one did not write its number."""
    return max(1, int(connection.execute("PRAGMA user_version").fetchone()[0]))


def create_tables(connection: sqlite3.Connection) -> None:
    """Make empty tables, inside the caller's transaction."""
    _run(connection, [*_TABLES.split(";\n"), _RETIRED])


def migrate(connection: sqlite3.Connection) -> None:
    """Make the tables of schema 1 those of SCHEMA_VERSION, inside the caller's transaction."""
    _run(connection, [*_ADD_CHANGED_AT, _RETIRED])


def _run(connection: sqlite3.Connection, statements: Sequence[str]) -> None:
    for statement in statements:
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")  # a PRAGMA takes no parameter
