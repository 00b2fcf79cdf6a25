from __future__ import annotations

from math import exp, log
from typing import get_args

import pytest
import torch
from torch import Tensor

from stages.training.losses import (
    ON_COSINES,
    Contrast,
    contrast,
    contrastive,
    cross_entropy,
    dual_softmax_contrastive,
    hard_negatives,
    max_margin,
    mil_nce,
    shared_video,
    triplet,
)

S = torch.tensor([[2.0, 1.0, 0.0], [0.5, 3.0, 1.0], [1.0, 2.0, 2.5]])


def nll(right: float, *others: float) -> float:
    return -right + log(sum(map(exp, (right, *others))))


def test_one_direction_and_both() -> None:
    rows = (nll(2, 1, 0) + nll(3, 0.5, 1) + nll(2.5, 1, 2)) / 3
    columns = (nll(2, 0.5, 1) + nll(3, 1, 2) + nll(2.5, 0, 1)) / 3
    assert cross_entropy(S).item() == pytest.approx(rows)
    assert contrastive(S).item() == pytest.approx((rows + columns) / 2)
    assert contrastive(S, "sum").item() == pytest.approx(rows + columns)


def test_pairs_that_are_masked_out_are_no_negatives() -> None:
    masked = S.clone()
    masked[0, 1] = -torch.inf
    rows = (nll(2, 0) + nll(3, 0.5, 1) + nll(2.5, 1, 2)) / 3
    columns = (nll(2, 0.5, 1) + nll(3, 2) + nll(2.5, 0, 1)) / 3
    assert contrastive(masked).item() == pytest.approx((rows + columns) / 2)


def test_dual_softmax_weighs_by_the_other_queries() -> None:
    weighted = S * (S.exp() / S.exp().sum(dim=0))
    turned = S.T * (S.T.exp() / S.T.exp().sum(dim=0))
    expected = cross_entropy(weighted) + cross_entropy(turned)
    assert dual_softmax_contrastive(S).item() == pytest.approx(expected.item())


def test_the_hardest_negatives_count() -> None:
    rows = (nll(2, 1) + nll(3, 1) + nll(2.5, 2)) / 3
    columns = (nll(2, 1) + nll(3, 2) + nll(2.5, 1)) / 3
    assert hard_negatives(S, 1).item() == pytest.approx(rows + columns)
    assert hard_negatives(S, 2).item() == pytest.approx(contrastive(S, "sum").item())


def test_mil_nce_of_single_pairs_counts_row_and_column_together() -> None:
    expected = (nll(2, 0.5, 1, 1, 0) + nll(3, 1, 2, 0.5, 1) + nll(2.5, 0, 1, 1, 2)) / 3
    assert mil_nce(S).item() == pytest.approx(expected)


def test_mil_nce_of_groups_has_several_right_ones() -> None:
    """Groups of two: item 1 and item 3 count, each with two right scores in its column."""
    scores = torch.arange(16.0).view(4, 4) / 8

    def loss(item: int, own: tuple[int, int], other: tuple[int, int]) -> float:
        right = sum(exp(scores[text, item]) for text in own)
        wrong = sum(exp(scores[text, item]) + exp(scores[item, text]) for text in other)
        return -log(right / (right + wrong))

    assert mil_nce(scores, 2).item() == pytest.approx((loss(1, (0, 1), (2, 3)) + loss(3, (2, 3), (0, 1))) / 2)


def test_max_margin_counts_the_diagonal_and_weighs_groups() -> None:
    rows = [[0.5, -0.5, -1.5], [-2.0, 0.5, -1.5], [-1.0, 0.0, 0.5]]  # 0.5 + S_ij - S_ii
    columns = [[0.5, -1.5, -2.0], [-1.0, 0.5, -1.0], [-0.5, -0.5, 0.5]]
    expected = sum(max(0.0, value) for row in rows + columns for value in row) / 9
    assert max_margin(S, 0.5).item() == pytest.approx(expected)
    assert max_margin(S, 0.5, 1, 0.5).item() == pytest.approx(expected)  # groups of one are not weighed
    scores = torch.zeros(4, 4)  # every entry is 2 margin
    assert max_margin(scores, 1.0, 2, 0.25).item() == pytest.approx(2 * (2 * 0.25 + 2 * 0.75 / 1) / 2)


def test_triplets_add_up_what_is_within_the_margin() -> None:
    rows = {(1, 2): 0.0, (2, 1): 1.0 + 2.0 - 2.5, (0, 1): 1.0 + 1.0 - 2.0}
    columns = {(2, 0): 1.0 + 1.0 - 2.0, (2, 1): 1.0 + 2.0 - 3.0}
    assert triplet(S, 1.0).item() == pytest.approx(sum(rows.values()) + sum(columns.values()))
    # margin 1.5: rows 0.5 | 1.0, and 0 for the second; columns 0.5, 0.5, 0
    assert triplet(S, 1.5, is_hardest_only=True).item() == pytest.approx(0.5 + 0.0 + 1.0 + 0.5 + 0.5 + 0.0)
    assert triplet(S, 2.0).item() > triplet(S, 2.0, is_hardest_only=True).item()


def test_two_texts_of_a_video_are_no_negatives_of_each_other() -> None:
    captions = S.flip(0)
    found = shared_video(S, captions).item()
    to_texts = 0.0
    for video in range(3):
        wrong = [kind[text, video].item() for kind in (S, captions) for text in range(3) if text != video]
        to_texts += (nll(S[video, video].item(), *wrong) + nll(captions[video, video].item(), *wrong)) / 3
    assert found == pytest.approx(cross_entropy(S).item() + cross_entropy(captions).item() + to_texts)


@pytest.mark.parametrize("name", get_args(Contrast))
def test_every_contrast_of_the_broad_view_has_a_finite_gradient_around_pairs_that_are_masked_out(
    name: Contrast,
) -> None:
    generator = torch.Generator().manual_seed(1)
    cosines = (torch.rand(6, 6, generator=generator) / 2).requires_grad_()
    scale = torch.tensor(20.0, requires_grad=True)
    masked = torch.zeros(6, 6, dtype=torch.bool)
    masked[1, 4] = masked[4, 1] = True
    scores = (cosines if name in ON_COSINES else scale * cosines).masked_fill(masked, -torch.inf)
    loss = contrast(name, scores)
    (gradient, of_scale) = torch.autograd.grad(loss, (cosines, scale), allow_unused=True)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert (gradient[masked] == 0).all()
    assert (gradient.diagonal() <= 0).all()  # pairs that belong together are drawn together
    assert (of_scale is None) == (name in ON_COSINES)


@pytest.mark.parametrize(
    "loss",
    [
        contrastive,
        dual_softmax_contrastive,
        lambda scores: hard_negatives(scores, 2),
        lambda scores: mil_nce(scores, 2),
        lambda scores: max_margin(scores, 0.3, 2, 0.5),
        lambda scores: triplet(scores, 3.0, True),
        lambda scores: shared_video(scores, 2 * scores),
    ],
)
def test_gradients_are_those_of_finite_differences(loss: object) -> None:
    assert callable(loss)
    generator = torch.Generator().manual_seed(3)
    scores: Tensor = torch.randn(4, 4, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(loss, scores)
