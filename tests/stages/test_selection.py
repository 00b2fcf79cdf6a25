from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages.rerankers.selection import PredictorA, PredictorB, TokenSelector, hard_top_k, perturbed_top_k


def frames(num_videos: int = 2, num_frames: int = 3, num_tokens: int = 6, width: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(num_videos, num_frames, num_tokens, width, generator=torch.Generator().manual_seed(seed))


def test_the_best_places_in_ascending_order_and_the_first_of_equal_ones() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.9, 0.3], [1.0, 1.0, 1.0, 1.0, 1.0]])
    assert hard_top_k(scores, 3).tolist() == [[1, 2, 3], [0, 1, 2]]


def test_without_weights_the_patches_nearest_to_the_frame_are_kept() -> None:
    tokens = torch.zeros(1, 1, 6, 2)
    tokens[0, 0] = torch.tensor([[1.0, 0], [0, 1], [2, 0.1], [-1, 0], [1, 1], [0.5, 0]])
    kept = TokenSelector()(tokens)
    assert torch.equal(kept[0, 0], tokens[0, 0, [0, 2, 4, 5]])


def test_a_store_with_fewer_patches_gives_fewer() -> None:
    assert TokenSelector()(frames(num_tokens=3)).shape == (2, 3, 3, 8)
    assert TokenSelector()(frames(num_tokens=1)).shape == (2, 3, 1, 8)


@pytest.mark.parametrize("kind", [PredictorA, PredictorB])
def test_zero_noise_is_the_plain_choice(kind: type[PredictorA] | type[PredictorB]) -> None:
    tokens = frames()
    selector = TokenSelector(kind(8))
    torch.testing.assert_close(selector(tokens, noise=torch.zeros(6, 4, 5)), selector(tokens))


def test_noise_mixes_patches_and_every_row_sums_to_one() -> None:
    noise = torch.randn(4, 50, 7, generator=torch.Generator().manual_seed(1))
    indicators = perturbed_top_k(torch.zeros(4, 7), noise, 0.05, 3)
    assert indicators.shape == (4, 3, 7)
    torch.testing.assert_close(indicators.sum(-1), torch.ones(4, 3))
    assert (indicators.amax(-1) < 1).all()


def test_the_gradient_is_the_diagonal_of_the_jacobian() -> None:
    """By hand: two draws over three places, k = 1."""
    scores = torch.tensor([[0.0, 0.0, 0.0]], requires_grad=True)
    noise = torch.tensor([[[1.0, 0.5, -2.0], [0.2, 0.8, 0.1]]])
    indicators = perturbed_top_k(scores, noise, 0.5, 1)
    assert indicators.tolist() == [[[0.5, 0.5, 0.0]]]
    (indicators * torch.tensor([3.0, 5.0, 7.0])).sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [[pytest.approx(3 * 1.0 / 2 / 0.5), pytest.approx(5 * 0.8 / 2 / 0.5), 0.0]]


def test_padding_has_a_say_in_nothing() -> None:
    """The mask matters to predictor B, which adds frames up; predictor A sees one frame at a time."""
    tokens = frames(num_videos=1)
    mask = torch.tensor([[True, True, False]])
    other = torch.cat([tokens[:, :2], torch.full_like(tokens[:, :1], torch.nan)], dim=1)
    torch.manual_seed(0)
    for selector in (TokenSelector(), TokenSelector(PredictorA(8)), TokenSelector(PredictorB(8))):
        torch.testing.assert_close(selector.scores(other, mask)[:, :2], selector.scores(tokens, mask)[:, :2])
        assert torch.equal(selector(other, mask)[:, :2], selector(tokens, mask)[:, :2])
    selector = TokenSelector(PredictorB(8))
    assert not torch.allclose(selector.scores(tokens)[:, :2], selector.scores(tokens, mask)[:, :2])


@pytest.mark.parametrize("kind", [PredictorA, PredictorB])
def test_scores_do_not_depend_on_other_videos(kind: type[PredictorA] | type[PredictorB]) -> None:
    selector, tokens = TokenSelector(kind(8)), frames(num_videos=7)
    with torch.inference_mode():
        assert torch.equal(selector.scores(tokens)[3:4], selector.scores(tokens[3:4]))


def test_the_names_are_those_of_the_checkpoints() -> None:
    names = {"in_conv.0.weight", "in_conv.0.bias", "in_conv.1.weight", "out_conv.0.weight", "out_conv.2.weight"}
    for predictor in (PredictorA(8), PredictorB(8)):
        assert {name.removeprefix("score_predictor.") for name in TokenSelector(predictor).state_dict()} == names
    assert PredictorA(512).in_conv[1].weight.shape == (256, 512)
    assert PredictorB(512).in_conv[1].weight.shape == (512, 1024)
