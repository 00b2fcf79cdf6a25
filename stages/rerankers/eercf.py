"""EERCF's text-gated interaction (Tian et al., AAAI 2024), as its evaluation scores the top K.

Without weights its matrices are the identity and there is no temporal transformer, which is where its training starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from stages.rerankers.base import QueryBatch
from stages.rerankers.fixed_shape import linear
from stages.rerankers.matrices import TEMPERATURE, aggregate, identity
from stages.rerankers.pairwise import PairwiseReranker
from stages.rerankers.temporal import (
    NUM_POSITIONS,
    TemporalHead,
    mean_direction,
    temporal_sizes,
    without_padding,
)

_STRONG_TEMPERATURE = 0.1
_SMALLEST_NORM = 1e-12
_FEWEST_TOKENS = 4
"""Fewer are padded: a product with fewer columns sums in an order that depends on the row."""
_BOOST = 100.0
"""Lifts the re-ranked scores of the released evaluation above all others."""


@dataclass(frozen=True, slots=True)
class EercfWeights:
    """What each level counts for: by default as in the second stage of the authors' evaluation."""

    sentence_video: float = 0.5
    frame_weak: float = 0.8
    frame_strong: float = 0.2
    patch_weak: float = 0.2
    patch_strong: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class EercfVideos:
    """What does not depend on the query, of c videos. L = F * P tokens."""

    tokens: Tensor
    """float32 [c, L, D]; any length."""
    norms: Tensor
    """float32 [c, L], the lengths of the tokens, never 0."""
    frames: Tensor
    """float32 [c, F, D], unit length, after the temporal transformer; 0 where masked."""
    pooled: Tensor
    """float32 [c, D], the mean direction v of the frames after it."""
    for_sentence: Tensor
    """float32 [c, D], G v."""
    frame_mask: Tensor
    """bool [c, F], True = takes part."""
    gram: Tensor
    """float32 [c, F, F], of ``frames`` with each other."""

    def __getitem__(self, rows: slice | Tensor) -> EercfVideos:
        """Some of the videos."""
        pooled = self.pooled[rows]
        for_sentence = pooled if self.for_sentence is self.pooled else self.for_sentence[rows]
        tokens, norms, frames = self.tokens[rows], self.norms[rows], self.frames[rows]
        return EercfVideos(tokens, norms, frames, pooled, for_sentence, self.frame_mask[rows], self.gram[rows])


@dataclass(frozen=True, slots=True, eq=False)
class EercfCosines:
    """Of Q texts with the frames and patches of the c videos."""

    frame: Tensor
    """float32 [c, Q, F], 0 where masked."""
    patch: Tensor
    """float32 [c, Q, F (P - 1)], 0 where masked."""
    frame_mask: Tensor | None
    """bool [c, 1, F]; None: every frame takes part."""

    @property
    def patch_mask(self) -> Tensor | None:
        """Mask bool [c, 1, F (P - 1)], or None likewise."""
        if self.frame_mask is None:
            return None
        per_frame = self.patch.shape[-1] // self.frame.shape[-1]
        return self.frame_mask.unsqueeze(-1).expand(-1, -1, -1, per_frame).flatten(2)


class EercfHead(TemporalHead):
    """Weighted sum of similarities between the text and the video at three grains, times the logit scale.

    With t the unit-length sentence, f the unit-length frame embeddings, g those after the temporal transformer, p the
    unit-length patches, n(x) = x / |x| and A(x; M) = sum_j (softmax(x / 0.01) M)_j x_j:

        sentence_video = t.G n(mean g)
        frame_weak     = A(t.f; M)                                    over the frames
        frame_strong   = t.n(sum_j softmax(t.f / 0.1)_j g_j)          over the frames
        patch_weak     = A(t.p; 1)                                    over all patches of all frames
        patch_strong   = t.n(sum_j softmax(t.p / 0.01)_j p_j)         likewise

    Where the store keeps no patches, their levels are 0. Padding takes part in nothing, unless ``official`` asks for
    the sums of the released code, in which only the mean and the temporal transformer have a mask.
    """

    name = "eercf"
    sees_patches = True

    def __init__(
        self,
        width: int = 0,
        num_layers: int = 0,
        num_heads: int | None = None,
        num_positions: int = NUM_POSITIONS,
        *,
        num_frames: int = 0,
        weights: EercfWeights | None = None,
        official: bool = False,
    ) -> None:
        """D; the temporal transformer; F of the matrix M, 0 for neither M nor G: then they are the identity."""
        super().__init__(width, num_layers, num_heads, num_positions)
        self.weights = weights or EercfWeights()
        self.official = official
        self.global_mat_weight = identity(width if num_frames else 0)
        self.frame_logit_weight = identity(num_frames)

    @classmethod
    def of_state(
        cls, state: Mapping[str, Tensor], num_heads: int | None = None, *, official: bool = False
    ) -> EercfHead:
        """With the weights of a released checkpoint, the image-text model's left out and ``clip.`` taken away."""
        sizes: dict[str, Any] = {"width": len(state["global_mat_weight"]), **temporal_sizes(state)}
        head = cls(**sizes, num_heads=num_heads, num_frames=len(state["frame_logit_weight"]), official=official)
        head.load_state_dict(dict(state))
        return head

    @property
    def sees_lengths(self) -> bool:
        """With a temporal transformer; every other use of a token divides by its length."""
        return self.transformerClip is not None

    def texts(self, queries: QueryBatch) -> Tensor:
        """Unit-length sentences float32 [B, D]."""
        return normalize(queries.sentence, dim=-1)

    def videos(self, tokens: Tensor, frame_mask: Tensor) -> EercfVideos:
        """Everything about c videos that no query changes."""
        tokens = self.padded(tokens, frame_mask)
        taking_part = torch.ones_like(frame_mask) if self.official else frame_mask
        if self.weights.patch_strong and not self.official:  # weight 0 times a number that is none would be none
            tokens = tokens.masked_fill(~frame_mask[..., None, None], 0.0)
        flat = tokens.flatten(1, 2)
        norms = torch.linalg.vector_norm(flat, dim=-1).clamp_min(_SMALLEST_NORM)
        frames = self.temporal(without_padding(tokens[:, :, 0], taking_part), frame_mask)
        if self.transformerClip is None and taking_part is frame_mask:  # the frames are tokens: their lengths are known
            unit = frames / norms.view(*frames.shape[:2], -1)[..., :1]
        else:
            unit = normalize(frames, dim=-1)
        pooled = mean_direction(unit, frame_mask)
        for_sentence = pooled if self.global_mat_weight is None else linear(pooled, self.global_mat_weight)
        unit = without_padding(unit, taking_part)
        return EercfVideos(flat, norms, unit, pooled, for_sentence, taking_part, _products(unit, unit))

    def score(self, texts: Tensor, videos: EercfVideos) -> Tensor:
        """Scores float32 [c, Q] of the texts [c or 1, Q, D], unit length."""
        weights, texts = self.weights, texts.expand(len(videos.tokens), -1, -1)
        cosines = self.cosines(texts, videos)
        score: Tensor = weights.frame_weak * self.frame_weak(cosines)
        score += weights.frame_strong * self.frame_strong(texts, cosines, videos)
        score += weights.sentence_video * _products(texts, videos.for_sentence[:, None])[..., 0]
        if cosines.patch.shape[-1]:
            score += weights.patch_weak * self.patch_weak(cosines)
            if weights.patch_strong:
                score += weights.patch_strong * (self.patch_gathered(cosines, videos) * texts).sum(-1)
        return score * self.logit_scale.exp()

    # -- the levels, without the logit scale: texts [c, Q, D] --

    def cosines(self, texts: Tensor, videos: EercfVideos) -> EercfCosines:
        """Of the texts with frames and patches."""
        mask = None if bool(videos.frame_mask.all()) else videos.frame_mask[:, None]
        cosines = _products(texts, videos.tokens) / videos.norms[:, None]
        cosines = cosines.view(*texts.shape[:2], videos.frame_mask.shape[-1], -1)
        if mask is not None:
            cosines = cosines.masked_fill(~mask.unsqueeze(-1), 0.0)
        return EercfCosines(cosines[..., 0].contiguous(), cosines[..., 1:].flatten(2), mask)

    def sentence_video(self, texts: Tensor, videos: EercfVideos) -> Tensor:
        """Coarse similarity float32 [c, Q]."""
        return (texts * videos.for_sentence[:, None]).sum(-1)

    def frame_weak(self, cosines: EercfCosines) -> Tensor:
        """Frames weighted by their own similarity, float32 [c, Q]."""
        return aggregate(cosines.frame, cosines.frame_mask, self.frame_logit_weight)

    def patch_weak(self, cosines: EercfCosines) -> Tensor:
        """Patches weighted by their own similarity, float32 [c, Q]."""
        return aggregate(cosines.patch, cosines.patch_mask)

    def frame_strong(self, texts: Tensor, cosines: EercfCosines, videos: EercfVideos) -> Tensor:
        """Of each text with what it finds in the frames, float32 [c, Q], without gathering that.

        t.n(sum_j w_j g_j) = sum_j w_j t.g_j / sqrt(sum_ij w_i w_j g_i.g_j), where g_i.g_j depends on no text.
        """
        gate = _masked_softmax(cosines.frame / _STRONG_TEMPERATURE, cosines.frame_mask)
        found = cosines.frame if self.transformerClip is None else _products(texts, videos.frames)
        length = ((videos.gram[:, None] * gate.unsqueeze(-2)).sum(-1) * gate).sum(-1).clamp_min(0.0).sqrt()
        return (gate * found).sum(-1) / length.clamp_min(_SMALLEST_NORM)

    def frame_gathered(self, cosines: EercfCosines, videos: EercfVideos) -> Tensor:
        """What each text finds in the frames, float32 [c, Q, D], unit length. In training its gate has no gradient."""
        gate = _masked_softmax(cosines.frame / _STRONG_TEMPERATURE, cosines.frame_mask).detach()
        return normalize(torch.bmm(gate, videos.frames), dim=-1)

    def patch_gathered(self, cosines: EercfCosines, videos: EercfVideos) -> Tensor:
        """What each text finds in the patches, likewise."""
        gate = _masked_softmax(cosines.patch / TEMPERATURE, cosines.patch_mask).detach()
        count, num_frames = videos.frame_mask.shape
        unit = videos.tokens / videos.norms.unsqueeze(-1)
        patches = unit.view(count, num_frames, -1, unit.shape[-1])[:, :, 1:].flatten(1, 2)
        return normalize(torch.bmm(gate, patches), dim=-1)


class EercfReranker(PairwiseReranker):
    """EERCF as a reranker; without a head, its parameter-free form."""

    def __init__(self, head: EercfHead | None = None) -> None:
        super().__init__(head or EercfHead())


def two_stages(coarse: Tensor, focused: Tensor, top_k: int) -> Tensor:
    """The matrix on which the released evaluation measures: focused + 100 for the coarse top K of each row.

    Both float32 [T, V]; elsewhere the coarse score stays. ``tbpipe rerank`` never computes what is thrown away here.
    """
    best = coarse.topk(min(top_k, coarse.shape[1]), dim=1).indices
    return coarse.scatter(1, best, _BOOST + focused.gather(1, best))


def _masked_softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last axis among the entries where ``mask`` is True; 0 elsewhere. No mask: among all."""
    return (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(-1)


def _products(rows: Tensor, columns: Tensor) -> Tensor:
    """Within each of c videos: float32 [c, Q, D] and [c, N, D] -> [c, Q, N]."""
    number = columns.shape[1]
    if number < _FEWEST_TOKENS:
        columns = pad(columns, (0, 0, 0, _FEWEST_TOKENS - number))
    return torch.bmm(rows, columns.transpose(1, 2))[..., :number]
