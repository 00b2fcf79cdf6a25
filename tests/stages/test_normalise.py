from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index_store.errors import InputError
from stages.normalise import (
    Bank,
    CandidateBlock,
    DenseBlock,
    DualSoftmax,
    QueryBank,
    Sinkhorn,
    column_logsumexp,
    dense_bank,
    dual_softmax,
    make_normaliser,
    sinkhorn_biases,
)

METHODS = ("sinkhorn", "dual-softmax", "qb-norm")


def logits(seed: int, *shape: int) -> NDArray[np.float32]:
    return (10 + 6 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def whole(scores: NDArray[np.floating]) -> Bank:
    return lambda: [DenseBlock(scores)]


def every(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """Every answer is a candidate of every query."""
    return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)


def test_sinkhorn_is_the_textbook_iteration() -> None:
    scores = logits(0, 9, 5).astype(np.float64)
    kernel = np.exp(scores - scores.max())
    b = 1 / kernel.sum(axis=0)
    for _ in range(4):
        a = 1 / (kernel @ b)
        b = 1 / (a @ kernel)
    rows, columns = sinkhorn_biases(whole(scores), 5)
    np.testing.assert_allclose(rows, np.log(a / a.sum()), atol=1e-12)
    np.testing.assert_allclose(columns, np.log(b / b.sum()), atol=1e-12)


def test_sinkhorn_holds_where_exponentials_do_not() -> None:
    """exp(0 - 2000) is 0: a plain iteration would divide by it."""
    scores = np.array([[0.0, 2000.0], [1.0, 1999.0]])
    rows, columns = sinkhorn_biases(whole(scores), 2)
    assert np.isfinite(rows).all()
    assert np.isfinite(columns).all()


@pytest.mark.slow
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 9), st.integers(1, 2000))
@settings(deadline=None)
def test_blocks_give_what_the_whole_gives(seed: int, num_queries: int, num_answers: int, block_bytes: int) -> None:
    scores = logits(seed, num_queries, num_answers)
    blocked = dense_bank(lambda rows: scores[rows], num_queries, num_answers, block_bytes)
    for ours, theirs in zip(
        sinkhorn_biases(blocked, num_answers), sinkhorn_biases(whole(scores), num_answers), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    tests = logits(seed + 1, 4, num_answers)
    for method in METHODS:
        one, other = (make_normaliser(method, bank, num_answers, 1.0) for bank in (blocked, whole(scores)))  # type: ignore[arg-type]
        np.testing.assert_allclose(one(tests, every(tests)), other(tests, every(tests)), rtol=1e-11, atol=1e-11)


@pytest.mark.slow
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 9))
@settings(deadline=None)
def test_all_answers_as_candidates_in_any_order_are_the_dense_bank(
    seed: int, num_queries: int, num_answers: int
) -> None:
    scores = logits(seed, num_queries, num_answers)
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random(scores.shape), axis=1)
    block = CandidateBlock(np.take_along_axis(scores, order, axis=1), order)
    dense = DenseBlock(scores)
    answers, queries = rng.standard_normal(num_answers), rng.standard_normal(num_queries)
    np.testing.assert_allclose(block.over_answers(0.5, answers), dense.over_answers(0.5, answers), atol=1e-10)
    np.testing.assert_allclose(
        block.over_queries(0.5, queries, num_answers), dense.over_queries(0.5, queries, num_answers), atol=1e-10
    )
    assert block.best().tolist() == dense.best().tolist()


def test_what_a_query_did_not_recall_counts_as_its_smallest_score() -> None:
    block = CandidateBlock(np.array([[5.0, 3.0, 0.0], [1.0, 0.0, 0.0]]), np.array([[2, 0, -1], [1, -1, -1]]))
    dense = DenseBlock(np.array([[3.0, 3, 5, 3], [1, 1, 1, 1]]))
    answers, queries = np.array([0.1, -0.2, 0.3, 0.0]), np.array([0.5, -1.0])
    np.testing.assert_allclose(block.over_answers(2.0, answers), dense.over_answers(2.0, answers), atol=1e-12)
    np.testing.assert_allclose(block.over_queries(2.0, queries, 4), dense.over_queries(2.0, queries, 4), atol=1e-12)
    assert block.best().tolist() == [2, 1]


def test_dual_softmax_is_the_product_with_the_softmax_over_texts() -> None:
    cosines = np.array([[0.3, 0.1], [0.2, 0.4], [0.25, 0.1]])
    softmax = np.exp(100 * cosines) / np.exp(100 * cosines).sum(axis=0)
    np.testing.assert_allclose(dual_softmax(cosines, 100.0), cosines * softmax, rtol=1e-12)


def test_qb_norm_changes_only_queries_whose_best_answer_is_a_hub() -> None:
    """The dynamic inverted softmax, by hand: answer 0 is the best of both queries of the bank, 1 and 2 of none."""
    bank = np.array([[0.5, 0.1, 0.2], [0.6, 0.2, 0.1]])
    tests = np.array([[0.5, 0.45, 0.1], [0.1, 0.2, 0.15]])
    normaliser = QueryBank.of(whole(bank), 3)
    found = normaliser(tests, every(tests))
    inverted = np.exp(20 * tests[0]) / np.exp(20 * bank).sum(axis=0)
    np.testing.assert_allclose(np.exp(found[0]), inverted, rtol=1e-12)
    assert found[0].argmax() == 1  # the hub is no longer first
    np.testing.assert_array_equal(found[1], tests[1])


def test_a_bias_lowers_what_the_whole_bank_likes() -> None:
    bank = np.array([[5.0, 1, 1], [5, 2, 1], [5, 1, 2]])
    biases = Sinkhorn.of(whole(bank), 3).biases
    assert biases.argmin() == 0
    assert Sinkhorn.of(whole(bank / 100), 3, 100.0).biases * 100 == pytest.approx(biases)


@pytest.mark.parametrize("method", METHODS)
def test_a_place_without_an_answer_keeps_its_score(method: str) -> None:
    bank = logits(3, 6, 4)
    normaliser = make_normaliser(method, whole(bank), 4, 1.0)  # type: ignore[arg-type]
    scores = np.array([[9.0, 8.0, -np.inf], [-np.inf] * 3])
    found = normaliser(scores, np.array([[2, 0, -1], [-1, -1, -1]]))
    assert np.isneginf(found[:, 2]).all()
    assert np.isfinite(found[0, :2]).all()


@pytest.mark.parametrize("fit", [Sinkhorn.of, DualSoftmax.of, QueryBank.of])
def test_an_empty_bank_is_an_error(fit: Callable[[Bank, int], object]) -> None:
    with pytest.raises(InputError, match="no query"):
        fit(list, 3)


@pytest.mark.slow
def test_a_large_bank_never_exists_as_a_whole() -> None:
    """20,000 x 2,000 scores are 320 MB in float64; the blocks take 8 MB."""
    rng = np.random.default_rng(0)
    queries, answers = (rng.standard_normal((number, 4)).astype(np.float32) for number in (20_000, 2_000))
    bank = dense_bank(lambda rows: queries[rows] @ answers.T, 20_000, 2_000, 8 << 20)
    tracemalloc.start()
    column_logsumexp(bank, 2_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20
