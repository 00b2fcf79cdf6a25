"""The twice sharpened sum B(x; M) = sum_j softmax(softmax(x / 0.01) M / 0.01)_j x_j of UCoFiA.

All functions are given x / 0.01 and give B / 0.01: then the first softmax has nothing to divide.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.rerankers.fixed_shape import linear, softmax, total
from stages.rerankers.matrices import TEMPERATURE, fitted
from stages.rerankers.words import WordsByPlace

_SMALLEST_LOGIT = -60.0
"""Against 1, exp(-60) is nothing; exp(-100) is a denormal number, with which a processor is 50 times slower."""


def real(mask: Tensor) -> Tensor | None:
    """The mask, or None where it masks nothing."""
    return None if bool(mask.all()) else mask


def _powers(logits: Tensor, dim: int, mask: Tensor | None = None) -> Tensor:
    """exp(logits), the largest over ``dim`` 1 and none a denormal number; 0 where mask is False."""
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    return _exp(logits - logits.amax(dim, keepdim=True), mask)


def _powers_again(powers: Tensor, sums: Tensor, mask: Tensor | None = None) -> Tensor:
    """The same of the softmax powers / sums, divided by 0.01, whose largest is 1 / sums. Overwrites ``powers``."""
    scale = 1 / (TEMPERATURE * sums)
    return _exp((powers - 1) * scale if powers.requires_grad else powers.sub_(1).mul_(scale), mask)


def _exp(logits: Tensor, mask: Tensor | None) -> Tensor:
    """What nobody else holds is overwritten where no gradient is wanted."""
    powers = (
        logits.clamp_min(_SMALLEST_LOGIT).exp() if logits.requires_grad else logits.clamp_min_(_SMALLEST_LOGIT).exp_()
    )
    return powers if mask is None else powers.masked_fill(~mask, 0.0)


def mixing_of(matrix: Tensor | None, size: int) -> Tensor | None:
    """[size + 1, size]: what makes of powers, from the left, the logits of the second softmax, and their sum.

    None for the identity.
    """
    if matrix is None:
        return None
    return torch.cat([fitted(matrix, size).T / TEMPERATURE, matrix.new_ones(1, size)])


def over_last(logits: Tensor, mask: Tensor | None, mixing: Tensor | None) -> Tensor:
    """B over the last axis of float32 [..., c, N], whose N is that of a store; mask bool [c, N]."""
    powers = _powers(logits, -1, mask)
    if mixing is None:
        powers = _powers_again(powers, powers.sum(-1, keepdim=True), mask)
    else:
        mixed = linear(powers, mixing)
        powers = _powers(mixed[..., :-1] / mixed[..., -1:], -1, mask)
    sums = powers.sum(-1)
    return (powers * logits if powers.requires_grad else powers.mul_(logits)).sum(-1) / sums


def over_each_texts_words(logits: Tensor, words: WordsByPlace) -> Tensor:
    """B with the identity over the words of each text: [R, ...] -> [Q, ...] by length. Has no gradient."""
    powers = words.each(torch.sub, logits, words.amax(logits)).clamp_min_(_SMALLEST_LOGIT).exp_()
    scale = 1 / (TEMPERATURE * words.total(powers))
    powers = words.each(torch.mul, powers.sub_(1), scale, out=powers).clamp_min_(_SMALLEST_LOGIT).exp_()
    sums = words.total(powers)
    return words.total(powers.mul_(logits)).div_(sums)


def over_words(logits: Tensor, mixing: Tensor | None) -> Tensor:
    """B over the first axis of float32 [W, c, N], the words of one text: [c, N].

    Every sum is a product with ones, video by video: its last bits then depend on that video only.
    """
    num_words, num_videos, _ = logits.shape
    ones = logits.new_ones(num_videos, 1, num_words)
    powers = _powers(logits, 0).transpose(0, 1)
    if mixing is None:
        powers = _powers_again(powers, torch.bmm(ones, powers))
    else:
        mixed = torch.bmm(mixing.expand(num_videos, -1, -1), powers)
        powers = _powers(mixed[:, :-1] / mixed[:, -1:], 1)
    return (torch.bmm(ones, powers * logits.transpose(0, 1)) / torch.bmm(ones, powers))[:, 0]


def over_padded_words(logits: Tensor, mask: Tensor, matrix: Tensor | None) -> Tensor:
    """B over the middle axis of float32 [Q, W, c]; mask bool [Q, W, 1], True = a word: [Q, c]."""
    weights = softmax(logits.masked_fill(~mask, -torch.inf), 1)
    if matrix is not None:
        weights = linear(weights.movedim(1, -1), fitted(matrix, logits.shape[1]).T).movedim(-1, 1)
    weights = softmax((weights / TEMPERATURE).masked_fill(~mask, -torch.inf), 1)
    return total(weights * logits, 1)
