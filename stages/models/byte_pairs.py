"""CLIP's tokenizer: text -> ids of byte pairs. It gives what open_clip's SimpleTokenizer gives, without open_clip.

A word is the characters that stand for its bytes, the last one with ``</w>``; neighbours are joined, most useful pair
first, as long as the list of merges has one. Ids: 256 bytes, 256 bytes that end a word, the merges, start, end of text.
"""

from __future__ import annotations

import gzip
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from stages.models.bpe import Pair, Symbols, merged

START, END = "<start_of_text>", "<end_of_text>"
WORD_END = "</w>"
MOST_MERGES = 49152 - 256 - 2
"""As many of a longer file are used."""

_OTHERS = r"'s|'t|'re|'ve|'m|'ll|'d"
_PLAIN_WORDS = re.compile(rf"{START}|{END}|{_OTHERS}|[a-z]+|[0-9]|[^\sa-z0-9]+")
_ANY_WORDS = rf"{START}|{END}|{_OTHERS}|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"


class BytePairTokenizer:
    """Texts -> ids int64 [T, W]: start, byte pairs cut so that the end fits, end, zeros."""

    def __init__(self, merges: Path, context_length: int) -> None:
        """With the gzip file ``merges``: a heading, then one merge a line. Raises OSError, UnicodeDecodeError."""
        content = _first_lines(merges, 1 + MOST_MERGES).replace("\r", "")
        lines = content.split("\n")[1 : 1 + MOST_MERGES]
        symbols = list(_SYMBOL_OF_BYTE.values())
        symbols += [symbol + WORD_END for symbol in symbols]
        symbols += content.replace(" ", "").split("\n")[1 : 1 + MOST_MERGES]
        symbols += [START, END]
        self.context_length = context_length
        self._rank = dict(zip(lines, range(len(lines)), strict=True))
        self._id = dict(zip(symbols, range(len(symbols)), strict=True))
        self.end_id = self._id[END]
        self._known = {special: [self._id[special]] for special in (START, END)}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids int64 [T, W] of the texts; a longer text is cut."""
        rows = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [self._id[START], *self._text_ids(text)][: self.context_length - 1]
            row[: len(ids) + 1] = torch.tensor([*ids, self.end_id])
        return rows

    def _text_ids(self, text: str) -> list[int]:
        return [number for word in words_of(text) for number in self._word_ids(word)]

    def _word_ids(self, word: str) -> list[int]:
        if word not in self._known:
            *symbols, last = [_SYMBOL_OF_BYTE[byte] for byte in word.encode("utf-8")]
            self._known[word] = [self._id[symbol] for symbol in self._joined((*symbols, last + WORD_END))]
        return self._known[word]

    def _joined(self, symbols: Symbols) -> Symbols:
        """The symbols after all merges that apply."""
        while len(symbols) > 1:
            best = min(itertools.pairwise(symbols), key=self._rank_of)
            if self._rank_of(best) == MOST_MERGES:
                break
            symbols = merged(symbols, best)
        return symbols

    def _rank_of(self, pair: Pair) -> int:
        """Its line in the list of merges, which is kept as it was read; MOST_MERGES where it has none."""
        return self._rank.get(" ".join(pair), MOST_MERGES)


def _first_lines(path: Path, number: int) -> str:
    """At least so many lines of a gzip file, or all: five of six lines of CLIP's own file are not used."""
    content = b""
    with gzip.open(path) as file:
        while content.count(b"\n") <= number and (block := file.read(1 << 18)):
            content += block
    return content[: content.rfind(b"\n")].decode("utf-8") if content.count(b"\n") > number else content.decode("utf-8")


def words_of(text: str) -> list[str]:
    """What is tokenised by itself: words, digits and runs of signs, in lower case.

    Broken encodings are mended and HTML entities resolved; the libraries for that, and for the letters of all
    languages, take longer to import than a look whether the text needs them.
    """
    if text.isascii() and text.isprintable() and "&" not in text:
        return _PLAIN_WORDS.findall(text.lower())
    import html

    import ftfy
    import regex

    mended = html.unescape(html.unescape(ftfy.fix_text(text)))
    words: list[str] = regex.findall(_ANY_WORDS, " ".join(mended.split()).lower(), regex.IGNORECASE)
    return words


def _symbols_of_bytes() -> dict[int, str]:
    """A visible character for each byte: those of Latin-1 that can be seen stay, the others come from behind it."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + place) for place, byte in enumerate(unseen)}


_SYMBOL_OF_BYTE = _symbols_of_bytes()
