from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.metrics import metrics, ranks_of_best
from stages.official_metrics import (
    clip_vip_metrics,
    family_metrics,
    groups_by_best,
    multi_caption_metrics,
    multi_caption_ranks,
    stacked,
    tied_places,
)


def test_a_tied_place_counts_as_often_as_it_is_tied() -> None:
    scores = np.array([[3.0, 1.0, 3.0], [0.0, 5.0, 1.0], [2.0, 2.0, 2.0]])
    assert tied_places(scores).tolist() == [0, 1, 0, 0, 1, 2]
    found = family_metrics(tied_places(scores))
    assert found == {"R1": 50.0, "R5": 100.0, "R10": 100.0, "MR": 1.5, "MedianR": 1.5, "MeanR": 4 / 6 + 1}
    assert clip_vip_metrics(tied_places(scores)).tolist() == [0.5, 1.0, 1.0, 1.5, 4 / 6 + 1]
    assert tied_places(scores, np.array([1, 2, 0])).tolist() == [2, 1, 0, 1, 2]


@given(st.integers(0, 10_000), st.integers(2, 30))
@settings(deadline=None, max_examples=50)
def test_without_ties_they_are_ours(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.permutation(size * size).reshape(size, size).astype(np.float32)
    ours, theirs = metrics(ranks_of_best(scores, np.eye(size, dtype=bool))), family_metrics(tied_places(scores))
    assert [theirs["R1"], theirs["R5"], theirs["R10"]] == pytest.approx(list(ours.recall_at.values()))
    assert (theirs["MedianR"], theirs["MeanR"]) == (ours.median_rank, pytest.approx(ours.mean_rank))


@given(st.integers(0, 10_000), st.lists(st.integers(1, 5), min_size=2, max_size=8))
@settings(deadline=None, max_examples=50)
def test_several_captions_a_video_are_ours_one_by_one_and_as_groups(seed: int, numbers: list[int]) -> None:
    rng = np.random.default_rng(seed)
    counts = np.array(numbers)
    owner = np.repeat(np.arange(len(counts)), counts)
    scores = rng.permutation(len(owner) * len(counts)).reshape(len(owner), len(counts)).astype(np.float32)
    stack = stacked(scores, counts)
    assert stack.shape == (len(counts), counts.max(), len(counts))
    is_right = owner[:, None] == np.arange(len(counts))
    ours, found = ranks_of_best(scores, is_right), multi_caption_ranks(stack)
    assert sorted(found.tolist()) == sorted(ours.tolist())
    theirs = multi_caption_metrics(found)
    assert theirs["R1"] == pytest.approx(100 * float((ours == 1).mean()))
    assert (theirs["MeanR"], theirs["Std_Rank"]) == (pytest.approx(ours.mean()), pytest.approx(ours.std()))
    assert theirs["MedianR"] == sorted(ours.tolist())[(len(ours) - 1) // 2]
    best = np.array(
        [[scores[owner == group, video].max() for group in range(len(counts))] for video in range(len(counts))]
    )
    assert (groups_by_best(stack) == best).all()
