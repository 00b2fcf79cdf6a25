"""Batches of captions and the candidate lists they are trained on, as inference would draw them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.training.pairs import PairCorpus, nearest

NEIGHBOURHOOD = 10
"""Neighbours are drawn among so many nearest ones."""


@dataclass(frozen=True, slots=True)
class Batch:
    """B captions of B different videos."""

    positions: NDArray[np.int64]
    """[B], of the videos in the corpus."""
    texts: list[str]


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """K candidates of each of B queries, the right one among them."""

    candidates: NDArray[np.int64]
    """int64 [B, K]."""
    target: Tensor
    """int64 [B], where in the list the right one is."""


def draw_batch(
    corpus: PairCorpus, allowed: NDArray[np.int64], size: int, neighbours: int, seed: int, step: int
) -> Batch:
    """The batch of this step: seeds in a random order that goes through all videos, each with some near neighbours.

    A caption of each at random. It depends on ``seed`` and ``step`` only, so that a resumed run goes on as it would.
    """
    size = min(size, len(allowed))
    num_seeds = max(1, size // (1 + neighbours))
    seeds = _sequence(allowed, seed, step * num_seeds, num_seeds)
    rng = np.random.default_rng([seed, 2, step])
    chosen = dict.fromkeys(seeds.tolist())
    if neighbours:
        near = nearest(corpus.pooled, seeds, allowed, min(NEIGHBOURHOOD, len(allowed) - 1))
        for row in near:
            chosen.update(dict.fromkeys(rng.permutation(row)[:neighbours].tolist()))
    others = rng.permutation(allowed)
    chosen.update(dict.fromkeys(others[: 2 * size].tolist()))  # neighbours may coincide: filled up with any
    positions = np.array(list(chosen)[:size], np.int64)
    texts = [corpus.captions[position][int(rng.integers(len(corpus.captions[position])))] for position in positions]
    return Batch(positions, texts)


def draw_pool(
    corpus: PairCorpus, allowed: NDArray[np.int64], batch: Batch, size: int, run: int, seed: int, step: int
) -> NDArray[np.int64]:
    """Positions, ascending, that this step's candidates are recalled from: ``size`` of the allowed ones, or all for 0.

    Those of the batch come first, then their nearest neighbours, whom they are mistaken for, then any. Each brings the
    other allowed ones of its run of ``run`` videos (see PairCorpus.split) along, which may make it some more.
    """
    if not 0 < size < len(allowed):
        return allowed
    number = min(NEIGHBOURHOOD, len(allowed) - 1)
    near = nearest(corpus.pooled, batch.positions, allowed, number).T.ravel()  # the nearest of each one first
    others = np.random.default_rng([seed, 4, step]).permutation(allowed)
    wanted = np.concatenate([batch.positions, near, others])
    runs = np.array(list(dict.fromkeys((wanted // run).tolist())), np.int64)
    chosen = (runs[:, None] * run + np.arange(run)).ravel()
    chosen = chosen[np.isin(chosen, allowed)]
    num_needed = int(np.isin(chosen // run, batch.positions // run).sum())
    within = chosen[: max(size, num_needed)]
    return np.sort(chosen[np.isin(chosen // run, within // run)])


def _sequence(allowed: NDArray[np.int64], seed: int, start: int, number: int) -> NDArray[np.int64]:
    """``number`` places from ``start`` of an endless sequence that goes through all videos again and again."""
    laps = range(start // len(allowed), (start + number - 1) // len(allowed) + 1)
    orders = [np.random.default_rng([seed, 3, lap]).permutation(len(allowed)) for lap in laps]
    first = start - laps[0] * len(allowed)
    chosen: NDArray[np.int64] = allowed[np.concatenate(orders)[first : first + number]]
    return chosen


def top_lists(scores: Tensor, right: Tensor, number: int) -> Lists:
    """The ``number`` best columns of scores [B, N] for each row, equal ones by column.

    Where the right column, right int64 [B], is not among them, the list is a later run of columns that holds it, at
    a place that depends on the column only: such a query still teaches, and the right one is not told by its low score.
    """
    number = min(number, scores.shape[1])
    order = scores.detach().cpu().sort(dim=1, descending=True, stable=True).indices
    right = right.cpu()
    place = (order == right[:, None]).int().argmax(dim=1)
    start = (place - right % number).clamp(0, scores.shape[1] - number)
    start = start.masked_fill(place < number, 0)
    found = order.gather(1, start[:, None] + torch.arange(number))
    return Lists(found.numpy(), place - start)


def same_text(texts: list[str]) -> Tensor:
    """Bool [B, B]: other rows with the very same sentence, which are not wrong answers."""
    same = torch.tensor([[one == other for other in texts] for one in texts])
    return same & ~torch.eye(len(texts), dtype=torch.bool)
