"""The words of several texts without their padding: it costs no product, and the longest text changes no bit."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.rerankers.fixed_shape import total


class RealWords:
    """The places of the R real words of Q texts, one after the other."""

    def __init__(self, word_mask: Tensor) -> None:
        """From bool [Q, W]; words after the last one of the longest text are forgotten."""
        used = word_mask.any(0).nonzero()
        longest = int(used[-1]) + 1 if len(used) else 1
        self.mask = word_mask[:, :longest]
        """bool [Q, W], True = a word."""
        ends = self.mask.sum(1).cumsum(0)
        rows = self.mask.flatten().cumsum(0).view(self.mask.shape) - 1
        self._rows = torch.where(self.mask, rows, ends.unsqueeze(1) - 1).clamp_min(0)
        """Padding is given the last word of its own text, so that it spoils no other."""

    def unpack(self, packed: Tensor) -> Tensor:
        """Of R words, [R, ...], each text's own, [Q, W, ...]; something of the text's own where there is no word."""
        return packed[self._rows]

    def total(self, packed: Tensor) -> Tensor:
        """Sum over the words of each text: [R, c] -> [Q, c]."""
        return total(self.unpack(packed).masked_fill(~self.mask.unsqueeze(-1), 0.0), 1)
