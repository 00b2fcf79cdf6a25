"""Texts as sentence and words, and the words without padding: it costs no product, the longest text changes no bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SentenceAndWords:
    """What does not depend on the video, of T texts; the axes of T may have any shape."""

    sentence: Tensor
    """float32 [T, D], of the length that the method wants, as the words."""
    words: Tensor
    """float32 [T, W, D]; anything finite where masked."""
    word_mask: Tensor
    """bool [T, W], True = takes part; one does in every text."""

    def __getitem__(self, rows: int | slice | Tensor | None) -> SentenceAndWords:
        """Some of the texts."""
        return SentenceAndWords(self.sentence[rows], self.words[rows], self.word_mask[rows])


class WordsByPlace:
    """The R real words of Q texts: the first of every text, then the second of every text that has one, and so on.

    Longer texts come first, so that the n-th words belong to the first texts. ``order`` says which those are; what is
    made of each text comes in this order, until ``in_order`` puts it back.
    """

    def __init__(self, word_mask: Tensor) -> None:
        """From bool [Q, W] of texts that have a word at least; positions that no text uses are forgotten."""
        used = word_mask.any(0).nonzero()
        word_mask = word_mask[:, : int(used[-1]) + 1] if len(used) else word_mask
        counts = word_mask.sum(1)
        self.order = counts.argsort(descending=True, stable=True)
        """int64 [Q], the texts, longest first."""
        counts, self._width = counts[self.order], word_mask.shape[1]
        places = torch.arange(int(counts[0]) if len(counts) else 0, device=word_mask.device)
        has = places[:, None] < counts  # [longest, Q]
        self._sizes: list[int] = has.sum(1).tolist()
        starts = word_mask.flatten().cumsum(0).view(word_mask.shape)[:, -1][self.order] - counts
        self._flat = word_mask.flatten().nonzero().squeeze(1)[(starts + places[:, None])[has]]
        """int64 [R], where the words are in [Q * W], W without the positions that are forgotten."""

    @property
    def number(self) -> int:
        """R."""
        return len(self._flat)

    def pack(self, values: Tensor) -> Tensor:
        """Of [Q, W, ...], the real words' [R, ...]."""
        places = self._flat // self._width * values.shape[1] + self._flat % self._width
        return values.flatten(0, 1).index_select(0, places)

    def in_order(self, values: Tensor) -> Tensor:
        """Of each text, [Q, ...] by length, in the order in which the texts were given."""
        return torch.empty_like(values).index_copy_(0, self.order, values)

    def runs(self, packed: Tensor) -> Iterator[Tensor]:
        """Of [R, ...], the words of m places that the same n texts have, [m, n, ...]; they are the first n texts."""
        start = 0
        for num_texts, places in itertools.groupby(self._sizes):
            number = num_texts * len(list(places))
            yield packed.narrow(0, start, number).view(-1, num_texts, *packed.shape[1:])
            start += number

    def amax(self, packed: Tensor) -> Tensor:
        """The largest of each text: [R, ...] -> [Q, ...] by length."""
        if torch.is_grad_enabled():
            padding = ~self.mask.view(*self.mask.shape, *[1] * (packed.ndim - 1))
            return self.unpack(packed).masked_fill(padding, -torch.inf).amax(1)
        first, *others = self.runs(packed)
        result = first.amax(0)
        for run in others:
            part = result.narrow(0, 0, run.shape[1])
            torch.maximum(part, run.amax(0), out=part)
        return result

    def total(self, packed: Tensor) -> Tensor:
        """The sum over each text, word by word: [R, ...] -> [Q, ...] by length."""
        result = packed.narrow(0, 0, len(self.order)).clone()
        for number, run in enumerate(self.runs(packed)):
            part = result.narrow(0, 0, run.shape[1])
            for place in run[1:] if number == 0 else run:
                part += place
        return result

    def each(
        self, operation: Callable[..., Tensor], packed: Tensor, of_texts: Tensor, out: Tensor | None = None
    ) -> Tensor:
        """An operation on [R, ...] and what belongs to each text, [Q, ...] by length: [R, ...]. Has no gradient."""
        out = torch.empty_like(packed) if out is None else out
        for run, result in zip(self.runs(packed), self.runs(out), strict=True):
            operation(run, of_texts.narrow(0, 0, run.shape[1]), out=result)
        return out

    def weighted(self, logits: Tensor) -> Tensor:
        """The sum of softmax(x) x over each text: [R, ...] -> [Q, ...] by length. Has no gradient."""
        powers = self.each(torch.sub, logits, self.amax(logits)).exp_()
        norm = self.total(powers)
        return self.total(powers.mul_(logits)).div_(norm)

    # -- with room for padding: what training and matrices of weights need --

    @cached_property
    def mask(self) -> Tensor:
        """Bool [Q, W], by length."""
        mask = torch.zeros(len(self.order) * self._width, dtype=torch.bool, device=self.order.device)
        return mask.index_fill_(0, self._flat, True).view(-1, self._width)[self.order]

    def unpack(self, packed: Tensor) -> Tensor:
        """Of R words, [R, ...], each text's own, [Q, W, ...] by length; 0 where there is no word."""
        whole = packed.new_zeros(len(self.order) * self._width, *packed.shape[1:])
        whole = whole.index_copy(0, self._flat, packed)
        return whole.view(-1, self._width, *packed.shape[1:])[self.order]


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
