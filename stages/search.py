"""Broad view: text features -> the K videos of the index whose pooled embedding fits best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from index_store.errors import DamageError, StoreMissingError, UsageError
from index_store.records import SEARCHABLE, Hit, Query, Ranking
from index_store.snapshot import Snapshot
from index_store.vectors import SearchResult, VectorIndex

if TYPE_CHECKING:
    from stages.models.clip import TextFeatures

QUERIES_PER_BATCH = 128
"""Texts that are encoded and searched together: fixed, so that no other setting changes what a text tower sees."""


class TextEncoder(Protocol):
    """The text half of a model; stages.models.clip.ClipModel is one."""

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Features of all texts."""
        ...


class EncodedQueries(NamedTuple):
    """Up to QUERIES_PER_BATCH queries with their features."""

    queries: list[Query]
    features: TextFeatures


def open_index(snapshot: Snapshot) -> VectorIndex:
    """The newest index generation, checked. Raises StoreMissingError where there is none, DamageError."""
    generation = snapshot.generation()
    if generation is None:
        raise StoreMissingError("the store has no index yet; run 'tbpipe index' first")
    index = VectorIndex.open(generation.path, snapshot.settings.fingerprint)
    if index.commit_number != generation.commit_number:
        raise DamageError(
            f"{generation.path} holds the videos of commit {index.commit_number}, the catalog says "
            f"{generation.commit_number}: it is another index; run 'tbpipe index' to build it again"
        )
    return index


def encode_queries(encoder: TextEncoder, queries: Iterable[Query]) -> Iterator[EncodedQueries]:
    """The queries in batches, encoded one batch at a time."""
    remaining = iter(queries)
    while batch := list(islice(remaining, QUERIES_PER_BATCH)):
        yield EncodedQueries(batch, encoder.encode_texts([query.text for query in batch]))


class BroadView:
    """Recalls candidates from an index as a snapshot sees them: a video that has lost its features is not returned."""

    def __init__(self, snapshot: Snapshot, index: VectorIndex) -> None:
        if index.dim != snapshot.settings.embed_dim:
            raise UsageError(
                f"the index has width {index.dim}, the store {snapshot.settings.embed_dim}; run 'tbpipe index'"
            )
        self._snapshot = snapshot
        self._index = index
        self._is_fresh = index.commit_number == snapshot.commit_number
        self._allowed: NDArray[np.bool_] | None = None

    @property
    def staleness(self) -> str:
        """One line that says how the index is older than the store and what to do; empty when it is not."""
        at, now = self._index.commit_number, self._snapshot.commit_number
        if at == now:
            return ""
        held, searchable = len(self._index), self._snapshot.num_searchable
        return (
            f"the index holds {held} videos as of commit {at}, the store {searchable} as of commit {now}: "
            "newer videos are not found; run 'tbpipe index'"
        )

    def candidates(self, sentence: NDArray[np.float32], top_k: int) -> SearchResult:
        """The best ``min(top_k, searchable videos of the index)`` of each text, best first, ties by id; -1 = none.

        sentence float32 [T, D], any length above 0; the scores are inner products of unit-length vectors.
        """
        if top_k < 1:
            raise UsageError(f"--top-k is {top_k}, expected at least 1")
        unit = unit_length(sentence)
        result = self._index.search(unit, top_k, self._allowed)
        while self._forbid_dead(result.ids):
            result = self._index.search(unit, top_k, self._allowed)
        return result

    def _forbid_dead(self, ids: NDArray[np.int64]) -> bool:
        """Whether some of the videos have lost their features since the index was built; they are not found again.

        Only what was found is looked up: the catalog of a large store is never read as a whole.
        """
        if self._is_fresh:
            return False
        found = np.unique(ids[ids >= 0]).tolist()
        dead = [record.id for record in self._snapshot.by_ids(found) if record.status not in SEARCHABLE]
        if dead:
            if self._allowed is None:
                self._allowed = np.ones(len(self._index), np.bool_)
            self._allowed[np.searchsorted(self._index.ids, dead)] = False
        return bool(dead)


def search(
    snapshot: Snapshot, index: VectorIndex, encoder: TextEncoder, queries: Iterable[Query], top_k: int
) -> Iterator[Ranking]:
    """The ranking of the broad view for each query, in their order, each hit with the time of its best frame."""
    view = BroadView(snapshot, index)
    for batch, features in encode_queries(encoder, queries):
        sentence = features.sentence.cpu().numpy()
        result = view.candidates(sentence, top_k)
        for row, query in enumerate(batch):
            ids = result.ids[row][result.ids[row] >= 0].tolist()
            frames = snapshot.read_frame_embeddings(ids)
            moments = best_moments(sentence[row], frames.embeddings, frames.frame_mask, frames.timestamps_seconds)
            hits = [
                Hit(record.id, record.key, score, moment_seconds=moment)
                for record, score, moment in zip(
                    snapshot.by_ids(ids), result.scores[row, : len(ids)].tolist(), moments.tolist(), strict=True
                )
            ]
            yield Ranking(query.id, tuple(hits))


def best_moments(
    sentence: NDArray[np.float32],
    frames: NDArray[np.floating],
    frame_mask: NDArray[np.bool_],
    timestamps_seconds: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Seconds [K] into each video of the frame that fits the sentence best; the first of equally good ones.

    sentence float32 [D]; frames [K, F, D] of any length; frame_mask bool [K, F], True = real frame.
    """
    wide = _float32(frames)
    cosines = np.where(frame_mask, np.einsum("kfd,d->kf", wide, sentence) / _lengths(wide), -np.inf)
    best: NDArray[np.float64] = timestamps_seconds[np.arange(len(cosines)), cosines.argmax(axis=1)]
    return best


def unit_length(vectors: NDArray[np.floating] | NDArray[np.int8]) -> NDArray[np.float32]:
    """``vectors`` as float32 with length 1 over the last axis; a zero vector stays zero."""
    wide = _float32(vectors)
    wide /= _lengths(wide)[..., None]
    return wide


def _float32(vectors: NDArray[np.floating] | NDArray[np.int8]) -> NDArray[np.float32]:
    """A copy as float32. Of float16, torch makes it in a tenth of numpy's time; the numbers are the same."""
    if vectors.dtype != np.float16:
        return vectors.astype(np.float32)
    import torch

    wide: NDArray[np.float32] = torch.from_numpy(vectors).float().numpy()
    return wide


def _lengths(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Over the last axis, never 0."""
    lengths: NDArray[np.float32] = np.sqrt(np.einsum("...d,...d->...", vectors, vectors)).clip(min=1e-12)
    return lengths
