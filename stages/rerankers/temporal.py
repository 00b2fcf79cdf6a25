"""The temporal transformer over a video's frames, and masked mean pooling: what CLIP4Clip and its descendants share.

Parameters have the names of the released checkpoints, so that those load with ``load_state_dict``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from stages.models.quick_gelu import quick_gelu
from stages.rerankers.fixed_shape import linear

NUM_POSITIONS = 77
"""Rows of the released position tables: they start as CLIP's text positions."""

EPSILON = 1e-12
_MASKED = -1e6
"""What is added to the logit of a frame that is padding."""
_HEAD_WIDTH = 64


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """The frames of c videos: a video side that has nothing else."""

    frames: Tensor
    """float32 [c, F, D], raw or of unit length, as the method wants them; 0 where padding."""
    frame_mask: Tensor
    """bool [c, F], True = takes part."""

    def __getitem__(self, rows: slice | Tensor) -> Frames:
        """Those of some videos."""
        return Frames(self.frames[rows], self.frame_mask[rows])


class TemporalHead(nn.Module):
    """A head with a logit scale and, where it is made with layers, a temporal transformer.

    Without layers, ``temporal`` gives back what it gets: the zero-shot form of the head. Its parameters start as torch
    makes them; ``load_state_dict`` gives them the trained ones.
    """

    padding_frame: Tensor | None = None
    """float32 [P, D], what a frame that is padding holds for a head that follows the released code; None: as stored."""

    def __init__(
        self, width: int = 0, num_layers: int = 0, num_heads: int | None = None, num_positions: int = NUM_POSITIONS
    ) -> None:
        """D of the joint space; heads of 64 channels unless told otherwise; at most ``num_positions`` frames."""
        super().__init__()
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.frame_position_embeddings = nn.Embedding(num_positions, width) if num_layers else None
        self.transformerClip = Transformer(width, num_layers, num_heads) if num_layers else None

    def padded(self, tokens: Tensor, frame_mask: Tensor) -> Tensor:
        """Tokens [c, F, P, D] with ``padding_frame`` where mask bool [c, F] is False."""
        if self.padding_frame is None:
            return tokens
        return torch.where(frame_mask[..., None, None], tokens, self.padding_frame[: tokens.shape[2]])

    def temporal(self, frames: Tensor, frame_mask: Tensor) -> Tensor:
        """The frames and what the blocks make of them: x + blocks(x + positions).

        x float32 [c, F, D], raw; frame_mask bool [c, F]. Nobody looks at a frame that is padding, but it comes out as
        something too, and must hold finite numbers.
        Raises ValueError for more frames than there are positions.
        """
        if self.transformerClip is None or self.frame_position_embeddings is None:
            return frames
        positions = self.frame_position_embeddings.weight
        if frames.shape[1] > len(positions):
            raise ValueError(f"{frames.shape[1]} frames a video, but the weights have {len(positions)} positions")
        hidden: Tensor = self.transformerClip(frames + positions[: frames.shape[1]], frame_mask)
        return hidden + frames


def temporal_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """What TemporalHead takes, as far as a state dict tells it: width, num_layers and num_positions; else nothing."""
    if "frame_position_embeddings.weight" not in state:
        return {}
    num_positions, width = state["frame_position_embeddings.weight"].shape
    return {"width": width, "num_layers": number_of_layers(state, "transformerClip."), "num_positions": num_positions}


def number_of_layers(state: Mapping[str, Tensor], prefix: str) -> int:
    """Of the Transformer whose names in a state dict begin so."""
    names = (key.removeprefix(prefix).split(".") for key in state if key.startswith(prefix))
    return len({name[1] for name in names if name[0] == "resblocks"})


class Transformer(nn.Module):
    """Pre-norm blocks in which everyone looks at what the mask allows."""

    def __init__(self, width: int, num_layers: int, num_heads: int | None = None) -> None:
        super().__init__()
        heads = num_heads or max(1, width // _HEAD_WIDTH)
        self.resblocks = nn.ModuleList([_Block(width, heads) for _ in range(num_layers)])

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The blocks one after the other: hidden float32 [c, N, D], mask bool [c, N], True = may be looked at."""
        bias = (~mask).to(hidden.dtype)[:, None, None] * _MASKED
        for block in self.resblocks:
            hidden = block(hidden, bias)
        return hidden


class _Block(nn.Module):
    """h += attention(LN(h)); h += W2 QuickGELU(W1 LN(h))."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attn = _Attention(width, num_heads)
        self.ln_1 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = _Mlp(width)
        self.ln_2 = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        hidden = hidden + self.attn(self.ln_1(hidden), bias)
        result: Tensor = hidden + self.mlp(self.ln_2(hidden))
        return result


class _Attention(nn.Module):
    """Multi-head attention of a sequence with itself; a bias is added to the logits."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        count, length, width = hidden.shape
        mixed = linear(hidden, self.in_proj_weight, self.in_proj_bias)
        mixed = mixed.view(count, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = mixed.permute(2, 0, 3, 1, 4).flatten(1, 2)  # [3, c * H, N, D / H]
        logits = torch.bmm(query * query.shape[-1] ** -0.5, key.transpose(1, 2)).view(count, -1, length, length)
        weights = (logits + bias).softmax(-1).flatten(0, 1)
        found = torch.bmm(weights, value).view(count, -1, length, width // self.num_heads).transpose(1, 2).flatten(2)
        return linear(found, self.out_proj.weight, self.out_proj.bias)


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = quick_gelu(linear(hidden, self.c_fc.weight, self.c_fc.bias))
        return linear(inner, self.c_proj.weight, self.c_proj.bias)


def pool(frames: Tensor, frame_mask: Tensor) -> Tensor:
    """The mean direction n(sum_f m_f n(y_f)): float32 [..., F, D], mask bool [..., F]; float32 [..., D], unit length.

    Frames that are padding may be anything; a video without a frame comes out as 0.
    """
    return mean_direction(normalize(frames, dim=-1), frame_mask)


def mean_direction(frames: Tensor, frame_mask: Tensor) -> Tensor:
    """The same of frames that have unit length already."""
    return normalize(without_padding(frames, frame_mask).sum(-2), dim=-1)


def without_padding(frames: Tensor, frame_mask: Tensor) -> Tensor:
    """The frames [..., F, D], 0 where padding; the same tensor where there is none."""
    return frames if bool(frame_mask.all()) else frames.masked_fill(~frame_mask.unsqueeze(-1), 0.0)
