from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from index_store.settings import KeepRule, ModelSettings, SamplingSettings, StoreSettings, TokenSettings
from stages.tokens import choose_tokens, keep_tokens, pack_features, pool, quantise


def settings(keep: str = "all", dtype: str = "float16", frames: int = 4) -> StoreSettings:
    model = ModelSettings("m", "p", "0" * 64, 8, 5, 32, (0.5,) * 3, (0.5,) * 3, "bicubic", "shortest", "float32")
    return StoreSettings(model, SamplingSettings("uniform", frames), TokenSettings(dtype, keep))  # type: ignore[arg-type]


def kept(rows: torch.Tensor, keep: str) -> torch.Tensor:
    rule = KeepRule.read(keep)
    assert rule is not None
    return keep_tokens(rows, rule)


def rows(num_frames: int = 3) -> torch.Tensor:
    return torch.randn(num_frames, 5, 8, generator=torch.Generator().manual_seed(0)) * 10


def test_short_videos_are_padded_with_zeros_behind_a_mask() -> None:
    features = pack_features(rows(3), np.array([0.1, 0.2, 0.3]), settings())
    assert features is not None
    assert features.frame_mask.tolist() == [True, True, True, False]
    assert features.timestamps_seconds.tolist() == [0.1, 0.2, 0.3, 0.0]
    assert not features.tokens[3].any()
    assert not features.frame_embeddings[3].any()
    np.testing.assert_array_equal(features.tokens[:3], rows(3).half().numpy())


def test_pooled_is_the_unit_mean_of_unit_frames() -> None:
    frames = rows()[:, 0]
    expected = normalize(normalize(frames, dim=-1).sum(dim=0), dim=0)
    torch.testing.assert_close(pool(frames), expected)
    assert pool(frames * torch.tensor([[1.0], [2.0], [3.0]])).numpy() == pytest.approx(expected.numpy(), abs=1e-6)


def test_keep_takes_the_patches_closest_to_the_frame_in_picture_order() -> None:
    frame = torch.tensor([1.0, 0.0])
    patches = torch.tensor([[0.0, 1.0], [5.0, 0.0], [-1.0, 0.0], [1.0, 0.1]])
    given = torch.cat([frame[None], patches])[None]
    torch.testing.assert_close(kept(given, "2"), torch.stack([frame, patches[1], patches[3]])[None])
    assert kept(given, "cls").shape == (1, 1, 2)
    assert kept(given, "all") is given


def test_of_equally_close_patches_the_first_is_kept() -> None:
    given = torch.ones(1, 6, 3)
    given[0, 1:, 0] = torch.arange(1.0, 6.0) * 0 + 1
    given[0, 4, :] = 2.0  # the same direction
    assert kept(given, "1")[0, 1].tolist() == [1.0, 1.0, 1.0]


def test_distinct_takes_the_patches_farthest_from_the_mean_patch_of_their_own_frame() -> None:
    common, rare, long = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.5])
    first = torch.stack([rare, common, common, long * 100, rare * 0.01, common])  # lengths do not count
    second = torch.stack([common, rare, rare, rare, common, rare])  # what is rare differs from frame to frame
    assert torch.equal(
        kept(torch.stack([first, second]), "distinct:2")[0], torch.stack([rare, long * 100, rare * 0.01])
    )
    found, places = choose_tokens(torch.stack([first, second]), KeepRule("distinct", 1))
    assert places is not None
    assert places.tolist() == [[0, 4], [0, 4]]
    assert torch.equal(found[1], torch.stack([common, common]))
    assert torch.equal(kept(first[None], "distinct:5"), first[None])


def test_of_equally_distinct_patches_the_first_is_kept() -> None:
    one, other = [1.0, 0.0], [0.0, 1.0]
    given = torch.tensor([[one, one, one, other, other, one, other]])
    for rule, expected in (("distinct:1", [0, 1]), ("distinct:4", [0, 1, 2, 3, 4])):
        found = KeepRule.read(rule)
        assert found is not None
        places = choose_tokens(given, found)[1]
        assert places is not None
        assert places.tolist() == [expected]


def test_int8_is_within_half_a_step_and_keeps_zero_tokens() -> None:
    tokens = rows()
    tokens[0, 1] = 0
    stored, scale = quantise(tokens)
    assert stored.dtype == torch.int8
    error = (stored.float() * scale.unsqueeze(-1) - tokens).abs()
    assert (error <= scale.unsqueeze(-1) / 2 + 1e-6).all()
    assert not stored[0, 1].any()
    assert stored.abs().amax() == 127


def test_int8_features_carry_scales_for_the_padded_frames_too() -> None:
    features = pack_features(rows(2), np.array([0.0, 1.0]), settings("2", "int8"))
    assert features is not None
    assert features.tokens.shape == (4, 3, 8)
    assert features.token_scales is not None
    assert features.token_scales.shape == (4, 3)
    assert not features.token_scales[2:].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e6, 65520, -65520])
def test_numbers_that_float16_cannot_hold_give_no_features(bad: float) -> None:
    broken = rows()
    broken[1, 2, 3] = bad
    assert pack_features(broken, np.zeros(3), settings()) is None


@pytest.mark.parametrize("large", [65519.0, -65519.0])
def test_numbers_that_float16_can_just_hold_are_kept(large: float) -> None:
    rows_with = rows()
    rows_with[1, 2, 3] = large
    features = pack_features(rows_with, np.zeros(3), settings())
    assert features is not None
    assert abs(features.tokens).max() == 65504


def test_only_what_is_kept_must_fit() -> None:
    rows_with = rows()
    rows_with[:, 2] = -100_000.0 * rows_with[:, 0].sign()  # the patch that is least like its frame
    assert pack_features(rows_with, np.zeros(3), settings()) is None
    features = pack_features(rows_with, np.zeros(3), settings("1"))
    assert features is not None
    assert np.isfinite(features.tokens).all()
