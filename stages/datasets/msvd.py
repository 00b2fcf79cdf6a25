"""MSVD: each of 18 to 81 captions of a clip is a query; 1200 / 100 / 670 clips in three lists.

Captions: ``captions_msvd.json`` with ``{id: [caption]}``, or ``raw-captions.pkl`` with ``{id: [[token]]}``, tokens
being joined by a space. Some people keep the clips as ``vid<N>``, which ``youtube_mapping.txt`` explains.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from index_store.errors import InputError
from index_store.lines import read_lines
from stages.datasets.base import Dataset, Listing, SplitKind
from stages.datasets.files import Annotations, read_json, read_names, record, text_list
from stages.datasets.plain_pickle import read_plain_pickle

_JSON, _PICKLE = "captions_msvd.json", "raw-captions.pkl"
_LARGEST_RATIO = 64
"""Characters of captions per byte of the pickle: lists in a pickle may be said once and meant many times."""


def _read(files: Annotations, split: str) -> Listing:
    list_path = files.need(f"the list of the split {split}", f"{split}_list.txt")
    names = read_names(list_path)
    paths = [path for name in (_JSON, _PICKLE) if (path := files.find(name))]
    if not paths:
        paths = [files.need("the captions", _JSON, _PICKLE)]
    best, texts = paths[0], dict[str, list[str]]()
    for path in paths:
        read = _from_pickle(path) if path.suffix.lower() == ".pkl" else _from_json(path)
        if not texts or sum(name in read for name in names) > sum(name in texts for name in names):
            best, texts = path, read
        if all(name in texts for name in names):
            break
    return Listing(names, texts, list_path, best, _mapping(files.find("youtube_mapping.txt")))


def _from_json(path: Path) -> dict[str, list[str]]:
    content = record(path, "the file", read_json(path))
    return {name: text_list(path, name, captions) for name, captions in content.items()}


def _from_pickle(path: Path) -> dict[str, list[str]]:
    content: Any = record(path, "the pickle", read_plain_pickle(path))
    room = _LARGEST_RATIO * path.stat().st_size
    texts: dict[str, list[str]] = {}
    for name, captions in content.items():
        if not isinstance(name, str) or not isinstance(captions, list):
            raise InputError(
                f"{path}: expected {{id: [[token, ...], ...]}}, found something else at {ascii(name)[:60]}"
            )
        texts[name] = []
        for tokens in captions:
            said = [tokens] if isinstance(tokens, str) else text_list(path, name, tokens)
            room -= sum(map(len, said)) + len(said)
            if room < 0:
                raise InputError(
                    f"{path} unfolds to more than {_LARGEST_RATIO} times its size; this is no caption file"
                )
            texts[name].append(" ".join(said))
    return texts


def _mapping(path: Path | None) -> dict[str, tuple[str, ...]]:
    """Id of a clip -> its ``vid<N>``."""
    pairs = {} if path is None else {line: line.text.split() for line in read_lines(path)}
    for line, words in pairs.items():
        if len(words) != 2:
            raise line.broken(line.shown(), "an id and vid<N>")
    return {identity: (number,) for identity, number in pairs.values()}


MSVD = Dataset(
    "msvd",
    ("msvd",),
    {
        "train": SplitKind("all captions", 1200),
        "val": SplitKind("all captions", 100),
        "test": SplitKind("all captions", 670),
    },
    "test",
    _read,
)
