"""A split of a benchmark and the videos of a store, for every job that takes ``--dataset``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from index_store.errors import InputError
from stages.datasets.base import MatchedSplit, Split, match_videos


def match_split(split: Split, store: Path, keys: Iterable[str]) -> MatchedSplit:
    """Whose videos the store has, by its keys. Raises InputError where it has none, naming examples of both."""
    known = sorted(keys)
    matched = match_videos(split, known)
    if not matched.found:
        example = f" (such as {known[0]!r})" if known else ""
        raise InputError(
            f"none of the {len(split.videos)} videos of {split} is one of the {len(known)} videos in {store}{example}; "
            f"{split} has videos such as {split.videos[0].names[0]!r}: give a store of its videos"
        )
    return matched
