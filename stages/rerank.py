"""Focused view: the candidates of each query, as the broad view recalls them, scored by a reranker that sees them all.

Only the candidates' tokens, or what was prepared of them, are read, each once for all queries of a batch, while the
batch before is being scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import torch
from numpy.typing import NDArray

from index_store.errors import StoreError
from index_store.records import Hit, Query, Ranking
from index_store.snapshot import FrameEmbeddingBatch, Snapshot
from index_store.vectors import SearchResult, VectorIndex
from stages.rerankers.base import QueryBatch, Reranker
from stages.search import BroadView, EncodedQueries, TextEncoder, best_moments, encode_queries
from stages.token_batches import DEFAULT_MEMORY_BYTES, ahead
from stages.video_source import LoadedVideos, VideoSource, open_source

DEFAULT_TOP_K = 50


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Some queries with everything that is needed to score their candidates."""

    queries: list[Query]
    features: QueryBatch
    result: SearchResult
    keys: dict[int, str]
    """Of every candidate, by video id."""
    index: NDArray[np.int64]
    """int64 [B, K], row of ``videos``; -1 = no candidate."""
    videos: LoadedVideos
    """U rows: the distinct ones (copies of a video share its features), or every query's own, one after the other."""
    frames: FrameEmbeddingBatch
    """Theirs."""


class FocusedView:
    """Reranks what the broad view recalls, call after call; what is opened for it is opened once.

    For whoever answers queries as they come. Not for two calls at once: each is read to its end before the next.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        index: VectorIndex,
        reranker: Reranker,
        *,
        top_k: int = DEFAULT_TOP_K,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        device: torch.device | str = "cpu",
    ) -> None:
        """As ``rerank``, which is one call. The snapshot and the index must stay open."""
        self._snapshot, self._reranker, self._top_k = snapshot, reranker, top_k
        self._view = BroadView(snapshot, index)
        self._source = open_source(snapshot, reranker, min(top_k, len(index)), memory_bytes, torch.device(device))

    def rankings(self, encoder: TextEncoder, queries: Iterable[Query]) -> Iterator[Ranking]:
        """The focused ranking of each query's candidates, in the order of the queries, as they are done."""
        remaining = iter(queries)
        first = list(islice(remaining, 2))
        encoded = encode_queries(encoder, chain(first, remaining))
        batches = _batches(self._snapshot, self._view, encoded, self._top_k, self._source)
        is_alone = len(first) < 2  # nothing comes after it; a thread would cost it a fifth of its time
        for batch in batches if is_alone else ahead(batches):
            yield from _rankings(batch, _score(self._reranker, batch))


def rerank(
    snapshot: Snapshot,
    index: VectorIndex,
    encoder: TextEncoder,
    queries: Iterable[Query],
    reranker: Reranker,
    *,
    top_k: int = DEFAULT_TOP_K,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    device: torch.device | str = "cpu",
) -> Iterator[Ranking]:
    """The focused ranking of each query's best ``top_k`` videos, in the order of the queries, as they are done.

    ``memory_bytes`` bounds the tokens in memory, those being scored and those being read. A ranking depends neither on
    it nor on the other queries, nor on what is prepared. Raises UsageError when the candidates of one query do not fit
    into the memory.
    """
    view = FocusedView(snapshot, index, reranker, top_k=top_k, memory_bytes=memory_bytes, device=device)
    yield from view.rankings(encoder, queries)


# -- finding and reading: one thread, one batch ahead ------------------------------------------------------------------


def _batches(
    snapshot: Snapshot, view: BroadView, encoded: Iterable[EncodedQueries], top_k: int, source: VideoSource
) -> Iterator[_Batch]:
    """Batches of queries with no more distinct candidates than the source gives at once."""
    for queries, features in encoded:
        result = view.candidates(features.sentence.cpu().numpy(), top_k)
        for part in _cut(result.ids, source.capacity):
            found = SearchResult(result.scores[part], result.ids[part])
            yield _read(snapshot, queries[part], QueryBatch.of(features)[part], found, source)


def _cut(ids: NDArray[np.int64], capacity: int) -> Iterator[slice]:
    """Runs of rows of ``ids`` [T, K] that together name at most ``capacity`` videos."""
    start, seen = 0, set[int]()
    for row, candidates in enumerate(ids.tolist()):
        together = seen.union(candidates)
        together.discard(-1)
        if len(together) > capacity:
            yield slice(start, row)
            start, together = row, set(candidates) - {-1}
        seen = together
    if start < len(ids):
        yield slice(start, len(ids))


def _read(
    snapshot: Snapshot, queries: list[Query], features: QueryBatch, result: SearchResult, source: VideoSource
) -> _Batch:
    """Look up the candidates and read them: the distinct ones, those with the most visitors first, or by query."""
    ids, counts = np.unique(result.ids[result.ids >= 0], return_counts=True)
    ids = ids[np.argsort(-counts, kind="stable")]
    keys = {video_id: key for video_id, key, _ in snapshot.names(ids.tolist())}
    locations = snapshot.locations(ids.tolist())
    index = np.full(result.ids.shape, -1, np.int64)
    here = result.ids >= 0
    if source.reads_by_query(int(here.sum()), len(set(locations))):
        videos = source.read(result.ids[here].tolist())
        index[here] = np.arange(here.sum())
    else:
        rows: dict[tuple[int, int], int] = {}
        row_of = np.array([rows.setdefault(place, len(rows)) for place in locations], np.int64)
        firsts = np.unique(row_of, return_index=True)[1]
        videos = source.read(ids[firsts].tolist())
        by_id = np.argsort(ids)
        index[here] = row_of[by_id[np.searchsorted(ids, result.ids[here], sorter=by_id)]]
    return _Batch(queries, features, result, keys, index, videos, videos.frames())


# -- scoring ----------------------------------------------------------------------------------------------------------


def _score(reranker: Reranker, batch: _Batch) -> NDArray[np.float32]:
    """What the reranker says, float32 [B, K]. Raises StoreError for a score that is not a number."""
    ranked = batch.videos.rank(reranker, batch.features, batch.index, batch.result.scores)
    scores: NDArray[np.float32] = ranked.cpu().numpy()
    wrong = ~np.isfinite(scores) & (batch.index >= 0)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        key = batch.keys[int(batch.result.ids[row, column])]
        raise StoreError(
            f"{reranker.name} gives query {batch.queries[row].id!r} and video {key!r} the score {scores[row, column]}; "
            "their features may be damaged: extract them into a new store"
        )
    return scores


def _rankings(batch: _Batch, scores: NDArray[np.float32]) -> Iterator[Ranking]:
    """The candidates of each query by focused score; equal scores by video id."""
    sentence = batch.features.sentence.cpu().numpy()
    frames = batch.frames
    for row, query in enumerate(batch.queries):
        places = np.flatnonzero(batch.index[row] >= 0)
        ids = batch.result.ids[row, places]
        places = places[np.lexsort((ids, -scores[row, places]))]
        videos = batch.index[row, places]
        if len(videos) == len(frames.embeddings):  # all of them: nothing has to be copied together
            moments = best_moments(sentence[row], *frames)[videos]
        else:
            moments = best_moments(sentence[row], *(part[videos] for part in frames))
        hits = [
            Hit(video_id, batch.keys[video_id], broad, focused, moment)
            for video_id, broad, focused, moment in zip(
                batch.result.ids[row, places].tolist(),
                batch.result.scores[row, places].tolist(),
                scores[row, places].tolist(),
                moments.tolist(),
                strict=True,
            )
        ]
        yield Ranking(query.id, tuple(hits))
