"""A text encoder that remembers: who evaluates asks for the same texts more than once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from stages.models.clip import TextFeatures
from stages.search import QUERIES_PER_BATCH, TextEncoder


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """One text, on the CPU."""

    sentence: Tensor
    """float32 [D]."""
    words: Tensor
    """float32 [w, D], without padding unless that is kept."""
    word_mask: Tensor
    """bool [w]."""
    indicators: Tensor | None
    """float32 [M, D]."""
    has_padding: bool
    """As in TextFeatures."""

    @property
    def size_bytes(self) -> int:
        parts = (self.sentence, self.words, self.word_mask, self.indicators)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)


class TextCache:
    """Encodes each text once, as long as the features fit into ``capacity_bytes``; the oldest are forgotten first.

    Sentence embeddings are never forgotten: D numbers a text, which the exact ranks need. Equal texts are one text.
    """

    def __init__(self, encoder: TextEncoder, capacity_bytes: int) -> None:
        self._encoder = encoder
        self._capacity_bytes = capacity_bytes
        self._kept: dict[str, _Kept] = {}
        self._kept_bytes = 0
        self._sentences: dict[str, NDArray[np.float32]] = {}
        self.max_text_bytes = 1
        """Of the largest features of one text seen so far."""

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Features of all texts, on the CPU."""
        found = {text: self._kept[text] for text in texts if text in self._kept}
        for text, features in self._encoded([text for text in dict.fromkeys(texts) if text not in found]):
            found[text] = features
        return _stacked([found[text] for text in texts])

    def sentences(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The sentence embeddings of all texts, float32 [T, D], raw."""
        for _ in self._encoded([text for text in dict.fromkeys(texts) if text not in self._sentences]):
            pass
        return np.stack([self._sentences[text] for text in texts])

    def _encoded(self, texts: Sequence[str]) -> Iterator[tuple[str, _Kept]]:
        """Encode and remember these texts, all different."""
        for start in range(0, len(texts), QUERIES_PER_BATCH):
            batch = texts[start : start + QUERIES_PER_BATCH]
            for text, features in zip(batch, _taken_apart(self._encoder.encode_texts(batch)), strict=True):
                self._remember(text, features)
                yield text, features

    def _remember(self, text: str, features: _Kept) -> None:
        self._sentences[text] = features.sentence.numpy()
        self.max_text_bytes = max(self.max_text_bytes, features.size_bytes)
        self._kept[text] = features
        self._kept_bytes += features.size_bytes
        while self._kept_bytes > self._capacity_bytes:
            self._kept_bytes -= self._kept.pop(next(iter(self._kept))).size_bytes


def _taken_apart(features: TextFeatures) -> Iterator[_Kept]:
    """Each text by itself; copies, so that one that is kept does not keep its batch."""
    mask = features.word_mask.cpu()
    if features.has_padding:
        lengths = [mask.shape[1]] * len(mask)
    else:
        lengths = (
            (mask * torch.arange(1, mask.shape[1] + 1)).amax(dim=1) if mask.shape[1] else mask.sum(dim=1)
        ).tolist()
    sentence, words = features.sentence.cpu(), features.words.cpu()
    indicators = None if features.indicators is None else features.indicators.cpu()
    for row, length in enumerate(lengths):
        yield _Kept(
            sentence[row].clone(),
            words[row, :length].clone(),
            mask[row, :length].clone(),
            None if indicators is None else indicators[row].clone(),
            features.has_padding,
        )


def _stacked(kept: Sequence[_Kept]) -> TextFeatures:
    """The texts side by side, padded to the longest."""
    longest = max(len(one.word_mask) for one in kept)
    indicators = [one.indicators for one in kept if one.indicators is not None]
    return TextFeatures(
        torch.stack([one.sentence for one in kept]),
        torch.stack([pad(one.words, (0, 0, 0, longest - len(one.words))) for one in kept]),
        torch.stack([pad(one.word_mask, (0, longest - len(one.word_mask))) for one in kept]),
        torch.stack(indicators) if indicators else None,
        kept[0].has_padding,
    )
