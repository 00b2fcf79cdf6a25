from __future__ import annotations

import pytest

from stages.fuse import fuse


def test_scores_are_sums_of_reciprocal_ranks() -> None:
    fused = fuse([{"q": ["a", "b", "c"]}, {"q": ["c", "a"]}])
    assert fused == {
        "q": [
            ("a", pytest.approx(1 / 61 + 1 / 62)),
            ("c", pytest.approx(1 / 63 + 1 / 61)),
            ("b", pytest.approx(1 / 62)),
        ]
    }
    assert fuse([{"q": ["a", "b"]}], k=0)["q"] == [("a", 1.0), ("b", 0.5)]


def test_ties_are_ordered_by_key_whatever_the_order_of_the_runs() -> None:
    runs = [{"q": ["a", "b", "c"]}, {"q": ["b", "c", "a"]}, {"q": ["c", "a", "b"]}]
    expected = fuse(runs)
    assert [key for key, _ in expected["q"]] == ["a", "b", "c"]
    assert len({score for _, score in expected["q"]}) == 1
    assert fuse(runs[::-1]) == fuse([runs[1], runs[2], runs[0]]) == expected


def test_a_query_may_be_in_some_runs_only() -> None:
    fused = fuse([{"q1": ["a"]}, {"q2": ["b"], "q1": ["b"]}])
    assert list(fused) == ["q1", "q2"]
    assert [key for key, _ in fused["q1"]] == ["a", "b"]
    assert fused["q2"] == [("b", 1 / 61)]
