"""Rankings with normalised scores: first a bank is ranked like any queries, then its scores correct those asked for.

What the bank is: from text to video, captions that are given or, as dual softmax is published, the queries themselves;
from video to text, the videos that are asked for. A bank of R queries keeps 12 bytes for each of its R x K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from index_store.records import Query, Ranking
from stages.normalise import CandidateBlock, Method, Normaliser, Sinkhorn, make_normaliser
from stages.rerankers.base import Reranker

RankWith = Callable[[Iterable[Query], Reranker], Iterator[Ranking]]
"""Ranks queries with a reranker; everything else about it is settled."""

_ROWS_PER_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Normalisation:
    """What ``--normalise`` and ``--bank`` ask for."""

    method: Method
    bank: tuple[str, ...]
    """Texts; none: the queries themselves."""
    logit_scale: float
    """Of the image-text model: what makes logits of cosines."""


def normalised(
    normalisation: Normalisation,
    rank: RankWith,
    reranker: Reranker,
    queries: Iterable[Query],
    video_ids: NDArray[np.int64],
) -> Iterator[Ranking]:
    """The rankings of ``queries`` by normalised scores, in their order; equal scores by video id.

    video_ids int64 [N], ascending: every video that can be a candidate. Without a bank all rankings are held until the
    last one, and a query's depends on the others; with one it does not.
    """
    bank = [Query(str(number), text) for number, text in enumerate(normalisation.bank)]
    own = [] if bank else list(rank(queries, reranker))
    asked = bank or list(queries)

    def candidates(part: Reranker) -> Iterator[tuple[NDArray[np.floating], NDArray[np.int64]]]:
        rankings = own if own and part is reranker else rank(asked, part)
        return ((_scores(ranking)[None], _places(ranking, video_ids)[None]) for ranking in rankings)

    normaliser = fit(normalisation, reranker, candidates, len(video_ids))
    for ranking in own or rank(queries, reranker):
        scores = normaliser(_scores(ranking)[None], _places(ranking, video_ids)[None])[0]
        hits = [replace(hit, focused_score=float(score)) for hit, score in zip(ranking.hits, scores, strict=True)]
        yield Ranking(ranking.query_id, tuple(sorted(hits, key=lambda hit: (-hit.score, hit.video_id))))


def fit(
    normalisation: Normalisation,
    reranker: Reranker,
    candidates: Callable[[Reranker], Iterable[tuple[NDArray[np.floating], NDArray[np.int64]]]],
    num_answers: int,
) -> Normaliser:
    """The normaliser for this reranker's scores, from what it gives a bank.

    ``candidates``: scores [r, K] and answers int64 [r, K], from 0, -1 = none, of some of the bank's queries at a time.
    Sinkhorn-Knopp has a bias for each similarity that a method adds up (UCoFiA's three), and their mean is the bias of
    the mean.
    """

    def normaliser(part: Reranker) -> Normaliser:
        blocks = list(_blocks(candidates(part)))
        factor = logit_factor(part, normalisation.logit_scale)
        return make_normaliser(normalisation.method, lambda: blocks, num_answers, factor)

    first, *others = [normaliser(part) for part in bank_parts(normalisation, reranker)]
    if not isinstance(first, Sinkhorn):
        return first
    biases = [first.biases, *(other.biases for other in others if isinstance(other, Sinkhorn))]
    return Sinkhorn(np.mean(biases, axis=0))


def bank_parts(normalisation: Normalisation, reranker: Reranker) -> Sequence[Reranker]:
    """What ranks the bank: the reranker, or where each of its similarities has a bias the rerankers for those."""
    parts: Sequence[Reranker] = getattr(reranker, "parts", ())
    return parts if parts and normalisation.method == "sinkhorn" else (reranker,)


def logit_factor(reranker: Reranker, logit_scale: float) -> float:
    """What makes logits of a reranker's scores: 1 for a method with a logit scale of its own."""
    own = getattr(getattr(reranker, "scorer", None), "logit_scale", None)
    return logit_scale if own is None or float(own.detach()) == 0 else 1.0


def _blocks(candidates: Iterable[tuple[NDArray[np.floating], NDArray[np.int64]]]) -> Iterator[CandidateBlock]:
    """The same as few blocks, padded."""
    waiting: list[tuple[NDArray[np.floating], NDArray[np.int64]]] = []
    num_waiting = 0
    for part in candidates:
        waiting.append(part)
        num_waiting += len(part[0])
        if num_waiting >= _ROWS_PER_BLOCK:
            yield _block(waiting)
            waiting, num_waiting = [], 0
    if waiting:
        yield _block(waiting)


def _block(parts: Sequence[tuple[NDArray[np.floating], NDArray[np.int64]]]) -> CandidateBlock:
    width = max(scores.shape[1] for scores, _ in parts)
    padding = [((0, 0), (0, width - scores.shape[1])) for scores, _ in parts]
    return CandidateBlock(
        np.concatenate(
            [np.pad(scores.astype(np.float32), pad) for (scores, _), pad in zip(parts, padding, strict=True)]
        ),
        np.concatenate(
            [np.pad(answers, pad, constant_values=-1) for (_, answers), pad in zip(parts, padding, strict=True)]
        ),
    )


def _scores(ranking: Ranking) -> NDArray[np.float64]:
    return np.array([hit.score for hit in ranking.hits], np.float64)


def _places(ranking: Ranking, video_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of ``video_ids`` each hit is, int64 [K]."""
    return np.searchsorted(video_ids, np.array([hit.video_id for hit in ranking.hits], np.int64)).astype(np.int64)
