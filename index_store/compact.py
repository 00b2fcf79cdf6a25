"""Gives back the space of rows that no video has any more, and makes one shard of many small ones.

Videos keep their ids and their features, to the bit, so an index stays up to date. One transaction for each new shard:
killed at any time, what is done is done, and the next compact goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from index_store.catalog import ShardRecord
from index_store.errors import DamageError
from index_store.layout import Layout
from index_store.shard_file import shard_rows
from index_store.snapshot import Snapshot
from index_store.store import Store
from index_store.verify import Advance
from index_store.writer import KeptRow

WASTE = 0.25
"""Share of a shard's rows that may be out of use."""

_SMALL_PART = 4
"""A shard smaller than this part of the wanted size is merged with others."""

_MOST_SHARDS = 500
"""That become one: their numbers are parameters of one statement."""


@dataclass(slots=True)
class CompactReport:
    """What compact did, or would do."""

    num_shards: int = 0
    """Before."""
    num_wasteful: int = 0
    """Of them, those past the waste ratio."""
    num_small: int = 0
    """Others that are merged because they are small."""
    num_new: int = 0
    """Shards that took their place."""
    num_rows_moved: int = 0
    bytes_freed: int = 0
    """Once nobody reads the old shards any more."""
    num_held: int = 0
    """Old shards that readers still use; the next writer removes them."""
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class _Batch:
    """Shards that become one."""

    shards: list[ShardRecord]
    num_live: int


def compact(
    store: Store,
    waste: float = WASTE,
    shard_bytes: int = 128 << 20,
    dry_run: bool = False,
    lock_timeout_seconds: float = 0.0,
    on_bytes: Advance = lambda count: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> CompactReport:
    """Rewrite the shards of which at least ``waste`` (0 to 1) is out of use; merge small ones up to ``shard_bytes``.

    Raises DamageError, with everything before it done, for a row that is not what was committed.
    """
    report = CompactReport()
    if dry_run:
        with store.snapshot() as snapshot:
            for batch in _batches(snapshot, waste, shard_bytes, report):
                _count(batch, report, store)
        return report
    with store.writer(lock_timeout_seconds) as writer:
        with store.snapshot() as snapshot:
            batches = list(_batches(snapshot, waste, shard_bytes, report))
        for batch in batches:
            if should_stop():
                report.interrupted = True
                break
            writer.rewrite(_live_rows(store, batch), [shard.id for shard in batch.shards])
            _count(batch, report, store)
            on_bytes(sum(shard.size_bytes for shard in batch.shards))
    with store.snapshot() as snapshot:
        report.num_held = snapshot.num_retired
    return report


def _count(batch: _Batch, report: CompactReport, store: Store) -> None:
    report.num_new += bool(batch.num_live)
    report.num_rows_moved += batch.num_live
    kept = batch.num_live * store.settings.bytes_per_video
    report.bytes_freed += max(0, sum(shard.size_bytes for shard in batch.shards) - kept)


def _batches(snapshot: Snapshot, waste: float, shard_bytes: int, report: CompactReport) -> Iterator[_Batch]:
    """What to rewrite, in the order of the shards; those without a row in use cost nothing and stand alone."""
    live = {shard_id: len(rows) for shard_id, rows in snapshot.rows_by_shard().items()}
    shards = snapshot.shards()
    report.num_shards = len(shards)
    wasteful = {shard.id for shard in shards if _waste(shard, live) > 0 and _waste(shard, live) >= waste}
    small = {shard.id for shard in shards if shard.size_bytes < shard_bytes // _SMALL_PART} - wasteful
    row_bytes = snapshot.settings.bytes_per_video
    gathered: list[ShardRecord] = []
    chosen: list[list[ShardRecord]] = []
    for shard in shards:
        if shard.id not in wasteful and shard.id not in small:
            continue
        num_live = sum(live.get(other.id, 0) for other in [*gathered, shard])
        if gathered and (num_live * row_bytes > shard_bytes or len(gathered) == _MOST_SHARDS):
            chosen.append(gathered)
            gathered = []
        gathered.append(shard)
    chosen.append(gathered)
    for batch in chosen:
        # one small shard by itself would only become itself again
        if len(batch) > 1 or any(shard.id in wasteful for shard in batch):
            report.num_wasteful += sum(shard.id in wasteful for shard in batch)
            report.num_small += sum(shard.id in small for shard in batch)
            yield _Batch(batch, sum(live.get(shard.id, 0) for shard in batch))


def _waste(shard: ShardRecord, live: dict[int, int]) -> float:
    return 1 - live.get(shard.id, 0) / shard.num_rows


def _live_rows(store: Store, batch: _Batch) -> Sequence[KeptRow]:
    """The rows in use of these shards, in the order of the shards."""
    layout = Layout(store.directory)
    with store.snapshot() as snapshot:
        owners = snapshot.owners([shard.id for shard in batch.shards])
    kept = []
    for shard in batch.shards:
        path = layout.shard_path(shard.name)
        with shard_rows(path, shard, store.settings) as rows:
            for row, videos in owners[shard.id].items():
                features = rows.features(row)
                if features is None:
                    raise DamageError(f"{path}: row {row} of {videos[0].key} cannot be read; run 'tbpipe repair'")
                kept.append(KeptRow(videos, features))
    return kept
