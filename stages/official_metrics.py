"""The metrics as the authors of the published systems count them, over a whole matrix of scores.

They differ from ``stages.metrics`` where scores tie: a right answer that ties with n others counts n + 1 times, once
for each place that has its score, so that there are more "ranks" than queries. Places are from 0, ranks from 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating[Any]]
Places = NDArray[np.int64]

FAMILY_CUTOFFS = (1, 5, 10)
"""Of the CLIP4Clip family; TS2-Net adds 50."""


def tied_places(scores: Scores, right: NDArray[np.int64] | None = None) -> Places:
    """Every place in its sorted row at which the right answer's score stands; int64 [at least Q], row by row.

    scores [Q, N]; right int64 [Q], the column of each row's right answer, by default the diagonal.
    """
    columns = np.arange(len(scores)) if right is None else right
    ordered = np.sort(-scores, axis=1)
    places: Places = np.nonzero(ordered == -scores[np.arange(len(scores)), columns][:, None])[1]
    return places


def family_metrics(places: Places, cutoffs: Sequence[int] = FAMILY_CUTOFFS) -> dict[str, float]:
    """R@k in percent, median rank (under both of its names) and mean rank, as the CLIP4Clip family reports them."""
    recall = {f"R{k}": float((places < k).sum()) * 100 / len(places) for k in cutoffs}
    median = float(np.median(places)) + 1
    return {**recall, "MR": median, "MedianR": median, "MeanR": float(places.mean()) + 1}


def clip_vip_metrics(places: Places) -> NDArray[np.float64]:
    """R@1, R@5, R@10 as fractions, median rank and mean rank: float64 [5]."""
    recall = [float((places < k).mean()) for k in FAMILY_CUTOFFS]
    return np.array([*recall, float(np.median(places)) + 1, float(places.mean()) + 1])


# -- several captions a video -----------------------------------------------------------------------------------------


def stacked(scores: Scores, captions_per_video: NDArray[np.int64]) -> Scores:
    """[V, C, V]: the captions of each video together, up to the largest number C of them; -inf where there is none.

    scores [captions, V], the captions of the first video first.
    """
    largest, num_videos = int(captions_per_video.max()), len(captions_per_video)
    found = np.full((num_videos, largest, scores.shape[1]), -np.inf, scores.dtype)
    found[np.arange(largest) < captions_per_video[:, None]] = scores
    return found


def multi_caption_ranks(stack: Scores) -> Places:
    """The rank of each caption's video, from 1: int64 [captions]. Of equal scores the smaller column comes first.

    The authors leave the order of equal scores to an unstable sort.
    """
    order = np.argsort(-stack, axis=2, kind="stable")
    place = np.argsort(order, axis=2, kind="stable")
    own = np.arange(len(stack))
    is_caption = np.isfinite(stack[own, :, own])
    ranks: Places = place[own, :, own].T[is_caption.T] + 1
    return ranks


def multi_caption_metrics(ranks: Places, cutoffs: Sequence[int] = FAMILY_CUTOFFS) -> dict[str, float]:
    """R@k in percent, the lower median (under both of its names), mean and standard deviation of the ranks."""
    recall = {f"R{k}": float((ranks <= k).sum()) * 100 / len(ranks) for k in cutoffs}
    median = float(np.sort(ranks)[(len(ranks) - 1) // 2])
    return {
        **recall,
        "MedianR": median,
        "MR": median,
        "MeanR": float(ranks.mean()),
        "Std_Rank": float(ranks.std()),
    }


def groups_by_best(stack: Scores) -> Scores:
    """[V, V]: rows are videos as queries, columns groups of captions, each with the score of its best caption."""
    best: Scores = stack.max(axis=1).T
    return best
