"""What keeping a store asks of its catalog: files no longer named, rows that move or are lost, its own faults.

The statements belong to the catalog; they stand in a file of their own because only verify, repair and compact
use them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

_COMMIT_NUMBER = "(SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'commit_number')"
_FORGET_FILE = "size_bytes = -1, mtime_ns = -1, inode = 0, content_hash = ''"


class RowOwner(NamedTuple):
    """A video that has a row of a shard."""

    id: int
    key: str
    checksum: str


class CatalogUpkeep(ABC):
    """The part of the catalog that verify, repair and compact use. Writing needs a transaction."""

    @abstractmethod
    def _execute(self, sql: str, values: Sequence[object]) -> int:
        """Run a statement; returns how many rows it changed."""

    @abstractmethod
    def _rows(self, sql: str, values: Sequence[object] = ()) -> Iterator[Any]:
        """The rows of a query."""

    @abstractmethod
    def _has_table(self, name: str) -> bool:
        """Whether the catalog has a table; those of an older schema lack some."""

    # -- files that are no longer named -------------------------------------------------------------------------------

    def retire_shard(self, shard_id: int) -> None:
        """Forget a shard that no video refers to; its file stays until nobody can be reading it."""
        self._execute(
            f"INSERT OR REPLACE INTO retired SELECT name, {_COMMIT_NUMBER} FROM shards WHERE id = ?", (shard_id,)
        )
        self._execute("DELETE FROM datasets WHERE shard = ?", (shard_id,))
        self._execute("DELETE FROM shards WHERE id = ?", (shard_id,))

    def retire_generation(self, generation_id: int) -> None:
        """Forget an index generation; its directory stays until nobody can be reading it."""
        self._retire_generations("id = ?", (generation_id,))

    def keep_generations(self, count: int) -> None:
        """Retire all index generations but the newest ``count``."""
        self._retire_generations("id NOT IN (SELECT id FROM generations ORDER BY id DESC LIMIT ?)", (count,))

    def _retire_generations(self, condition: str, values: Sequence[object]) -> None:
        found = f"SELECT name, {_COMMIT_NUMBER} FROM generations WHERE {condition}"
        self._execute(f"INSERT OR REPLACE INTO retired {found}", values)
        self._execute(f"DELETE FROM generations WHERE {condition}", values)

    def retired(self) -> dict[str, int]:
        """Name of each retired file -> the last commit whose readers may open it."""
        if not self._has_table("retired"):
            return {}
        return dict(self._rows("SELECT name, commit_number FROM retired ORDER BY name"))

    def forget_retired(self, names: Sequence[str]) -> None:
        """These files are gone."""
        for name in names:
            self._execute("DELETE FROM retired WHERE name = ?", (name,))

    # -- rows that move or are lost -----------------------------------------------------------------------------------

    def owners(self, shard_ids: Sequence[int]) -> dict[int, dict[int, list[RowOwner]]]:
        """The videos of each row of these shards: shard -> row -> videos. Reads the whole table of videos."""
        found: dict[int, dict[int, list[RowOwner]]] = {shard_id: {} for shard_id in shard_ids}
        marks = ", ".join("?" * len(shard_ids))
        sql = f"SELECT shard, row, id, key, checksum FROM videos WHERE shard IN ({marks}) ORDER BY shard, row, id"
        for shard_id, row, *owner in self._rows(sql, shard_ids):
            found[shard_id].setdefault(row, []).append(RowOwner(*owner))
        return found

    def move_videos(self, ids: Sequence[int], shard_id: int, row: int) -> None:
        """These videos' features, the same as before, lie here now."""
        for video_id in ids:
            self._execute("UPDATE videos SET shard = ?, row = ? WHERE id = ?", (shard_id, row, video_id))

    def lose_features(self, ids: Sequence[int], reason_detail: str) -> None:
        """These videos' features are damaged: the next scan takes their files for changed and computes them again."""
        lose = (
            f"UPDATE videos SET {_FORGET_FILE}, status = 'quarantined', reason_code = 'damaged', reason_detail = ?, "
            f"attempts = 0, shard = NULL, row = NULL, checksum = '', changed_at = {_COMMIT_NUMBER} WHERE id = ?"
        )
        for video_id in ids:
            self._execute(lose, (reason_detail, video_id))

    # -- faults -------------------------------------------------------------------------------------------------------

    def structure_faults(self, thorough: bool) -> list[str]:
        """What SQLite finds wrong with its own pages; ``thorough`` compares every index with its table, too."""
        pragma = "integrity_check" if thorough else "quick_check"
        faults = [str(row[0]) for row in self._rows(f"PRAGMA {pragma}(20)")]
        return [fault for fault in faults if fault != "ok"]

    def content_faults(self, fingerprint: str, datasets: Mapping[str, str]) -> list[str]:
        """Rows that contradict each other, or the store. ``datasets``: name -> dtype that every shard must have."""
        faults = [
            f"video {key!r} (id {video_id}) lies in row {row} of shard {shard}, which has {num_rows} rows"
            for video_id, key, shard, row, num_rows in self._rows(
                "SELECT v.id, v.key, v.shard, v.row, s.num_rows FROM videos AS v "
                "LEFT JOIN shards AS s ON s.id = v.shard "
                "WHERE v.shard IS NOT NULL AND NOT (v.row >= 0 AND v.row < COALESCE(s.num_rows, 0)) LIMIT 20"
            )
        ]
        faults += [
            f"{kind} {name} has fingerprint {found}, the store has {fingerprint}"
            for kind, name, found in self._rows(
                "SELECT 'shard', name, fingerprint FROM shards WHERE fingerprint <> ? "
                "UNION ALL SELECT 'index', name, fingerprint FROM generations WHERE fingerprint <> ?",
                (fingerprint, fingerprint),
            )
        ]
        for (shard_id,) in self._rows("SELECT id FROM shards ORDER BY id"):
            found = dict(self._rows("SELECT name, dtype FROM datasets WHERE shard = ?", (shard_id,)))
            if found != datasets:
                faults.append(f"shard {shard_id} has the datasets {sorted(found)}, expected {sorted(datasets)}")
        return faults
