"""TS2-Net's similarity (Liu et al., ECCV 2022): selected patches inform the frames, the frames are weighed by the text.

The token shift, its other half, is in the image tower (``stages.models.token_shift``).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from stages.rerankers.base import QueryBatch
from stages.rerankers.pairwise import PairwiseReranker
from stages.rerankers.selection import PredictorA, TokenSelector
from stages.rerankers.temporal import NUM_POSITIONS, Frames, TemporalHead, temporal_sizes

_SHARPNESS = 4.0
_SMALLEST_NORM = 1e-12
_FEWEST_FRAMES = 4
"""Fewer are padded: a product with fewer columns sums in an order that depends on the row."""


class Ts2NetHead(TemporalHead):
    """s sum_f a_f b_f, with b the cosines of text and frames and a their sharpened softmax (``weigh_frames``).

    The frames are the [CLS] rows of what the temporal transformer makes of each frame's [CLS] and its best patches.
    Made with layers, parameters have the names of the released checkpoints; without, the head is zero-shot: frames are
    the stored ones and patches play no part, since only the transformer lets them.

    The released code repeats the frame mask tile by tile, [m_0 .. m_F-1, m_0 ...], though the tokens lie frame by
    frame: for short videos it masks the wrong ones. ``official`` does the same; else the mask fits the tokens.
    """

    name = "ts2-net"

    def __init__(
        self,
        width: int = 0,
        num_layers: int = 0,
        num_heads: int | None = None,
        num_positions: int = NUM_POSITIONS,
        *,
        official: bool = False,
    ) -> None:
        super().__init__(width, num_layers, num_heads, num_positions)
        self.visual_token_selector = TokenSelector(PredictorA(width) if num_layers else None)
        self.official = official

    @classmethod
    def of_state(
        cls, state: Mapping[str, Tensor], num_heads: int | None = None, *, official: bool = False
    ) -> Ts2NetHead:
        """With the weights of a released checkpoint, the image-text model's left out and ``clip.`` taken away."""
        head = cls(num_heads=num_heads, official=official, **temporal_sizes(state))
        head.load_state_dict(dict(state))
        return head

    @property
    def sees_patches(self) -> bool:
        """With a temporal transformer."""
        return self.transformerClip is not None

    @property
    def sees_lengths(self) -> bool:
        """With a temporal transformer."""
        return self.transformerClip is not None

    def texts(self, queries: QueryBatch) -> Tensor:
        """Unit-length sentences float32 [B, D]."""
        return normalize(queries.sentence, dim=-1)

    def videos(self, tokens: Tensor, frame_mask: Tensor, noise: Tensor | None = None) -> Frames:
        """Everything about c videos that no query changes; see ``PairScorer``. ``noise``: that of ``TokenSelector``."""
        if self.transformerClip is None:
            return _prepared(tokens[:, :, 0], frame_mask)
        tokens = self.padded(tokens, frame_mask)
        selected = self.visual_token_selector(tokens, None if self.official else frame_mask, noise)
        return self.of_selected(selected, frame_mask)

    def of_selected(self, selected: Tensor, frame_mask: Tensor) -> Frames:
        """The same of selected tokens float32 [c, F, E, D], row 0 of E = [CLS]."""
        per_frame = selected.shape[2]
        if self.official:
            mask = frame_mask.repeat(1, per_frame)
        else:
            selected = selected.masked_fill(~frame_mask[..., None, None], 0.0)
            mask = frame_mask.repeat_interleave(per_frame, dim=1)
        hidden = self.temporal(selected.flatten(1, 2), mask)
        return _prepared(hidden[:, ::per_frame], mask[:, ::per_frame])

    def score(self, texts: Tensor, videos: Frames) -> Tensor:
        """Scores float32 [c, Q]: cosines times the logit scale; see ``PairScorer``."""
        return self.logit_scale.exp() * weigh_frames(texts, videos)


class Ts2NetReranker(PairwiseReranker):
    """TS2-Net as a reranker; without a head, its zero-shot form."""

    def __init__(self, head: Ts2NetHead | None = None) -> None:
        super().__init__(head or Ts2NetHead())


def weigh_frames(texts: Tensor, videos: Frames) -> Tensor:
    """sum_f a_f b_f, float32 [c, Q], of unit-length texts [c or 1, Q, D]; the similarity in TS2-Net's code.

    b = text . frame, 0 where masked; u = b / |b| over the frames; a = softmax(4 u) over the real frames.
    """
    mask = videos.frame_mask[:, None]
    texts = texts.expand(len(videos.frames), -1, -1)
    cosines = torch.bmm(texts, videos.frames.transpose(1, 2))
    real = cosines.masked_fill(~mask, 0.0)
    sharp = _SHARPNESS * normalize(real, dim=-1, eps=_SMALLEST_NORM)
    weights = sharp.masked_fill(~mask, -torch.inf).softmax(-1)
    return (weights * real).sum(-1)


def _prepared(frames: Tensor, mask: Tensor) -> Frames:
    """Frames float32 [c, F, D] of any length; those where mask bool [c, F] is False may be anything."""
    unit = normalize(frames.masked_fill(~mask.unsqueeze(-1), 0.0), dim=-1)
    missing = max(0, _FEWEST_FRAMES - mask.shape[1])
    return Frames(pad(unit, (0, 0, 0, missing)), pad(mask, (0, missing))) if missing else Frames(unit, mask)
