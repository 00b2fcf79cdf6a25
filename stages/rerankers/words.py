"""Texts as sentence and words, and the words without padding: it costs no product, the longest text changes no bit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
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


@dataclass(frozen=True, slots=True)
class SameLength:
    """Texts of W words each that follow each other."""

    texts: slice
    """n of the Q texts by length."""
    rows: slice
    """Of the R words."""
    num_words: int
    """W."""

    def of(self, packed: Tensor) -> Tensor:
        """Their words' part of [R, ...], as [n, W, ...]."""
        return packed[self.rows].view(-1, self.num_words, *packed.shape[1:])


class TextsByLength:
    """The R real words of Q texts, text by text, shorter texts first: those of one length have no padding.

    ``order`` says which text comes when; what is made of each comes in this order, until ``in_order`` puts it back.
    """

    def __init__(self, word_mask: Tensor) -> None:
        """From bool [Q, W] of texts that have a word at least."""
        counts = word_mask.sum(1)
        self.order = counts.argsort(stable=True)
        """int64 [Q], the texts, shortest first."""
        self._counts: list[int] = counts[self.order].tolist()
        places = torch.arange(word_mask.numel(), device=word_mask.device).view(word_mask.shape)
        self._flat = places[self.order][word_mask[self.order]]
        """int64 [R], where the words are in [Q * W]."""

    def pack(self, values: Tensor) -> Tensor:
        """Of [Q, W, ...], the real words' [R, ...]."""
        return values.flatten(0, 1).index_select(0, self._flat)

    def in_order(self, values: Tensor) -> Tensor:
        """Of each text, [Q, ...] by length, in the order in which the texts were given."""
        return torch.empty_like(values).index_copy_(0, self.order, values)

    def groups(self, num_words: int) -> Iterator[SameLength]:
        """All texts, those of one length together as long as that is not more than ``num_words`` words."""
        text = row = 0
        for count, texts in itertools.groupby(self._counts):
            left, most = len(list(texts)), max(1, num_words // max(1, count))
            while left:
                number = min(left, most)
                yield SameLength(slice(text, text + number), slice(row, row + number * count), count)
                text, row, left = text + number, row + number * count, left - number


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

    # -- with room for padding: what training needs --

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
