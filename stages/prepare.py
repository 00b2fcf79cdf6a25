"""What a method makes of videos alone, computed once for every video of a store and kept beside it.

Shard by shard: a file of prepared rows is written whole or not at all, and one that is there is not computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from index_store.errors import InputError
from index_store.prepared import PreparedAbout, PreparedReader, PreparedWriter
from index_store.snapshot import Snapshot
from index_store.store import Store
from stages.models.weights import file_sha256
from stages.rerankers.base import Reranker
from stages.rerankers.pairwise import PairwiseReranker
from stages.rerankers.video_sides import VideoSideOf, require_video_side
from stages.video_source import compute, tokens_at_once

Advance = Callable[[int], object]
"""Told how many more videos are done."""


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """What ``tbpipe prepare`` did."""

    method: str
    name: str
    """Of the directory under ``prepared/``."""
    num_videos: int
    """Of the store; copies count once."""
    num_computed: int
    """Now; the others were there."""
    num_removed: int
    """Files of shards that the store has no more."""
    bytes_per_video: int
    size_bytes: int
    """Of the whole directory."""


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """What is the same for every shard."""

    snapshot: Snapshot
    side: VideoSideOf
    reranker: PairwiseReranker
    device: torch.device


def prepare(
    store: Store,
    reranker: Reranker,
    *,
    device: torch.device | str = "cpu",
    weights: Path | None = None,
    verify: bool = False,
    lock_timeout_seconds: float = 0.0,
    advance: Callable[[int], Advance] = lambda total: lambda count: None,
) -> PrepareReport:
    """Prepare every video of the store that is not. Memory holds the tokens of some videos at a time.

    weights: the file that the reranker was made with, to be named by ``info``. ``verify``: read what is there, too, and
    compute again what is damaged. ``advance`` is told the number of videos to look at. Killed anywhere, what was
    finished stays. Raises UsageError for a method that this saves nothing for, InputError for an empty store,
    StoreLockedError while another process prepares.
    """
    side = require_video_side(reranker)
    assert isinstance(reranker, PairwiseReranker)
    device = torch.device(device)
    with store.snapshot() as snapshot:
        rows_by_shard = snapshot.rows_by_shard()
        if not rows_by_shard:
            raise InputError(f"{store.directory} holds no video with features; run 'tbpipe extract' first")
        key = side.key(store.settings, device)
        sha256 = "" if weights is None else file_sha256(weights)
        named = "" if weights is None else str(weights.absolute())
        about = PreparedAbout(key.method, key.digest, store.fingerprint, named, sha256, device.type)
        work = _Work(snapshot, side, reranker, device)
        with snapshot.prepared_writer(about, lock_timeout_seconds) as writer:
            num_removed = writer.remove_others()
            before = writer.reader()
            todo = {shard: rows for shard, rows in rows_by_shard.items() if before.count(shard, rows) < len(rows)}
            told = advance(sum(map(len, (rows_by_shard if verify else todo).values())))
            for shard, rows in rows_by_shard.items():
                if shard not in todo and verify and not _is_sound(before, shard, rows.tolist(), told):
                    todo[shard] = rows
            for shard, rows in todo.items():
                _prepare_shard(work, writer, shard, rows.tolist(), told)
            before.close()
            return _report(writer, key.directory_name, key.method, rows_by_shard, todo, num_removed)


def _prepare_shard(work: _Work, writer: PreparedWriter, shard_id: int, rows: Sequence[int], told: Advance) -> None:
    shard = work.snapshot.shard(shard_id)
    assert shard is not None  # of the same snapshot
    step = tokens_at_once(work.snapshot, work.device)
    with writer.file(shard) as file:
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            tokens = work.snapshot.read_rows(shard_id, part)
            for places, fields, same in compute(work.side, work.reranker, tokens, work.device):
                file.put(part[places], fields, same)
            told(len(part))


def _is_sound(reader: PreparedReader, shard: int, rows: Sequence[int], told: Advance) -> bool:
    """Whether what is prepared of these rows is what was written."""
    step = max(1, (16 << 20) // max(1, reader.row_bytes))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        if not reader.read([(shard, row) for row in part]).is_there.all():
            return False
        told(len(part))
    return True


def _report(
    writer: PreparedWriter,
    name: str,
    method: str,
    rows_by_shard: dict[int, NDArray[np.int64]],
    done: dict[int, NDArray[np.int64]],
    num_removed: int,
) -> PrepareReport:
    now = writer.reader()
    now.close()
    return PrepareReport(
        method=method,
        name=name,
        num_videos=sum(map(len, rows_by_shard.values())),
        num_computed=sum(map(len, done.values())),
        num_removed=num_removed,
        bytes_per_video=now.row_bytes,
        size_bytes=writer.size_bytes(),
    )
