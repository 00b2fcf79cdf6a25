"""Score normalisers: what a bank of other queries says about each answer, taken out of the answer's scores.

Some answers (a video, from text to video) come near to nearly every query. How near, a bank of queries tells: captions
of a training set, or all queries of a run. Every normaliser here is one number for each answer, found from the bank,
and a rule that uses it; the rule needs a query's own scores only, so a ranking depends on no other query.

The bank's scores A [R, C], R queries and C answers, pass by in blocks of rows: dense ones (``DenseBlock``) or the K
candidates of each query (``CandidateBlock``). A 10^5 x 10^5 matrix never exists. What is in memory:

    sinkhorn       one block, 16 bytes a query of the bank, 24 bytes an answer; the bank passes 1 + iterations times
    dual-softmax   one block, 24 bytes an answer; the bank passes once
    qb-norm        one block, 25 bytes an answer; the bank passes once

A dense block of r rows needs 24 r C bytes while it is being added up: ``dense_bank`` cuts the rows accordingly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from index_store.errors import InputError

Method = Literal["sinkhorn", "dual-softmax", "qb-norm"]
Floats = NDArray[np.float64]

SINKHORN_ITERATIONS = 4
"""As in UCoFiA's evaluation."""
_BLOCK_BYTES = 64 << 20
_BYTES_PER_SCORE = 24
"""A float32 score, and the float64 numbers that are made of it."""


# -- the bank ---------------------------------------------------------------------------------------------------------


class Block(Protocol):
    """The scores of r queries of the bank with all C answers."""

    def over_answers(self, scale: float, log_answers: Floats) -> Floats:
        """Log sum_c exp(scale A_rc + log_answers_c), float64 [r]; log_answers [C]."""
        ...

    def over_queries(self, scale: float, log_queries: Floats, num_answers: int) -> Floats:
        """Log sum_r exp(scale A_rc + log_queries_r), float64 [C]; log_queries [r]."""
        ...

    def best(self) -> NDArray[np.int64]:
        """The answer with the largest score of each query, int64 [r]; of equal ones the first."""
        ...


Bank = Callable[[], Iterable[Block]]
"""Gives all blocks, the same ones in the same order each time it is called."""


@dataclass(frozen=True, slots=True, eq=False)
class DenseBlock:
    """Every score of r queries."""

    scores: NDArray[np.floating]
    """[r, C], finite."""

    def over_answers(self, scale: float, log_answers: Floats) -> Floats:
        """See ``Block``."""
        return _logsumexp(scale * self.scores.astype(np.float64) + log_answers, axis=1)

    def over_queries(self, scale: float, log_queries: Floats, num_answers: int) -> Floats:
        """See ``Block``."""
        return _logsumexp(scale * self.scores.astype(np.float64) + log_queries[:, None], axis=0)

    def best(self) -> NDArray[np.int64]:
        """See ``Block``."""
        best: NDArray[np.int64] = self.scores.argmax(axis=1)
        return best


@dataclass(frozen=True, slots=True, eq=False)
class CandidateBlock:
    """The scores of r queries with K candidates each; to any other answer a query gives its smallest of these.

    The broad view leaves out what it finds worse, so the smallest is rather too much than too little. With K = C
    nothing is left out, and the block is the dense one.
    """

    scores: NDArray[np.floating]
    """[r, K], finite; anything where there is no candidate. A query has one candidate at least."""
    answers: NDArray[np.int64]
    """[r, K], from 0, none twice in a row; -1 = no candidate."""

    def over_answers(self, scale: float, log_answers: Floats) -> Floats:
        """See ``Block``. Sums exp(A + b) - exp(rest + b), never below 0, to what the rest would give everywhere."""
        scores, rest = self._scaled(scale)
        added = rest[:, None] + _log_expm1(scores - rest[:, None]) + log_answers[self.answers]
        everywhere = rest + _logsumexp(log_answers[None], axis=1)
        return np.logaddexp(everywhere, _logsumexp(np.where(self.answers >= 0, added, -np.inf), axis=1))

    def over_queries(self, scale: float, log_queries: Floats, num_answers: int) -> Floats:
        """See ``Block``."""
        scores, rest = self._scaled(scale)
        rows, columns = np.nonzero(self.answers >= 0)
        added = (rest[:, None] + _log_expm1(scores - rest[:, None]) + log_queries[:, None])[rows, columns]
        everywhere = _logsumexp((rest + log_queries)[None], axis=1)
        return np.logaddexp(everywhere, _grouped_logsumexp(added, self.answers[rows, columns], num_answers))

    def best(self) -> NDArray[np.int64]:
        """See ``Block``."""
        scores = np.where(self.answers >= 0, self.scores, -np.inf)
        is_best = (scores == scores.max(axis=1, keepdims=True)) & (self.answers >= 0)
        first: NDArray[np.int64] = np.where(is_best, self.answers, np.iinfo(np.int64).max).min(axis=1)
        return first

    def _scaled(self, scale: float) -> tuple[Floats, Floats]:
        """Scores float64 [r, K] and each query's score of everything else [r], in logits."""
        scores = scale * self.scores.astype(np.float64)
        rest = np.where(self.answers >= 0, scores, np.inf).min(axis=1)
        return np.where(self.answers >= 0, scores, rest[:, None]), rest


def dense_bank(
    scores_of: Callable[[slice], NDArray[np.floating]],
    num_queries: int,
    num_answers: int,
    block_bytes: int = _BLOCK_BYTES,
) -> Bank:
    """The bank whose scores [r, C] of some of its queries ``scores_of`` gives, r as ``block_bytes`` allows.

    ``scores_of`` is asked again in each pass: what it gives is not kept.
    """
    step = max(1, block_bytes // (_BYTES_PER_SCORE * max(1, num_answers)))

    def blocks() -> Iterator[Block]:
        for start in range(0, num_queries, step):
            yield DenseBlock(scores_of(slice(start, min(start + step, num_queries))))

    return blocks


# -- what the bank says -----------------------------------------------------------------------------------------------


def sinkhorn_biases(
    bank: Bank, num_answers: int, scale: float = 1.0, iterations: int = SINKHORN_ITERATIONS
) -> tuple[Floats, Floats]:
    """Row biases float64 [R] and column biases [C] of Sinkhorn-Knopp, as UCoFiA adds them to its logits.

    With K = exp(scale A): b = 1 / sum_r K_rc, then ``iterations`` times a = 1 / (K b), b = 1 / (a K); the biases are
    log_softmax(log a) and log_softmax(log b). In logarithms throughout: nothing overflows and no shift is needed.
    """
    log_b = -column_logsumexp(bank, num_answers, scale)
    log_a: list[Floats] = []
    for _ in range(iterations):
        log_a, total = [], np.full(num_answers, -np.inf)
        for block in bank():
            log_a.append(-block.over_answers(scale, log_b))
            total = np.logaddexp(total, block.over_queries(scale, log_a[-1], num_answers))
        log_b = -total
    rows = np.concatenate(log_a) if log_a else np.zeros(0)
    return _log_softmax(rows), _log_softmax(log_b)


def column_logsumexp(bank: Bank, num_answers: int, scale: float = 1.0) -> Floats:
    """Log sum_r exp(scale A_rc) of every answer, float64 [C], over the whole bank. Raises InputError for none."""
    total = np.full(num_answers, -np.inf)
    num_queries = 0
    for block in bank():
        zeros = np.zeros(len(block.best()))
        num_queries += len(zeros)
        total = np.logaddexp(total, block.over_queries(scale, zeros, num_answers))
    if num_queries == 0:
        raise InputError("the bank of the normaliser has no query; give one text at least")
    return total


# -- the rules --------------------------------------------------------------------------------------------------------


class Normaliser(Protocol):
    """Changes the scores of a query with answers."""

    def __call__(self, scores: NDArray[np.floating], answers: NDArray[np.int64]) -> Floats:
        """The new scores float64 [Q, K] of Q queries with K answers each; answers int64 [Q, K], from 0.

        -1 = no answer: the score there is returned as it is.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Sinkhorn:
    """Scores plus the bias of the answer, as in UCoFiA's evaluation (Wang et al., ICCV 2023)."""

    biases: Floats
    """[C], on the scale of the scores."""

    @staticmethod
    def of(bank: Bank, num_answers: int, scale: float = 1.0) -> Sinkhorn:
        """From a bank. ``scale`` makes logits of the scores; the bias is brought back to the scores' scale."""
        return Sinkhorn(sinkhorn_biases(bank, num_answers, scale)[1] / scale)

    def __call__(self, scores: NDArray[np.floating], answers: NDArray[np.int64]) -> Floats:
        """See ``Normaliser``."""
        return scores.astype(np.float64) + np.where(answers >= 0, self.biases[answers], 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class DualSoftmax:
    """Scores times their softmax over the queries: X * softmax(scale X, over the bank's queries).

    As published the bank is all queries of the run: TS2-Net (ECCV 2022) and EERCF with scale 1 on logits, CLIP-ViP
    (ICLR 2023) with scale 100 on cosines.
    """

    log_sums: Floats
    """[C], log sum_r exp(scale A_rc)."""
    scale: float

    @staticmethod
    def of(bank: Bank, num_answers: int, scale: float = 1.0) -> DualSoftmax:
        """From a bank."""
        return DualSoftmax(column_logsumexp(bank, num_answers, scale), scale)

    def __call__(self, scores: NDArray[np.floating], answers: NDArray[np.int64]) -> Floats:
        """See ``Normaliser``."""
        wide = scores.astype(np.float64)
        finite = np.where(answers >= 0, wide, 0.0)
        return np.where(answers >= 0, finite * np.exp(self.scale * finite - self.log_sums[answers]), wide)


@dataclass(frozen=True, slots=True, eq=False)
class QueryBank:
    """QB-Norm with the dynamic inverted softmax (Bogolin et al., CVPR 2022, section 3.3).

    A query whose best answer is also the best of some query of the bank gets beta s - log sum_r exp(beta A_rc) for all
    its answers, the logarithm of the inverted softmax; any other query keeps its scores.
    """

    log_sums: Floats
    """[C], log sum_r exp(beta A_rc)."""
    is_hub: NDArray[np.bool_]
    """[C], the activation set: True = the best answer of some query of the bank."""
    beta: float

    @staticmethod
    def of(bank: Bank, num_answers: int, beta: float = 20.0) -> QueryBank:
        """From a bank; 20 is the authors' beta for cosines."""
        is_hub = np.zeros(num_answers, np.bool_)

        def watched() -> Iterator[Block]:
            for block in bank():
                is_hub[block.best()] = True
                yield block

        return QueryBank(column_logsumexp(watched, num_answers, beta), is_hub, beta)

    def __call__(self, scores: NDArray[np.floating], answers: NDArray[np.int64]) -> Floats:
        """See ``Normaliser``."""
        wide = scores.astype(np.float64)
        best = CandidateBlock(wide, answers).best()
        best = np.where((answers >= 0).any(axis=1), best, -1)
        is_active = self.is_hub[best] & (best >= 0)
        normalised = self.beta * wide - self.log_sums[answers]
        return np.where(is_active[:, None] & (answers >= 0), normalised, wide)


def make_normaliser(method: Method, bank: Bank, num_answers: int, logit_scale: float) -> Normaliser:
    """The normaliser with this name. ``logit_scale`` makes logits of the scores: 1 where they are logits already.

    QB-Norm's beta is a fifth of that, as the authors' 20 is of CLIP's 100.
    """
    if method == "sinkhorn":
        return Sinkhorn.of(bank, num_answers, logit_scale)
    if method == "dual-softmax":
        return DualSoftmax.of(bank, num_answers, logit_scale)
    return QueryBank.of(bank, num_answers, logit_scale / 5)


def dual_softmax(scores: NDArray[np.floating], scale: float = 1.0) -> Floats:
    """X * softmax(scale X, over the rows) of a whole matrix X [T, V]: ``DualSoftmax`` with these rows as the bank."""
    whole = DualSoftmax.of(lambda: [DenseBlock(scores)], scores.shape[1], scale)
    return whole(scores, np.broadcast_to(np.arange(scores.shape[1]), scores.shape))


# -- sums of exponentials ---------------------------------------------------------------------------------------------


def _logsumexp(values: Floats, axis: int) -> Floats:
    """Log sum exp over an axis; -inf for nothing but -inf."""
    largest = values.max(axis=axis, keepdims=True, initial=-np.inf)
    shift = np.where(np.isfinite(largest), largest, 0.0)
    with np.errstate(divide="ignore"):
        found: Floats = np.log(np.exp(values - shift).sum(axis=axis)) + np.squeeze(shift, axis)
    return found


def _grouped_logsumexp(values: Floats, groups: NDArray[np.int64], num_groups: int) -> Floats:
    """Log sum exp of the values [n] of each group, float64 [num_groups]; -inf for an empty one."""
    largest = np.full(num_groups, -np.inf)
    np.maximum.at(largest, groups, values)
    shift = np.where(np.isfinite(largest), largest, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.bincount(groups, np.exp(values - shift[groups]), num_groups)) + shift


def _log_expm1(values: Floats) -> Floats:
    """log(exp(x) - 1) for x >= 0, -inf at 0; without overflow."""
    with np.errstate(divide="ignore"):
        return values + np.log(-np.expm1(-values))


def _log_softmax(values: Floats) -> Floats:
    return values - _logsumexp(values[None], axis=1) if len(values) else values
