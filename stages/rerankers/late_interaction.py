"""Late interaction without parameters: mean of maximal similarities over frames and patches.

After Video-ColBERT (Reddy et al., CVPR 2025), whose second sum is over features that a trained temporal layer makes;
here it is over the patches, which need none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stages.rerankers.base import QueryBatch
from stages.rerankers.fixed_shape import COLUMNS, products
from stages.rerankers.pairwise import PairwiseReranker, Shared
from stages.rerankers.words import WordsByPlace

_COLUMNS = 6 * COLUMNS
"""Tokens that are looked at together: what 32 texts have of them stays in the cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """Of n texts."""

    words: Tensor
    """float32 [n, W, D], unit length."""
    mask: Tensor
    """bool [n, W], True = a word."""

    def __getitem__(self, rows: int | slice | Tensor | None) -> Words:
        """Some of the texts."""
        return Words(self.words[rows], self.mask[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Of c videos."""

    tokens: Tensor
    """float32 [c, F, P, D], unit length; anything where padding."""
    frame_mask: Tensor
    """bool [c, F], True = real frame."""

    def __getitem__(self, rows: slice | Tensor) -> Tokens:
        """Some of the videos."""
        return Tokens(self.tokens[rows], self.frame_mask[rows])


@dataclass(frozen=True, slots=True)
class LateInteraction:
    """Each word finds its frame, and its patch: (mean_w max_f w.f + mean_w max_p w.p) / 2, all of unit length.

    Where the store keeps no patches, the first mean alone. Start and end of text count as words.
    """

    name = "late-interaction"
    sees_patches = True
    sees_lengths = False

    def texts(self, queries: QueryBatch) -> Words:
        """Unit-length words."""
        return Words(normalize(queries.words, dim=-1), queries.word_mask)

    def videos(self, tokens: Tensor, frame_mask: Tensor) -> Tokens:
        """Unit-length tokens."""
        return Tokens(normalize(tokens, dim=-1), frame_mask)

    def score(self, texts: Words, videos: Tokens) -> Tensor:
        """Scores float32 [c, Q] of the texts [1, Q, ...] with every video."""
        texts, step = texts[0], max(1, _COLUMNS // math.prod(videos.tokens.shape[1:3]))
        words = WordsByPlace(texts.mask)
        packed = words.pack(texts.words)
        parts = [_best(packed, videos[start : start + step]) for start in range(0, len(videos.tokens), step)]
        sums = words.in_order(words.total(torch.cat(parts, 1)))
        return (sums / texts.mask.sum(1, keepdim=True)).T


def _best(words: Tensor, videos: Tokens) -> Tensor:
    """Of each word [R, D] in each video: the mean of its best frame's cosine and its best patch's; [R, c]."""
    shape = videos.tokens.shape[:3]
    cosines = products(words, videos.tokens.flatten(0, 2)).view(-1, *shape)
    by_frame = [cosines[..., 0], *([cosines[..., 1:].amax(-1)] if shape[2] > 1 else [])]
    best = [part.masked_fill(~videos.frame_mask, -torch.inf).amax(-1) for part in by_frame]
    return sum(best[1:], best[0]) / len(best)


class LateInteractionReranker(PairwiseReranker):
    """Late interaction as a reranker."""

    def __init__(self) -> None:
        super().__init__(LateInteraction(), Shared(num_queries=32))
