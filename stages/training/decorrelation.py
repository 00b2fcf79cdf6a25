"""DRL's channel decorrelation (Wang et al., 2022): dimensions of matching features vary alike, each by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.rerankers.wti import WtiTokens

DIAGONAL, OTHERS, FACTOR = 0.14, 0.0, 0.001
"""What dimensions that do not vary alike count for, what two that do count for, and their sum beside the contrast."""


def decorrelation(correlations: Tensor, diagonal: float = DIAGONAL, others: float = OTHERS) -> Tensor:
    """The loss diagonal sum_d (c_dd - 1)^2 + others sum_{d != e} c_de^2 of float32 [D, D]."""
    own = torch.diagonal(correlations)
    return diagonal * (own - 1).square().sum() + others * (correlations.square().sum() - own.square().sum())


def correlations(one: Tensor, other: Tensor, weights: Tensor | None = None, num_pairs: int | None = None) -> Tensor:
    """How dimensions vary together: c_de = sum_i a_i z_id y_ie, float32 [D, D].

    z and y are ``one`` and ``other`` [n, D], standardised over the rows.
    Weights float32 [n] are divided by ``num_pairs``; none: each row weighs 1 / n. The standard deviation divides by
    n - 1.
    """
    standard = [(rows - rows.mean(0)) / rows.std(0, correction=1) for rows in (one, other)]
    if weights is not None:
        standard[0] = standard[0] * weights.unsqueeze(-1)
    return standard[0].T @ standard[1] / (num_pairs or len(one))


def token_correlations(texts: WtiTokens, videos: WtiTokens, *, weighted: bool, official: bool = False) -> Tensor:
    """Of every word with its best frame and every frame with its best word, in B matching pairs: float32 [D, D].

    The mean of the two, over all words or frames alike or by their weights. ``official``: padding meets with
    similarity 0, as in the scores, and may be found.
    """
    is_pair = texts.mask.unsqueeze(-1) & videos.mask.unsqueeze(-2)
    nothing = 0.0 if official else -torch.inf
    cosines = (texts.tokens @ videos.tokens.transpose(1, 2)).masked_fill(~is_pair, nothing)  # [B, W, F]
    pair = torch.arange(len(texts.tokens), device=cosines.device).unsqueeze(-1)
    best_frames, best_words = videos.tokens[pair, cosines.argmax(-1)], texts.tokens[pair, cosines.argmax(-2)]
    halves = (
        correlations(
            part.tokens[part.mask],
            found[part.mask],
            part.weights[part.mask] if weighted else None,
            len(pair) if weighted else None,
        )
        for part, found in ((texts, best_frames), (videos, best_words))
    )
    return sum(halves, torch.zeros(())) / 2
