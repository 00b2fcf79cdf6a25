"""The twice sharpened sum B(x; M) = sum_j softmax(softmax(x / 0.01) M / 0.01)_j x_j of UCoFiA.

All functions are given x / 0.01 and give B / 0.01: then the first softmax has nothing to divide.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.rerankers.fixed_shape import linear, mixed, total
from stages.rerankers.matrices import TEMPERATURE, fitted

_SMALLEST_LOGIT = -60.0
"""Against 1, exp(-60) is nothing; exp(-100) is a denormal number, with which a processor is 50 times slower."""
_MIDDLE = 0.5 / TEMPERATURE
"""Of 0 .. 100, the logits of a second softmax: less it, none of their powers is too large or denormal."""


def real(mask: Tensor) -> Tensor | None:
    """The mask, or None where it masks nothing."""
    return None if bool(mask.all()) else mask


def mixing_of(matrix: Tensor | None, size: int) -> Tensor | None:
    """[size + 1, size]: what makes of powers, from the left, the logits of the second softmax, and their sum.

    None for the identity.
    """
    if matrix is None:
        return None
    return torch.cat([fitted(matrix, size).T / TEMPERATURE, matrix.new_ones(1, size)])


def over_last(logits: Tensor, mask: Tensor | None, mixing: Tensor | None) -> Tensor:
    """B over the last axis of float32 [..., c, N], whose N is that of a store; mask bool [c, N], True = takes part."""
    powers = _powers(logits, -1, mask)
    if mixing is None:
        powers = _powers_again(powers, powers.sum(-1, keepdim=True), mask)
    else:
        found = linear(powers, mixing)
        powers = _powers(found[..., :-1] / found[..., -1:], -1, mask)
    sums = powers.sum(-1)
    return _times(powers, logits).sum(-1) / sums


def over_words(logits: Tensor, mixing: Tensor | None) -> Tensor:
    """B over the second axis of float32 [n, W, ...], the words of n texts of one length: [n, ...]."""
    powers = _powers(logits, 1)
    if mixing is None:
        powers = _powers_again(powers, total(powers, 1).unsqueeze(1))
    else:
        found = mixed(mixing, powers, 1)
        powers = _powers(found[:, :-1] / found[:, -1:], 1)
    sums = total(powers, 1)
    return total(_times(powers, logits), 1) / sums


def _powers(logits: Tensor, dim: int, mask: Tensor | None = None) -> Tensor:
    """exp(logits), the largest over ``dim`` 1 and none a denormal number; 0 where mask is False."""
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    logits = logits - logits.amax(dim, keepdim=True)
    return _without(
        mask,
        logits.clamp_min(_SMALLEST_LOGIT).exp() if logits.requires_grad else logits.clamp_min_(_SMALLEST_LOGIT).exp_(),
    )


def _powers_again(powers: Tensor, sums: Tensor, mask: Tensor | None = None) -> Tensor:
    """Those of the softmax powers / sums, divided by 0.01, times a constant. Overwrites ``powers``."""
    scale = (TEMPERATURE * sums).reciprocal()
    return _without(
        mask,
        (powers * scale - _MIDDLE).exp() if powers.requires_grad else powers.mul_(scale).sub_(_MIDDLE).exp_(),
    )


def _without(mask: Tensor | None, powers: Tensor) -> Tensor:
    return powers if mask is None else powers.masked_fill(~mask, 0.0)


def _times(powers: Tensor, logits: Tensor) -> Tensor:
    """Their product; ``powers``, which nobody else holds, is overwritten where no gradient is wanted."""
    return powers * logits if powers.requires_grad else powers.mul_(logits)
