"""How good rankings are: R@k, median rank and mean rank, all from the rank of each query's best right answer.

Ranks count from 1. Where a query has several right answers, the best-ranked one counts: each caption of a video is a
query of its own from text to video, and from video to text the best-ranked of a video's own captions counts.

Ties: equal scores are ordered by id, as in every ranking that tbpipe writes, so a rank is a position in that order and
every query has exactly one. (A right answer that ties with n wrong ones of smaller ids comes after those n.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CUTOFFS = (1, 5, 10)
"""The k of R@k."""

TIE_RULE = "equal scores are ordered by id (texts: by their place in the file)"
"""What the report says."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """How well the right answers of a set of queries are ranked."""

    recall_at: dict[int, float]
    """k -> percent of the queries whose best right answer is among the first k (Success@k, if there are several)."""
    median_rank: float
    """Of an even number of queries, the mean of the two in the middle."""
    mean_rank: float
    num_queries: int


def metrics(ranks: NDArray[np.int64], cutoffs: Sequence[int] = CUTOFFS) -> Metrics:
    """The metrics of ``ranks`` int64 [Q], from 1, of each query's best right answer. Raises ValueError for no query."""
    if ranks.ndim != 1 or len(ranks) == 0 or ranks.min() < 1:
        raise ValueError(f"ranks must be one or more numbers from 1, not {ranks.dtype}{list(ranks.shape)}")
    return Metrics(
        recall_at={k: 100 * int((ranks <= k).sum()) / len(ranks) for k in cutoffs},
        median_rank=float(np.median(ranks)),
        mean_rank=float(ranks.mean()),
        num_queries=len(ranks),
    )


def ranks_of_best(scores: NDArray[np.floating], is_right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The rank int64 [Q] of each query's best right answer, from 1.

    scores [Q, N], larger is better, columns by ascending id; is_right bool [Q, N]. Raises ValueError for a score that
    is not a number and for a query without a right answer.
    """
    if np.isnan(scores).any() or not is_right.any(axis=1).all():
        raise ValueError("every score must be a number, and every query must have a right answer")
    best = np.where(is_right, scores, -np.inf).max(axis=1, keepdims=True)
    place = (is_right & (scores == best)).argmax(axis=1)
    is_ahead = (scores > best) | ((scores == best) & (np.arange(scores.shape[1]) < place[:, None]))
    ranks: NDArray[np.int64] = 1 + is_ahead.sum(axis=1, dtype=np.int64)
    return ranks
