"""What a reranker looks at of some videos: their tokens, or what was prepared of them, read in bounded memory.

What was prepared is used by itself. A video of which nothing is prepared, or something damaged, is computed from its
tokens as it would be otherwise; its scores are the same to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index_store.features import Array
from index_store.prepared import PreparedReader
from index_store.snapshot import FrameEmbeddingBatch, Snapshot, TokenBatch
from stages.rerankers.base import CandidateBatch, QueryBatch, Reranker
from stages.rerankers.pairwise import PairwiseReranker, PreparedCandidates, VideoSide
from stages.rerankers.token_binder import TokenBinderReranker
from stages.rerankers.video_sides import VideoSideOf, video_side_of
from stages.rerankers.visits import videos_per_block
from stages.token_batches import TokenBuffers, candidate_batch, video_capacity
from stages.token_pool import TokenPool, pool_size

_MOST_READS = 1.5
"""Of a video, on average, where the candidates of each query are to lie side by side: looking at those of UCoFiA where
they lie saves 25 us each, and reading one once more costs as much."""


class LoadedVideos(Protocol):
    """U videos, ready to be looked at."""

    def frames(self) -> FrameEmbeddingBatch:
        """Their frame embeddings, of any length, with their times."""
        ...

    def rank(
        self, reranker: Reranker, queries: QueryBatch, index: NDArray[np.int64], broad: NDArray[np.float32]
    ) -> Tensor:
        """``reranker.rank`` of candidates index int64 [B, K], -1 = none, with broad scores [B, K]."""
        ...

    def rank_texts(
        self, reranker: Reranker, queries: QueryBatch, index: NDArray[np.int64], broad: NDArray[np.float32]
    ) -> Tensor:
        """``reranker.rank_texts`` of these videos and the texts index int64 [U, K]."""
        ...


class VideoSource(Protocol):
    """Reads videos for one reranker and those by its parts."""

    @property
    def capacity(self) -> int:
        """Distinct videos that may be read at once; what was read the time before may still be in use."""
        ...

    def reads_by_query(self, num_candidates: int, num_distinct: int) -> bool:
        """Whether to read all candidates of every query, side by side, and not only the distinct ones of them."""
        ...

    def read(self, ids: Sequence[int]) -> LoadedVideos:
        """These videos, in this order. Raises StoreError, DamageError."""
        ...


def open_source(
    snapshot: Snapshot, reranker: Reranker, num_candidates: int, memory_bytes: int, device: torch.device
) -> VideoSource:
    """The cheapest source that there is for a reranker.

    Raises UsageError when ``num_candidates`` videos do not fit into the memory twice.
    """
    side = video_side_of(reranker)
    if side is not None and snapshot.has_prepared(str(getattr(side.head, "name", ""))):
        reader = snapshot.open_prepared(side.key(snapshot.settings, device))
        capacity = memory_bytes // (2 * reader.row_bytes) if reader is not None else 0
        if reader is not None and capacity >= max(1, num_candidates):
            assert isinstance(reranker, PairwiseReranker)
            return _PreparedSource(snapshot, reader, side, reranker, num_candidates, capacity, device)
    capacity = video_capacity(snapshot, num_candidates, memory_bytes)
    if isinstance(reranker, TokenBinderReranker):
        return _PooledSource(snapshot, capacity, device)
    return _TokenSource(snapshot, capacity, device)


class _TokenSource:
    """Reads tokens, into two buffers in turn."""

    def __init__(self, snapshot: Snapshot, capacity: int, device: torch.device) -> None:
        self.capacity = capacity
        self._snapshot, self._device = snapshot, device
        self._buffers = TokenBuffers(snapshot, capacity)

    def reads_by_query(self, num_candidates: int, num_distinct: int) -> bool:
        return False  # a video is prepared once, and then every query looks at it

    def read(self, ids: Sequence[int]) -> LoadedVideos:
        tokens = self._snapshot.read_tokens(ids, out=self._buffers.next())
        return _Tokens(tokens, self._device, lambda: self._frames(tokens, ids))

    def _frames(self, tokens: TokenBatch, ids: Sequence[int]) -> FrameEmbeddingBatch:
        """Those among the tokens where they are the same: with int8 the embeddings are stored more finely."""
        if tokens.scales is not None:
            return self._snapshot.read_frame_embeddings(ids)
        return FrameEmbeddingBatch(tokens.tokens[:, :, 0], tokens.frame_mask, tokens.timestamps_seconds)


@dataclass(frozen=True, slots=True, eq=False)
class _Tokens:
    """Videos with all their tokens."""

    tokens: TokenBatch
    device: torch.device
    frames: Callable[[], FrameEmbeddingBatch]

    def rank(
        self, reranker: Reranker, queries: QueryBatch, index: NDArray[np.int64], broad: NDArray[np.float32]
    ) -> Tensor:
        return reranker.rank(queries.to(self.device), candidate_batch(self.tokens, index, broad, self.device))

    def rank_texts(
        self, reranker: Reranker, queries: QueryBatch, index: NDArray[np.int64], broad: NDArray[np.float32]
    ) -> Tensor:
        return reranker.rank_texts(queries.to(self.device), candidate_batch(self.tokens, index, broad, self.device))


class _PooledSource:
    """Reads tokens into a pool, for a reranker that picks from it; the other rerankers want theirs side by side."""

    def __init__(self, snapshot: Snapshot, capacity: int, device: torch.device) -> None:
        self.capacity = capacity
        self._device = device
        self._pool = TokenPool(snapshot, pool_size(snapshot, capacity, device), device)

    def reads_by_query(self, num_candidates: int, num_distinct: int) -> bool:
        return False

    def read(self, ids: Sequence[int]) -> LoadedVideos:
        return _Pooled(ids, self._pool, self._pool.slots(ids), self._device)


@dataclass(frozen=True, slots=True, eq=False)
class _Pooled:
    """Videos somewhere in a pool."""

    ids: Sequence[int]
    pool: TokenPool
    slots: NDArray[np.int64]
    device: torch.device

    def frames(self) -> FrameEmbeddingBatch:
        return self.pool.frames(self.ids, self.slots)

    def rank(
        self, reranker: Reranker, queries: QueryBatch, index: NDArray[np.int64], broad: NDArray[np.float32]
    ) -> Tensor:
        if not isinstance(reranker, TokenBinderReranker):
            return reranker.rank(queries.to(self.device), self._side_by_side(index, broad))
        there = np.where(index >= 0, self.slots[index.clip(min=0)], -1) if len(self.slots) else index
        return reranker.rank(queries.to(self.device), self._picked(there, broad))

    def rank_texts(
        self, reranker: Reranker, queries: QueryBatch, index: NDArray[np.int64], broad: NDArray[np.float32]
    ) -> Tensor:
        if not isinstance(reranker, TokenBinderReranker):
            return reranker.rank_texts(queries.to(self.device), self._side_by_side(index, broad))
        return reranker.rank_texts(queries.to(self.device), self._picked(index, broad), self.slots)

    def _picked(self, index: NDArray[np.int64], broad: NDArray[np.float32]) -> CandidateBatch:
        self.pool.ready()
        return CandidateBatch(
            self.pool.tokens,
            self.pool.scales,
            self.pool.frame_mask,
            torch.from_numpy(index),
            torch.from_numpy(broad).to(self.device),
            self.pool.places,
        )

    def _side_by_side(self, index: NDArray[np.int64], broad: NDArray[np.float32]) -> CandidateBatch:
        self.pool.ready()
        rows = torch.from_numpy(self.slots).to(self.device)
        return CandidateBatch(
            self.pool.tokens[rows],
            None if self.pool.scales is None else self.pool.scales[rows],
            self.pool.frame_mask[rows],
            torch.from_numpy(index),
            torch.from_numpy(broad).to(self.device),
            None if self.pool.places is None else self.pool.places[rows],
        )


class _PreparedSource:
    """Reads what was prepared; what was not, it computes."""

    def __init__(
        self,
        snapshot: Snapshot,
        reader: PreparedReader,
        side: VideoSideOf,
        reranker: PairwiseReranker,
        num_candidates: int,
        capacity: int,
        device: torch.device,
    ) -> None:
        """num_candidates: of one query; capacity: rows that fit into half of the memory, at least as many."""
        self._by_query = reranker.shares_visits and device.type == "cpu"
        self.capacity = max(num_candidates, int(capacity / _MOST_READS)) if self._by_query else capacity
        self._snapshot, self._reader, self._side, self._reranker = snapshot, reader, side, reranker
        self._device = device
        self._num_rows = min(capacity, max(1, snapshot.num_searchable))
        self._buffers = [reader.empty(self._num_rows) for _ in range(2)]  # one is looked at, the other is filled

    def reads_by_query(self, num_candidates: int, num_distinct: int) -> bool:
        return self._by_query and num_candidates <= _MOST_READS * num_distinct

    def read(self, ids: Sequence[int]) -> LoadedVideos:
        self._buffers.reverse()
        rows = self._reader.read(
            self._snapshot.locations(ids), self._buffers[0] if len(ids) <= self._num_rows else None
        )
        missing = np.flatnonzero(~rows.is_there)
        for places, found in self._computed([ids[place] for place in missing.tolist()], missing):
            for name, array in found.items():
                rows.fields[name][places] = array
        videos = self._side.put_together(rows.fields, self._reader.same)
        block_size = min(max(1, len(ids)), videos_per_block(self._reader.row_bytes // 4, self._device))
        return _Prepared(self._snapshot, ids, videos, self._side, block_size, self._device)

    def _computed(
        self, ids: Sequence[int], places: NDArray[np.intp]
    ) -> Iterator[tuple[NDArray[np.intp], dict[str, Array]]]:
        """The fields of these videos from their tokens, some at a time, with the places of those."""
        step = tokens_at_once(self._snapshot, self._device)
        for start in range(0, len(ids), step):
            tokens = self._snapshot.read_tokens(ids[start : start + step])
            for rows, fields, _ in compute(self._side, self._reranker, tokens, self._device):
                yield places[start + rows.start : start + rows.stop], fields


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """Videos with what was prepared of them."""

    snapshot: Snapshot
    ids: Sequence[int]
    videos: Any
    side: VideoSideOf
    block_size: int
    device: torch.device

    def frames(self) -> FrameEmbeddingBatch:
        return self.snapshot.read_frame_embeddings(self.ids)

    def rank(
        self, reranker: Reranker, queries: QueryBatch, index: NDArray[np.int64], broad: NDArray[np.float32]
    ) -> Tensor:
        assert isinstance(reranker, PairwiseReranker)
        return reranker.rank_prepared(queries.to(self.device), self._candidates(index, broad))

    def rank_texts(
        self, reranker: Reranker, queries: QueryBatch, index: NDArray[np.int64], broad: NDArray[np.float32]
    ) -> Tensor:
        assert isinstance(reranker, PairwiseReranker)
        return reranker.rank_texts_prepared(queries.to(self.device), self._candidates(index, broad))

    def _candidates(self, index: NDArray[np.int64], broad: NDArray[np.float32]) -> PreparedCandidates:
        return PreparedCandidates(
            videos=self.videos,
            move=lambda videos: self.side.move(videos, self.device),
            num_videos=len(self.ids),
            block_size=self.block_size,
            index=torch.from_numpy(index),
            broad=torch.from_numpy(broad).to(self.device),
        )


def tokens_at_once(snapshot: Snapshot, device: torch.device) -> int:
    """How many videos' tokens are read to compute their side."""
    return videos_per_block(math.prod(snapshot.settings.token_shape), device)


@torch.inference_mode()
def compute(
    side: VideoSideOf, reranker: PairwiseReranker, tokens: TokenBatch, device: torch.device
) -> Iterator[tuple[slice, dict[str, Array], dict[str, str]]]:
    """The video side of these videos, some rows at a time: the rows, their fields, and which fields are the same.

    The arrays last until the next ones are asked for.
    """
    scales = None if tokens.scales is None else torch.from_numpy(tokens.scales).to(device)
    mask = torch.from_numpy(tokens.frame_mask).to(device)
    raw = torch.from_numpy(tokens.tokens).to(device)
    video_side = VideoSide(reranker.scorer, raw, scales, mask)
    for start in range(0, len(raw), video_side.block_size):
        rows = slice(start, min(start + video_side.block_size, len(raw)))
        yield rows, *side.take_apart(video_side.of(rows))
