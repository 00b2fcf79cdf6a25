"""EERCF's parameter-free text-gated interaction (Tian et al., AAAI 2024), as its evaluation scores the top K.

No weights: the matrices that EERCF learns are the identity and there is no temporal transformer, which is where its
training starts from. Frames and patches that are padding take part in nothing (the released code lets them).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stages.rerankers.base import QueryBatch
from stages.rerankers.pairwise import PairwiseReranker

_WEAK_TEMPERATURE = 0.01
_STRONG_TEMPERATURE = 0.1
_SMALLEST_NORM = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class _Videos:
    """What does not depend on the query, of c videos. L = F * P tokens."""

    tokens: Tensor
    """float32 [c, L, D]; any length."""
    norms: Tensor
    """float32 [c, L], the lengths of the tokens, never 0."""
    frames: Tensor
    """float32 [c, F, D], unit length; 0 where masked."""
    pooled: Tensor
    """float32 [c, D], unit length."""
    frame_mask: Tensor
    """bool [c, F]."""

    def __getitem__(self, rows: slice | Tensor) -> _Videos:
        """Some of the videos."""
        parts = (self.tokens, self.norms, self.frames, self.pooled, self.frame_mask)
        return _Videos(*(part[rows] for part in parts))


class EercfReranker(PairwiseReranker):
    """The parameter-free interaction."""

    def __init__(self) -> None:
        super().__init__(EercfScorer())


@dataclass(frozen=True, slots=True)
class EercfScorer:
    """Weighted sum of cosines between the text and the video at three grains; at most 1.7.

    With t the unit-length sentence, f the unit-length frame embeddings, p the unit-length patches and
    A(x, T) = sum_j softmax(x / T)_j x_j:

        frame_weak     = A(t.f, 0.01)                                 over the frames
        frame_strong   = t.n(sum_j softmax(t.f / 0.1)_j f_j)          over the frames, n(x) = x / |x|
        patch_weak     = A(t.p, 0.01)                                 over all patches of all frames
        sentence_video = t.n(mean f)

    Where the store keeps no patches, patch_weak is 0. The weights are those of the authors' evaluation.
    """

    frame_weak: float = 0.8
    frame_strong: float = 0.2
    patch_weak: float = 0.2
    sentence_video: float = 0.5

    name = "eercf"
    sees_patches = True
    sees_lengths = False

    def texts(self, queries: QueryBatch) -> Tensor:
        """Unit-length sentences float32 [B, D]."""
        return normalize(queries.sentence, dim=-1)

    def videos(self, tokens: Tensor, frame_mask: Tensor) -> _Videos:
        """Everything about c videos that no query changes."""
        frames = normalize(tokens[:, :, 0], dim=-1, eps=_SMALLEST_NORM).masked_fill(~frame_mask.unsqueeze(-1), 0.0)
        flat = tokens.flatten(1, 2)
        norms = torch.linalg.vector_norm(flat, dim=-1).clamp_min_(_SMALLEST_NORM)
        return _Videos(flat, norms, frames, normalize(frames.sum(1), dim=-1), frame_mask)

    def score(self, texts: Tensor, videos: _Videos) -> Tensor:
        """Scores float32 [c, Q] of the texts [c, Q, D], unit length, with the video of their row."""
        texts = texts.expand(len(videos.tokens), -1, -1)
        mask = videos.frame_mask[:, None]
        num_frames = mask.shape[-1]
        cosines = torch.bmm(texts, videos.tokens.transpose(1, 2)) / videos.norms[:, None]
        cosines = cosines.view(*texts.shape[:2], num_frames, -1).masked_fill(~mask.unsqueeze(-1), 0.0)
        frame, patch = cosines[..., 0].contiguous(), cosines[..., 1:].flatten(2)
        gate = _masked_softmax(frame / _STRONG_TEMPERATURE, mask)
        gathered = normalize(torch.bmm(gate, videos.frames), dim=-1)
        score: Tensor = self.frame_weak * (_masked_softmax(frame / _WEAK_TEMPERATURE, mask) * frame).sum(-1)
        score += self.frame_strong * (gathered * texts).sum(-1)
        score += self.sentence_video * (texts * videos.pooled[:, None]).sum(-1)
        if patch.shape[-1]:
            patch_mask = mask.unsqueeze(-1).expand(-1, -1, -1, patch.shape[-1] // num_frames).flatten(2)
            score += self.patch_weak * (_masked_softmax(patch / _WEAK_TEMPERATURE, patch_mask) * patch).sum(-1)
        return score


def _masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis among the entries where ``mask`` is True; 0 elsewhere."""
    return logits.masked_fill(~mask, -torch.inf).softmax(-1)
