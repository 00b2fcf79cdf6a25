from __future__ import annotations

import pytest
import torch
from torch import nn

from stages.rerankers.fixed_shape import linear
from stages.rerankers.temporal import TemporalHead, pool


def drawn_head(width: int = 128, num_layers: int = 2) -> TemporalHead:
    """Random weights that a missing term or a wrong order would show."""
    generator = torch.Generator().manual_seed(0)
    head = TemporalHead(width, num_layers)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return head.eval()


def drawn_frames(count: int = 9, num_frames: int = 6, width: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(num_frames) < torch.randint(1, num_frames + 1, (count, 1), generator=generator)
    return 3 * torch.randn(count, num_frames, width, generator=generator), mask


def test_it_is_the_transformer_that_torch_has() -> None:
    """The same weights in torch's own layers; its blocks have no QuickGELU, so that comes from a formula."""

    class QuickGelu(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.sigmoid(1.702 * x)

    head, (frames, mask) = drawn_head(), drawn_frames()
    assert head.transformerClip is not None
    assert head.frame_position_embeddings is not None
    hidden = frames + head.frame_position_embeddings.weight[:6]
    for block in head.transformerClip.resblocks:
        layer = nn.TransformerEncoderLayer(128, 2, 512, 0.0, QuickGelu(), 1e-12, batch_first=True, norm_first=True)
        names = {"attn": "self_attn", "ln_1": "norm1", "ln_2": "norm2", "mlp.c_fc": "linear1", "mlp.c_proj": "linear2"}
        state = block.state_dict()
        for ours, theirs in names.items():
            state = {key.replace(f"{ours}.", f"{theirs}."): value for key, value in state.items()}
        layer.load_state_dict(state)
        hidden = layer(hidden, src_key_padding_mask=~mask)
    found = head.temporal(frames, mask)
    torch.testing.assert_close(found[mask], (hidden + frames)[mask], atol=2e-5, rtol=1e-5)


def test_without_layers_the_frames_stay_what_they_are() -> None:
    frames, mask = drawn_frames()
    assert torch.equal(TemporalHead(128).temporal(frames, mask), frames)


def test_parameters_have_the_names_of_the_released_checkpoints() -> None:
    names = set(TemporalHead(128, 1).state_dict())
    block = "transformerClip.resblocks.0."
    parts = ["attn.in_proj_weight", "attn.in_proj_bias"]
    for layer in ("attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj"):
        parts += [f"{layer}.weight", f"{layer}.bias"]
    assert names == {"logit_scale", "frame_position_embeddings.weight", *(block + part for part in parts)}


def test_more_frames_than_positions_are_refused() -> None:
    frames, mask = drawn_frames(num_frames=78)
    with pytest.raises(ValueError, match=r"78 frames.* 77 positions"):
        drawn_head().temporal(frames, mask)


@torch.inference_mode()
def test_a_video_comes_out_the_same_whatever_else_is_there() -> None:
    head, (frames, mask) = drawn_head(), drawn_frames(count=40)
    together = head.temporal(frames, mask)
    for row in range(len(frames)):
        assert torch.equal(head.temporal(frames[row : row + 1], mask[row : row + 1])[0], together[row])
    assert torch.equal(head.temporal(frames.flip(0), mask.flip(0)), together.flip(0))


@pytest.mark.parametrize("num_rows", [0, 1, 63, 64, 65, 300])
def test_a_product_of_fixed_shape_is_the_product(num_rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(num_rows, 96, generator=generator), torch.randn(32, 96, generator=generator)
    bias = torch.randn(32, generator=generator)
    with torch.inference_mode():
        found = linear(rows, weight, bias)
        torch.testing.assert_close(found, rows @ weight.T + bias, atol=1e-4, rtol=1e-5)
        for row in range(num_rows):
            assert torch.equal(linear(rows[row], weight, bias), found[row])


def test_pooling_takes_the_mean_direction_of_real_frames() -> None:
    frames = torch.tensor([[[3.0, 0.0], [0.0, 0.5], [torch.nan, 9.0]], [[0.0, 2.0], [1.0, 1.0], [1.0, 1.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    expected = torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 0.0]])
    torch.testing.assert_close(pool(frames, mask), expected)
