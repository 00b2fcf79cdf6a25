"""Byte-pair merges: applied to a word, learned from texts, and written as the file that CLIP's tokenizer reads."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

Symbols = tuple[str, ...]
Pair = tuple[str, str]


def learn_merges(texts: Iterable[str], num_merges: int) -> list[Pair]:
    """The ``num_merges`` most useful merges, most useful first; fewer when every word has become one symbol.

    Texts are lower-case ASCII words; a word's last symbol carries ``</w>``. Ties go to the pair that sorts first.
    """
    words: Counter[Symbols] = Counter()
    for text in texts:
        for word in text.replace(",", " , ").split():
            split = (*word[:-1], word[-1] + "</w>")
            words[split] += 1
    merges: list[Pair] = []
    while len(merges) < num_merges:
        pairs: Counter[Pair] = Counter()
        for symbols, count in words.items():
            for pair in pairwise(symbols):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = Counter({merged(symbols, best): count for symbols, count in words.items()})
    return merges


def merged(word: Symbols, pair: Pair) -> Symbols:
    """The word with every occurrence of the pair joined, from left to right."""
    joined: list[str] = []
    for symbol in word:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return tuple(joined)


def write_merges(path: Path, merges: list[Pair]) -> None:
    """Write the gzip file of SimpleTokenizer: a heading, then one merge a line; same merges, same bytes."""
    # No newline at the end: SimpleTokenizer would take the empty line after it for one more merge.
    text = "\n".join(["#version: 0.2", *(f"{first} {second}" for first, second in merges)])
    path.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))
