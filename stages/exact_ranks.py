"""The exact rank of each query's best right answer among all vectors, which pass by in blocks.

Neither the scores of all pairs nor all vectors are ever in memory. A matrix product gives nearly every comparison; a
pair too close to call is scored again by itself, always with the same sum, so that copies of a vector tie exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from index_store.errors import StoreError
from index_store.vectors import VectorBlock

_ROUGH_ERROR = 1e-5
"""How far a float32 matrix product of unit-length vectors may be off, at any width in use."""
_QUERIES_PER_PRODUCT = 512
_VECTORS_PER_PRODUCT = 8192
_PAIRS_PER_PART = 8192


def exact_ranks(
    queries: NDArray[np.float32],
    right: Sequence[Sequence[int]],
    right_vectors: Iterable[VectorBlock],
    blocks: Iterable[VectorBlock],
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Ranks int64 [Q], from 1, by inner product; equal ones by id, equal meaning the same float32.

    queries float32 [Q, D], unit length. right: ids of each query's right answers, one at least. right_vectors: blocks
    that together hold their vectors, those of the first query first. blocks: every vector, unit length, once. With
    groups int64 [N], numbers from 0 of the vectors with the ids 0 to N - 1, groups are ranked, each by its best vector;
    a query's right answers are then one group. Raises StoreError for a right answer whose vector is not finite.
    """
    scores, ids = _best_right(queries, right, right_vectors)
    num_ahead = np.zeros(len(queries), np.int64)
    group_ahead = None if groups is None else np.zeros((len(queries), int(groups.max()) + 1), np.bool_)
    for block_ids, vectors in blocks:
        for start in range(0, len(vectors), _VECTORS_PER_PRODUCT):
            part = slice(start, start + _VECTORS_PER_PRODUCT)
            for first in range(0, len(queries), _QUERIES_PER_PRODUCT):
                rows = slice(first, first + _QUERIES_PER_PRODUCT)
                is_ahead = _ahead(queries[rows], scores[rows], ids[rows], block_ids[part], vectors[part])
                if groups is None or group_ahead is None:
                    num_ahead[rows] += is_ahead.sum(axis=1, dtype=np.int64)
                else:
                    query, column = np.nonzero(is_ahead)
                    group_ahead[first + query, groups[block_ids[part][column]]] = True
    if group_ahead is not None:
        num_ahead = group_ahead.sum(axis=1, dtype=np.int64)
    return num_ahead + 1


def exact_scores(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inner product float32 [n] of each row of left [n, D] with the same row of right [n, D], summed in float64."""
    scores = np.empty(len(left), np.float32)
    for start in range(0, len(left), _PAIRS_PER_PART):
        part = slice(start, start + _PAIRS_PER_PART)
        scores[part] = (left[part].astype(np.float64) * right[part]).sum(axis=1)
    return scores


def _best_right(
    queries: NDArray[np.float32], right: Sequence[Sequence[int]], right_vectors: Iterable[VectorBlock]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Score float32 [Q] and id int64 [Q] of the right answer that ranks best."""
    owners = np.repeat(np.arange(len(queries)), [len(ids) for ids in right])
    ids, scores = np.empty(len(owners), np.int64), np.empty(len(owners), np.float32)
    done = 0
    for block_ids, vectors in right_vectors:
        part = slice(done, done + len(block_ids))
        ids[part], scores[part] = block_ids, exact_scores(queries[owners[part]], vectors)
        done = part.stop
    assert done == len(owners)
    if not np.isfinite(scores).all():
        wrong = int(ids[~np.isfinite(scores)][0])
        raise StoreError(f"the embedding of id {wrong} is not finite; extract its video into a new store")
    order = np.lexsort((ids, -scores, owners))
    firsts = order[np.unique(owners[order], return_index=True)[1]]
    assert len(firsts) == len(queries)  # everyone has a right answer
    return scores[firsts], ids[firsts]


def _ahead(
    queries: NDArray[np.float32],
    scores: NDArray[np.float32],
    ids: NDArray[np.int64],
    vector_ids: NDArray[np.int64],
    vectors: NDArray[np.float32],
) -> NDArray[np.bool_]:
    """Which of the n vectors come before each query's best right answer, bool [Q, n]."""
    lead = queries @ vectors.T
    lead -= scores[:, None]
    is_ahead: NDArray[np.bool_] = lead > _ROUGH_ERROR
    rows, columns = np.nonzero(np.abs(lead, out=lead) <= _ROUGH_ERROR)
    for start in range(0, len(rows), _PAIRS_PER_PART):
        row, column = rows[start : start + _PAIRS_PER_PART], columns[start : start + _PAIRS_PER_PART]
        exact = exact_scores(queries[row], vectors[column])
        is_ahead[row, column] = (exact > scores[row]) | ((exact == scores[row]) & (vector_ids[column] < ids[row]))
    return is_ahead
