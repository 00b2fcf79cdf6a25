"""EERCF's training loss (Tian et al., AAAI 2024): weak and strong contrast, and a Pearson constraint on each level."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stages.rerankers.base import QueryBatch
from stages.rerankers.eercf import EercfHead
from stages.training.losses import contrastive

_DIAGONAL = 0.14
"""What the constraint on a dimension counts for; correlations between dimensions count nothing, as released."""


@dataclass(frozen=True, slots=True)
class EercfLossWeights:
    """What each part counts for: by default as in the released program, which leaves the strong patch terms out."""

    sentence_video: float = 0.5
    frame_weak: float = 0.5
    patch_weak: float = 0.05
    frame_strong: float = 1.0
    patch_strong: float = 0.0
    pearson_video: float = 1.0
    pearson_frame: float = 1.0
    pearson_patch: float = 0.0
    weak: float = 0.8
    strong: float = 0.2
    pearson: float = 0.001

    def weak_logits(self, sentence_video: Tensor, frame_weak: Tensor, patch_weak: Tensor) -> Tensor:
        """Their weighted sum."""
        return self.sentence_video * sentence_video + self.frame_weak * frame_weak + self.patch_weak * patch_weak

    def strong_logits(self, frame_strong: Tensor, patch_strong: Tensor) -> Tensor:
        """Their weighted sum."""
        return self.frame_strong * frame_strong + self.patch_strong * patch_strong


@dataclass(frozen=True, slots=True, eq=False)
class EercfTerms:
    """Of a batch in which text i belongs to video i: logits float32 [B, B], rows = texts, and Pearson terms."""

    sentence_video: Tensor
    frame_weak: Tensor
    frame_strong: Tensor
    patch_weak: Tensor
    patch_strong: Tensor
    pearson_video: Tensor
    pearson_frame: Tensor
    pearson_patch: Tensor

    def loss(self, weights: EercfLossWeights) -> Tensor:
        """The total: each sum of logits through the symmetric cross-entropy, and the sum of the Pearson terms."""
        weak = weights.weak_logits(self.sentence_video, self.frame_weak, self.patch_weak)
        strong = weights.strong_logits(self.frame_strong, self.patch_strong)
        pearson = (
            weights.pearson_video * self.pearson_video
            + weights.pearson_frame * self.pearson_frame
            + weights.pearson_patch * self.pearson_patch
        )
        return weights.weak * contrastive(weak) + weights.strong * contrastive(strong) + weights.pearson * pearson


def eercf_terms(head: EercfHead, queries: QueryBatch, tokens: Tensor, frame_mask: Tensor) -> EercfTerms:
    """All terms of B matching pairs: tokens float32 [B, F, P, D], raw, with patches; frame_mask bool [B, F].

    The strong levels gather for the matching text only: every text is compared with what text i found in video i.
    """
    scale = head.logit_scale.exp()
    texts, videos = head.texts(queries), head.videos(tokens, frame_mask)
    everyone = texts.expand(len(tokens), -1, -1)
    cosines, matching = head.cosines(everyone, videos), head.cosines(texts.unsqueeze(1), videos)
    frame = head.frame_gathered(matching, videos).squeeze(1)
    patch = head.patch_gathered(matching, videos).squeeze(1)
    return EercfTerms(
        sentence_video=scale * head.sentence_video(everyone, videos).T,
        frame_weak=scale * head.frame_weak(cosines).T,
        frame_strong=scale * texts @ frame.T,
        patch_weak=scale * head.patch_weak(cosines).T,
        patch_strong=scale * texts @ patch.T,
        pearson_video=pearson(texts, videos.pooled),
        pearson_frame=pearson(texts, frame),
        pearson_patch=pearson(texts, patch),
    )


def pearson(texts: Tensor, videos: Tensor) -> Tensor:
    """0.14 sum_d (c_d - 1)^2, with c_d the correlation of dimension d over the batch: both float32 [B, D], B > 1.

    Standardised by the standard deviation that divides by B - 1, while the mean of products divides by B.
    """
    one, other = ((features - features.mean(0)) / features.std(0, correction=1) for features in (texts, videos))
    return _DIAGONAL * ((one * other).mean(0) - 1).square().sum()
