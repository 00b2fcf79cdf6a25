from __future__ import annotations

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.metrics import metrics, ranks_of_best


def test_metrics_by_hand() -> None:
    found = metrics(np.array([1, 1, 2, 5, 6, 11]))
    assert found.recall_at == {1: 100 * 2 / 6, 5: 100 * 4 / 6, 10: 100 * 5 / 6}
    assert found.median_rank == (2 + 5) / 2
    assert found.mean_rank == (1 + 1 + 2 + 5 + 6 + 11) / 6
    assert found.num_queries == 6
    assert metrics(np.array([3]), cutoffs=(2, 3)).recall_at == {2: 0.0, 3: 100.0}


@pytest.mark.parametrize(
    ("scores", "right", "rank"),
    [
        ([0.1, 0.9, 0.5], [1], 1),
        ([0.1, 0.9, 0.5], [0], 3),
        ([0.1, 0.9, 0.5], [0, 2], 2),  # of several right answers the best one counts
        ([0.5, 0.5, 0.5], [0], 1),  # ties: by id
        ([0.5, 0.5, 0.5], [2], 3),
        ([0.5, 0.9, 0.5, 0.5], [2, 3], 3),
        ([-np.inf, 0.2, -np.inf], [2], 3),
        ([-1.0, -2.0], [1], 2),
    ],
)
def test_ranks_by_hand(scores: list[float], right: list[int], rank: int) -> None:
    is_right = np.isin(np.arange(len(scores)), right)
    assert ranks_of_best(np.array([scores]), is_right[None]).tolist() == [rank]


def test_what_has_no_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="right answer"):
        ranks_of_best(np.zeros((2, 3)), np.array([[True, False, False], [False, False, False]]))
    with pytest.raises(ValueError, match="number"):
        ranks_of_best(np.array([[np.nan, 1.0]]), np.array([[False, True]]))
    with pytest.raises(ValueError, match="ranks must be"):
        metrics(np.array([], np.int64))
    with pytest.raises(ValueError, match="ranks must be"):
        metrics(np.array([0, 1]))


@st.composite
def judged_scores(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores with many ties, and one or more right answers each."""
    num_queries, num_answers = draw(st.integers(1, 5)), draw(st.integers(1, 25))
    flat = draw(st.lists(st.integers(-4, 4), min_size=num_queries * num_answers, max_size=num_queries * num_answers))
    right = [
        draw(st.sets(st.integers(0, num_answers - 1), min_size=1, max_size=min(4, num_answers)))
        for _ in range(num_queries)
    ]
    is_right = np.array([[column in columns for column in range(num_answers)] for columns in right])
    return np.array(flat).reshape(num_queries, num_answers) / 8, is_right


@given(judged_scores())
def test_metrics_equal_those_of_trec_eval(drawn: tuple[NDArray[np.float64], NDArray[np.bool_]]) -> None:
    """trec_eval puts the larger document name first where scores tie, so the smaller ids get the larger names."""
    scores, is_right = drawn
    names = [f"{99_999 - column}" for column in range(scores.shape[1])]
    run = {f"q{row}": dict(zip(names, line.tolist(), strict=True)) for row, line in enumerate(scores)}
    judged = {
        f"q{row}": {name: 1 for name, right in zip(names, line, strict=True) if right}
        for row, line in enumerate(is_right)
    }
    evaluated = pytrec_eval.RelevanceEvaluator(judged, {"success.1,5,10", "recip_rank"}).evaluate(run)
    ranks = ranks_of_best(scores, is_right)
    found = metrics(ranks)
    for k in (1, 5, 10):
        theirs = np.mean([line[f"success_{k}"] for line in evaluated.values()])
        assert found.recall_at[k] == pytest.approx(100 * theirs)
    theirs_ranks = [1 / evaluated[f"q{row}"]["recip_rank"] for row in range(len(ranks))]
    assert theirs_ranks == pytest.approx(ranks.tolist())
    assert found.median_rank == pytest.approx(np.median(theirs_ranks))
    assert found.mean_rank == pytest.approx(np.mean(theirs_ranks))


@pytest.mark.slow
@given(judged_scores())
def test_one_right_answer_makes_recall_and_success_the_same(
    drawn: tuple[NDArray[np.float64], NDArray[np.bool_]],
) -> None:
    scores, is_right = drawn
    only = np.zeros_like(is_right)
    only[np.arange(len(only)), is_right.argmax(axis=1)] = True
    names = [f"{99_999 - column}" for column in range(scores.shape[1])]
    run = {f"q{row}": dict(zip(names, line.tolist(), strict=True)) for row, line in enumerate(scores)}
    judged = {f"q{row}": {names[int(line.argmax())]: 1} for row, line in enumerate(only)}
    evaluated = pytrec_eval.RelevanceEvaluator(judged, {"recall.1,5,10"}).evaluate(run)
    found = metrics(ranks_of_best(scores, only))
    for k in (1, 5, 10):
        assert found.recall_at[k] == pytest.approx(100 * np.mean([line[f"recall_{k}"] for line in evaluated.values()]))
