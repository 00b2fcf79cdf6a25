"""The SQLite catalog: which videos, shards and index generations are real. Its COMMIT is the one commit point.

Only this file, catalog_schema.py and catalog_upkeep.py know SQL. Values always travel as parameters.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from index_store.catalog_schema import SCHEMA_VERSION, create_tables, migrate, schema_version
from index_store.catalog_upkeep import CatalogUpkeep
from index_store.errors import DamageError, NoSpaceError, NotWritableError, StoreError
from index_store.layout import FORMAT_VERSION, Layout, generation_name
from index_store.records import VideoFile, VideoOutcome, VideoRecord, VideoStatus

_VIDEO_COLUMNS = (
    "id, key, path, size_bytes, mtime_ns, inode, content_hash, duration_seconds, decoder, decoder_note, "
    "status, reason_code, reason_detail, attempts, shard, row, checksum"
)
_COMMIT_NUMBER = "(SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'commit_number')"
_ROWS_AT_ONCE = 64
"""Few enough for a processor's cache: with 1024, comparing a million files took 6 % longer."""
_IDS_PER_QUERY = 500
"""SQLite takes at least 999 parameters in one statement."""
_FULL_DISK_BYTES = 1 << 20
"""SQLite says "disk I/O error" when its -shm file does not fit; with less than this free, that is why."""
_BUSY_TIMEOUT_SECONDS = 10.0
"""Our own lock keeps writers apart; this is for a recovery or a checkpoint, both short."""


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    """Where one dataset of a shard lies: row i is ``row_bytes`` bytes at ``offset + i * row_bytes``."""

    name: str
    dtype: str
    """numpy's short form with byte order: ``<f2``, ``|i1``, ``|b1``, ``<f4``, ``<f8``."""
    shape: tuple[int, ...]
    """All dimensions; the first is the shard's number of rows."""
    offset: int
    row_bytes: int


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One feature file."""

    id: int
    name: str
    num_rows: int
    size_bytes: int
    fingerprint: str
    sha256: str
    datasets: tuple[DatasetRecord, ...]


@dataclass(frozen=True, slots=True)
class IndexManifestFields:
    """What an index builder tells the catalog about what it built."""

    num_vectors: int
    factory: str
    fingerprint: str
    commit_number: int
    """The commit whose videos the index holds."""


@dataclass(frozen=True, slots=True)
class GenerationRecord:
    """One published index generation."""

    id: int
    name: str
    path: Path
    num_vectors: int
    factory: str
    fingerprint: str
    commit_number: int


@dataclass(frozen=True, slots=True)
class RowLocation:
    """Where the features of a video lie."""

    shard: int
    row: int


FileRow = tuple[str | bytes, int, int, int]
"""(path, size_bytes, mtime_ns, inode); a path of bytes is one that is not UTF-8; the inode is signed."""


class Catalog(CatalogUpkeep):
    """An open catalog. Not for two threads at once."""

    def __init__(
        self, layout: Layout, connection: sqlite3.Connection, before_change: Callable[[], None] = lambda: None
    ) -> None:
        self._layout = layout
        self._connection = connection
        self._before_change = before_change
        self._schema = schema_version(connection)

    @classmethod
    def create(cls, layout: Layout, fingerprint: str) -> None:
        """Make an empty catalog where there is none."""
        with _translated(layout), contextlib.closing(_connect(layout, "mode=rwc")) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            create_tables(connection)
            meta = {"format_version": str(FORMAT_VERSION), "fingerprint": fingerprint, "commit_number": "0"}
            connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            connection.execute("COMMIT")

    @classmethod
    def open_for_writing(
        cls, layout: Layout, fingerprint: str, before_change: Callable[[], None] = lambda: None
    ) -> Catalog:
        """Open for the holder of the writer lock; an older schema becomes this one's first.

        ``before_change`` is called before anything may change in the catalog's files: before every transaction, and at
        once where there is a log, which SQLite may move into the database when it closes.
        Raises DamageError where it is not this store's catalog, StoreError for a newer schema.
        """
        if _has_log(layout):
            before_change()
        with _translated(layout):
            connection = _connect(layout, "mode=rw")
            with _closed_on_failure(connection):
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA foreign_keys = ON")
                return cls(layout, connection, before_change)._checked(fingerprint)._migrated()

    @classmethod
    def open_snapshot(cls, layout: Layout, fingerprint: str) -> Catalog:
        """Open for reading, as of now: later commits stay invisible. Works on a read-only file system.

        Raises DamageError where it is not this store's catalog, StoreError for a newer schema.
        """
        with _translated(layout):
            connection = _connect_pinned(layout)
            with _closed_on_failure(connection):
                return cls(layout, connection)._checked(fingerprint)

    def close(self) -> None:
        """Close; an open transaction is rolled back."""
        self._connection.close()

    def _checked(self, fingerprint: str) -> Catalog:
        if self._schema > SCHEMA_VERSION:
            raise StoreError(
                f"{self._layout.catalog_path} has schema {self._schema}, this tbpipe knows {SCHEMA_VERSION}: a newer "
                "one wrote it; install that version (pip install --upgrade tbpipe)"
            )
        found = self._meta("fingerprint")
        if found != fingerprint:
            raise DamageError(
                f"{self._layout.catalog_path} has fingerprint {found}, {self._layout.settings_path.name} has "
                f"{fingerprint}: they belong to two stores; put back the file that was replaced"
            )
        return self

    def _migrated(self) -> Catalog:
        if self._schema < SCHEMA_VERSION:
            with self.transaction():
                migrate(self._connection)
            self._schema = SCHEMA_VERSION
        return self

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def commit_number(self) -> int:
        """How many commits there were; an index of the same number holds the same videos."""
        return int(self._meta("commit_number"))

    def counts(self) -> dict[VideoStatus, int]:
        """Videos in every status."""
        found = dict(self._rows("SELECT status, COUNT(*) FROM videos GROUP BY status"))
        return {status: found.get(status, 0) for status in get_args(VideoStatus)}

    def videos(self, statuses: Sequence[VideoStatus]) -> Iterator[VideoRecord]:
        """Videos in these states, by id."""
        # "+status" keeps SQLite on the table's own order: sorting a part of 10^8 rows would cost a temporary table
        sql = f"SELECT {_VIDEO_COLUMNS} FROM videos WHERE +status IN ({_marks(statuses)}) ORDER BY id"
        return map(_video_record, self._rows(sql, statuses))

    def quarantined_for(self, reason_code: str) -> Iterator[VideoRecord]:
        """Videos that are quarantined for this reason, by id."""
        condition = "status = 'quarantined' AND reason_code = ?"
        return map(_video_record, self._rows(f"SELECT {_VIDEO_COLUMNS} FROM videos WHERE {condition}", (reason_code,)))

    def by_key(self, key: str) -> VideoRecord | None:
        """The video that users call ``key``."""
        return self._video("key = ?", key)

    def by_path(self, path: Path) -> VideoRecord | None:
        """The first video that was last seen at ``path``."""
        return self._video("path = ?", _stored_path(path))

    def files(self) -> Iterator[FileRow]:
        """Where the files of all videos but the removed ones were, by path; those with odd names come last.

        Made for 10^6 of them: one at a time, without a step in Python for each.
        """
        sql = "SELECT path, size_bytes, mtime_ns, inode FROM videos WHERE status != 'removed' ORDER BY path"

        def blocks() -> Iterator[list[FileRow]]:
            with _translated(self._layout):
                cursor = self._connection.execute(sql)
                while block := cursor.fetchmany(_ROWS_AT_ONCE):
                    yield block

        return itertools.chain.from_iterable(blocks())

    def living_at(self, paths: Sequence[str | bytes]) -> list[int]:
        """The videos, but the removed ones, whose files were last seen at these paths as ``files`` gives them."""
        found: dict[str | bytes, int] = {}
        for start in range(0, len(paths), _IDS_PER_QUERY):
            part = paths[start : start + _IDS_PER_QUERY]
            condition = f"status != 'removed' AND path IN ({_marks(part)})"
            found.update(self._rows(f"SELECT path, id FROM videos WHERE {condition} ORDER BY id DESC", part))
        return [found[path] for path in paths]

    def by_content(self, content_hash: str) -> VideoRecord | None:
        """The first video that has features and this content."""
        return self._video("content_hash = ? AND shard IS NOT NULL", content_hash)

    def by_ids(self, ids: Sequence[int]) -> list[VideoRecord]:
        """The videos with these ids, in this order. Raises StoreError for an id that was never given."""
        found: dict[int, VideoRecord] = {}
        for part in _parts(ids):
            rows = self._rows(f"SELECT {_VIDEO_COLUMNS} FROM videos WHERE id IN ({_marks(part)})", part)
            found.update((record.id, record) for record in map(_video_record, rows))
        missing = [video_id for video_id in ids if video_id not in found]
        if missing:
            found_where = f"{self._layout.directory} has no video with id {missing[0]}"
            raise StoreError(f"{found_where} ({len(missing)} of {len(ids)} ids are unknown); use the ids of this store")
        return [found[video_id] for video_id in ids]

    def names(self, ids: Sequence[int]) -> Iterator[tuple[int, str, bool]]:
        """(id, key, whether it has features) of these videos, in any order: less than ``by_ids`` for a great many."""
        for part in _parts(ids):
            sql = f"SELECT id, key, shard IS NOT NULL FROM videos WHERE id IN ({_marks(part)})"
            for video_id, key, known in self._all(sql, part):
                yield video_id, key, bool(known)

    def locations(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """(shard, row) of these videos, in this order. Raises StoreError for a video without features."""
        found: dict[int, tuple[int, int]] = {}
        for part in _parts(ids):
            sql = f"SELECT id, shard, row FROM videos WHERE shard IS NOT NULL AND id IN ({_marks(part)})"
            found.update({video_id: (shard, row) for video_id, shard, row in self._all(sql, part)})
        try:
            return [found[video_id] for video_id in ids]
        except KeyError as error:
            (record,) = self.by_ids([error.args[0]])
            raise StoreError(f"video {record.key!r} (id {record.id}) has no features: it is {record.status}") from None

    def searchable_locations(self) -> Iterator[tuple[int, int, int]]:
        """(id, shard, row) of every video that has features, by id."""
        return self._rows("SELECT id, shard, row FROM videos WHERE shard IS NOT NULL ORDER BY id")

    def changed_since(self, commit_number: int) -> Iterator[tuple[int, bool]]:
        """(id, whether it has features) of every video that a later commit gave, changed or took features, by id.

        Failed again counts as well. In a catalog that no writer has migrated yet, any video may have changed with any
        commit.
        """
        changed = "changed_at > ?" if self._schema >= 2 else f"{_COMMIT_NUMBER} > ?"
        found = self._rows(f"SELECT id, shard IS NOT NULL FROM videos WHERE {changed} ORDER BY id", (commit_number,))
        return ((video_id, bool(has_features)) for video_id, has_features in found)

    def hashes_of_size(self, size_bytes: int) -> list[str]:
        """Distinct content hashes of the videos that have features and this file size, sorted."""
        sql = "SELECT DISTINCT content_hash FROM videos WHERE size_bytes = ? AND shard IS NOT NULL"
        return sorted(row[0] for row in self._rows(sql, (size_bytes,)))

    def shard(self, shard_id: int) -> ShardRecord:
        """One shard. Raises DamageError when it is not there although a video says so."""
        record = self.find_shard(shard_id)
        if record is not None:
            return record
        raise DamageError(f"{self._layout.catalog_path} lacks shard {shard_id} of its videos; restore it from a copy")

    def find_shard(self, shard_id: int) -> ShardRecord | None:
        """One shard; None where there is none of this id."""
        return next(iter(self._shards("WHERE id = ?", (shard_id,))), None)

    def shards(self) -> list[ShardRecord]:
        """Every shard, by id."""
        return list(self._shards("", ()))

    def file_names(self) -> set[str]:
        """Names of all shards and index generations that are real."""
        return {row[0] for row in self._rows("SELECT name FROM shards UNION ALL SELECT name FROM generations")}

    def generations(self) -> list[GenerationRecord]:
        """Every index generation that is kept, oldest first."""
        sql = "SELECT id, name, num_vectors, factory, fingerprint, commit_number FROM generations ORDER BY id"
        return [
            GenerationRecord(row[0], row[1], self._layout.generation_path(row[1]), *row[2:]) for row in self._rows(sql)
        ]

    def next_shard_id(self) -> int:
        """The id that the next shard gets; ids of removed shards are not given again."""
        return self._next_id("shards")

    def next_generation_id(self) -> int:
        """The id that the next index generation gets."""
        return self._next_id("generations")

    # -- writing: only inside a transaction ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything in the block becomes real at its end, or nothing does."""
        self._before_change()
        with _translated(self._layout):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def settle(self) -> bool:
        """Empty the write-ahead log after a COMMIT that failed; False when readers or the disk do not let us.

        Until then a commit that failed while syncing could come back from the log after a power cut.
        """
        try:
            busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error:
            return False
        return not busy

    def count_commit(self) -> None:
        """Give the store its next commit number, which the changes that follow in this transaction belong to."""
        self._execute("UPDATE meta SET value = ? WHERE name = 'commit_number'", (str(self.commit_number + 1),))

    def add_shard(self, shard: ShardRecord) -> None:
        """Make a shard known."""
        self._execute(
            "INSERT INTO shards VALUES (?, ?, ?, ?, ?, ?)",
            (shard.id, shard.name, shard.num_rows, shard.size_bytes, shard.fingerprint, shard.sha256),
        )
        for dataset in shard.datasets:
            shape = json.dumps(dataset.shape)
            self._execute(
                "INSERT INTO datasets VALUES (?, ?, ?, ?, ?, ?)",
                (shard.id, dataset.name, dataset.dtype, shape, dataset.offset, dataset.row_bytes),
            )

    def put_video(self, outcome: VideoOutcome, location: RowLocation | None, checksum: str) -> None:
        """Insert the row of ``outcome.file.key``, or replace all of it but its id: changed with the current commit."""
        known = self._first("SELECT id, attempts FROM videos WHERE key = ?", (outcome.file.key,))
        attempts = (known[1] if known else 0) + 1 if outcome.status == "quarantined" else 0
        shard, row = (location.shard, location.row) if location else (None, None)
        values = (
            *_file_values(outcome.file),
            outcome.content_hash,
            outcome.duration_seconds,
            outcome.decoder,
            outcome.decoder_note,
            outcome.status,
            outcome.reason_code,
            outcome.reason_detail,
            attempts,
            shard,
            row,
            checksum,
        )
        # Not an UPSERT: that would use up an id of the AUTOINCREMENT sequence for a row that exists
        if known:
            names = ", ".join(f"{name} = ?" for name in _VIDEO_COLUMNS.split(", ")[1:])
            self._execute(f"UPDATE videos SET {names}, changed_at = {_COMMIT_NUMBER} WHERE id = ?", (*values, known[0]))
        else:
            self._execute(
                f"INSERT INTO videos ({_VIDEO_COLUMNS}, changed_at) VALUES (NULL, {_marks(values)}, {_COMMIT_NUMBER})",
                values,
            )

    def touch(self, record: VideoRecord) -> None:
        """Note where the file of a video is now; its content is unchanged. Raises StoreError for an unknown id."""
        values = (_stored_path(record.path), record.size_bytes, record.mtime_ns, _signed(record.inode), record.id)
        if not self._execute(
            "UPDATE videos SET path = ?, size_bytes = ?, mtime_ns = ?, inode = ? WHERE id = ?", values
        ):
            raise StoreError(f"{self._layout.directory} has no video with id {record.id}; nothing was changed")

    def remove(self, video_id: int) -> int:
        """Make a video a tombstone: its key and what was known of its file stay, its features go. 0 if it was one."""
        return self._execute(
            "UPDATE videos SET status = 'removed', reason_code = '', reason_detail = '', attempts = 0, shard = NULL, "
            f"row = NULL, checksum = '', changed_at = {_COMMIT_NUMBER} WHERE id = ? AND status != 'removed'",
            (video_id,),
        )

    def requeue(self, keys: Sequence[str] | None) -> int:
        """Forget what quarantined files looked like, so that the next scan takes them for new; returns how many."""
        forgotten = "size_bytes = -1, mtime_ns = -1, inode = 0, content_hash = ''"
        forget = f"UPDATE videos SET {forgotten} WHERE status = 'quarantined'"
        if keys is None:
            return self._execute(forget, ())
        return sum(self._execute(f"{forget} AND key = ?", (key,)) for key in dict.fromkeys(keys))

    def add_generation(self, generation_id: int, fields: IndexManifestFields) -> None:
        """Make an index generation known."""
        name = generation_name(generation_id)
        values = (generation_id, name, fields.num_vectors, fields.factory, fields.fingerprint, fields.commit_number)
        self._execute("INSERT INTO generations VALUES (?, ?, ?, ?, ?, ?)", values)

    # -- one place for every statement --------------------------------------------------------------------------------

    def _execute(self, sql: str, values: Sequence[object]) -> int:
        with _translated(self._layout):
            return self._connection.execute(sql, tuple(values)).rowcount

    def _rows(self, sql: str, values: Sequence[object] = ()) -> Iterator[Any]:
        with _translated(self._layout):
            for row in self._connection.execute(sql, tuple(values)):  # noqa: UP028
                yield row  # "yield from" would close the cursor of a generator that is dropped after its connection

    def _all(self, sql: str, values: Sequence[object]) -> list[Any]:
        """The rows together, where they are few: for less time than one by one."""
        with _translated(self._layout):
            return self._connection.execute(sql, tuple(values)).fetchall()

    def _has_table(self, name: str) -> bool:
        return self._first("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,)) is not None

    def _first(self, sql: str, values: Sequence[object]) -> Any:
        with _translated(self._layout):
            return self._connection.execute(sql, tuple(values)).fetchone()

    def _video(self, condition: str, value: object) -> VideoRecord | None:
        row = self._first(f"SELECT {_VIDEO_COLUMNS} FROM videos WHERE {condition} ORDER BY id LIMIT 1", (value,))
        return _video_record(row) if row else None

    def _shards(self, condition: str, values: Sequence[object]) -> Iterator[ShardRecord]:
        sql = f"SELECT id, name, num_rows, size_bytes, fingerprint, sha256 FROM shards {condition} ORDER BY id"
        for row in self._rows(sql, values):
            shard_id, name, num_rows, size_bytes, fingerprint, sha256 = row
            datasets = self._datasets(shard_id)
            yield ShardRecord(shard_id, name, num_rows, size_bytes, fingerprint, sha256, datasets)

    def _datasets(self, shard_id: int) -> tuple[DatasetRecord, ...]:
        sql = "SELECT name, dtype, shape_json, offset, row_bytes FROM datasets WHERE shard = ? ORDER BY offset"
        return tuple(
            DatasetRecord(name, dtype, tuple(json.loads(shape)), offset, row_bytes)
            for name, dtype, shape, offset, row_bytes in self._rows(sql, (shard_id,))
        )

    def _meta(self, name: str) -> str:
        row = self._first("SELECT value FROM meta WHERE name = ?", (name,))
        if row is None:
            raise DamageError(f"{self._layout.catalog_path} lacks its {name}; restore the catalog from a copy")
        return cast(str, row[0])

    def _next_id(self, table: str) -> int:
        row = self._first("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,))
        return 1 + (row[0] if row else 0)


def _connect(layout: Layout, options: str) -> sqlite3.Connection:
    if not layout.catalog_path.is_file() and options != "mode=rwc":
        raise DamageError(f"{layout.catalog_path} is missing; restore it from a copy, or extract into a new directory")
    return sqlite3.connect(
        f"{layout.catalog_path.absolute().as_uri()}?{options}",
        uri=True,
        timeout=_BUSY_TIMEOUT_SECONDS,
        isolation_level=None,
        check_same_thread=False,  # a snapshot is often used by one prefetching thread that did not open it
    )


def _connect_pinned(layout: Layout) -> sqlite3.Connection:
    """A connection inside a read transaction."""
    try:
        return _pin(_connect(layout, "mode=ro"))
    except sqlite3.OperationalError as error:
        # SQLite must make a -shm file beside a WAL database, and on a full or read-only disk it cannot. Without a log
        # nobody is writing and the main file is the whole catalog; with one, the main file would silently miss commits.
        if "locked" in str(error) or _has_log(layout):
            raise
        return _pin(_connect(layout, "mode=ro&immutable=1"))


def _has_log(layout: Layout) -> bool:
    """Whether the write-ahead log holds something."""
    log_path, _ = layout.catalog_journal_paths
    return log_path.exists() and log_path.stat().st_size > 0


def _pin(connection: sqlite3.Connection) -> sqlite3.Connection:
    with _closed_on_failure(connection):
        connection.execute("BEGIN")
        connection.execute("SELECT 1 FROM meta").fetchone()  # only a read starts the snapshot
        return connection


@contextlib.contextmanager
def _closed_on_failure(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise


@contextlib.contextmanager
def _translated(layout: Layout) -> Iterator[None]:
    """SQLite's errors as the store's; those that only a bug can cause pass."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise
    except sqlite3.DatabaseError as error:
        raise _store_error(str(error), layout.catalog_path) from error


def _store_error(found: str, path: Path) -> StoreError:
    if "full" in found or ("disk I/O" in found and shutil.disk_usage(path.parent).free < _FULL_DISK_BYTES):
        return NoSpaceError(
            f"no space left while writing {path}; nothing half-written was kept: free some and run again"
        )
    if "readonly" in found:
        return NotWritableError(f"cannot write {path} ({found}); check its permissions and its mount, then run again")
    if "malformed" in found or "not a database" in found or "no such" in found:
        return DamageError(f"{path} is damaged ({found}); restore it from a copy, or extract into a new directory")
    if "unable to open" in found:
        return StoreError(f"cannot open {path} ({found}); let tbpipe write there once, so that its journal can be read")
    if "locked" in found:
        return StoreError(f"{path} is locked by a program other than tbpipe; close that program and run again")
    return StoreError(f"cannot use {path} ({found}); check the disk it lies on, then run again")


def _video_record(row: Sequence[Any]) -> VideoRecord:
    video_id, key, path, size_bytes, mtime_ns, inode, *rest = row
    return VideoRecord(video_id, key, Path(os.fsdecode(path)), size_bytes, mtime_ns, inode % 2**64, *rest)


def _file_values(file: VideoFile) -> tuple[object, ...]:
    return (file.key, _stored_path(file.path), file.size_bytes, file.mtime_ns, _signed(file.inode))


def _stored_path(path: Path) -> str | bytes:
    """TEXT, or a BLOB of the raw bytes where the name is not UTF-8 (Linux allows any bytes)."""
    raw = os.fsencode(path)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw


def _signed(inode: int) -> int:
    """SQLite's integers are signed; some network file systems use all 64 bits."""
    return inode - 2**64 if inode >= 2**63 else inode


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def _parts(ids: Sequence[int]) -> Iterator[list[int]]:
    for start in range(0, len(ids), _IDS_PER_QUERY):
        yield [int(video_id) for video_id in ids[start : start + _IDS_PER_QUERY]]  # sqlite3 takes no numpy integers
