"""Captions of videos in the formats that people have, and which video of a store each belongs to."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from index_store.errors import InputError
from index_store.lines import Line, read_csv_records, read_lines, shown

KEY_NAMES = ("video_id", "video", "key")
"""Names of a caption's video in JSON Lines and headers; the first that is present counts. MSR-VTT has key as well."""

TEXT_NAMES = ("caption", "captions", "text", "sentence", "description")
"""Names of its text; the first that is present counts."""

_SPLIT = "split"


@dataclass(frozen=True, slots=True)
class Caption:
    """What one person said about one video."""

    id: str
    """Its number in the file, from 1."""
    key: str
    """The video, as the file names it."""
    text: str


@dataclass(frozen=True, slots=True)
class MatchedCaptions:
    """Captions and the videos of a store that they belong to."""

    found: Sequence[tuple[Caption, str]]
    """Each with its video's key in the store."""
    unknown: Sequence[Caption]
    """About videos that the store lacks."""
    ambiguous: Sequence[tuple[Caption, tuple[str, ...]]]
    """About a name that several videos have, and those."""

    def left_out(self, kind: str = "captions") -> tuple[str, ...]:
        """Sentences about what was not found, naming an example; none where all was."""
        total = len(self.found) + len(self.unknown) + len(self.ambiguous)
        said = []
        if self.unknown:
            number = len({caption.key for caption in self.unknown})
            videos = f"{number} videos without features in the store (first: {self.unknown[0].key})"
            said.append(f"{len(self.unknown)} of {total} {kind} are about {videos} and were left out")
        if self.ambiguous:
            caption, keys = self.ambiguous[0]
            example = f"{caption.key} is {keys[0]} or {keys[1]}"
            said.append(f"{len(self.ambiguous)} of {total} {kind} fit several videos (first: {example}), left out")
        return tuple(said)


def read_captions(path: Path, split: str = "") -> list[Caption]:
    """All captions of a file in its order; white space around keys and texts is dropped.

    ``.jsonl``, and ``-`` for standard input: ``{"key": ..., "caption": ...}`` a line, one text or a list of them.
    ``.csv`` and ``.tsv``: a header with one of KEY_NAMES and one of TEXT_NAMES. ``.json``: ``{key: text or texts}``.
    With ``split`` only those whose field ``split`` says so. Raises InputError naming file, line, found and expected.
    """
    parsers: dict[str, Callable[[Path], Iterator[tuple[Line, dict[str, Any]]]]] = {
        ".jsonl": _jsonl_records,
        ".csv": _csv_records,
        ".tsv": _tsv_records,
        ".json": _json_records,
    }
    parse = _jsonl_records if str(path) == "-" else parsers.get(path.suffix.lower())
    if parse is None:
        raise InputError(f"{path} has the suffix {path.suffix!r}; captions are read from {', '.join(parsers)} files")
    captions: list[Caption] = []
    splits: set[str] = set()
    for line, record in parse(path):
        if split:
            found_split = str(record.get(_SPLIT, ""))
            splits.add(found_split)
            if found_split != split:
                continue
        key, texts = _key_and_texts(line, record)
        captions += [Caption(str(len(captions) + at), key, text) for at, text in enumerate(texts, start=1)]
    if not captions and splits:
        named = ", ".join(shown(name) for name in sorted(splits - {""})) or "no split"
        raise InputError(f"{path} has no caption of the split {split!r}; it names {named}")
    if not captions:
        raise InputError(f"{path} holds no caption; expected a video and a text in each line")
    return captions


class VideoNames:
    """The videos of a store by the names that people call them."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = set(keys)
        self._by_name: list[dict[str, list[str]]] = [defaultdict(list), defaultdict(list)]
        for key in sorted(self._keys):
            self._by_name[0][PurePosixPath(key).name].append(key)
            self._by_name[1][PurePosixPath(key).stem].append(key)

    def find(self, name: str) -> tuple[str, ...]:
        """The keys that ``name`` may mean; several mean nobody.

        The key itself, else the file's name in whatever folder, else that name without its suffix (in the store, then
        in both).
        """
        if name in self._keys:
            return (name,)
        path = PurePosixPath(name)
        ways = ((0, path.name), (1, path.name), (1, path.stem))
        return tuple(next((self._by_name[at][said] for at, said in ways if said in self._by_name[at]), ()))


def match_captions(captions: Iterable[Caption], keys: Iterable[str]) -> MatchedCaptions:
    """Find each caption's video among the store's ``keys``, as VideoNames does. Several videos of a name: nobody's."""
    names = VideoNames(keys)
    found, unknown, ambiguous = [], [], []
    for caption in captions:
        fitting = names.find(caption.key)
        if len(fitting) == 1:
            found.append((caption, fitting[0]))
        elif fitting:
            ambiguous.append((caption, fitting))
        else:
            unknown.append(caption)
    return MatchedCaptions(found, unknown, ambiguous)


def _key_and_texts(line: Line, record: dict[str, Any]) -> tuple[str, list[str]]:
    expected = 'a video and what it shows, like {"key": "clip.mp4", "caption": "a dog runs"}'
    key = next((record[name] for name in KEY_NAMES if name in record), None)
    said = next((record[name] for name in TEXT_NAMES if name in record), None)
    if isinstance(key, int) and not isinstance(key, bool):
        key = str(key)
    texts = [said] if isinstance(said, str) else said
    if not isinstance(key, str) or not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise line.broken(line.shown() if line.text else shown(str(record)), expected)
    key, texts = key.strip(), [text.strip() for text in texts]
    if not key or not texts or not all(texts):
        raise line.broken("an empty " + ("caption" if key else "video key"), expected)
    for value in (key, *texts):
        line.check_whole(value)
    return key, texts


def _jsonl_records(path: Path) -> Iterator[tuple[Line, dict[str, Any]]]:
    for line in read_lines(path):
        try:
            parsed = json.loads(line.text)
        except (ValueError, RecursionError) as error:
            raise line.broken(line.shown(), "a JSON object") from error
        if not isinstance(parsed, dict):
            raise line.broken(line.shown(), "a JSON object")
        yield line, parsed


def _json_records(path: Path) -> Iterator[tuple[Line, dict[str, Any]]]:
    expected = 'one object like {"clip.mp4": ["a dog runs", "a brown dog"]}'
    whole = Line(path, 1, "\n".join(line.text for line in read_lines(path)))
    try:
        parsed = json.loads(whole.text)
    except (ValueError, RecursionError) as error:
        raise whole.broken(whole.shown(), expected) from error
    if not isinstance(parsed, dict):
        raise whole.broken(whole.shown(), expected)
    for key, texts in parsed.items():
        yield Line(path, 1, ""), {"key": key, "caption": texts}


def _tsv_records(path: Path) -> Iterator[tuple[Line, dict[str, Any]]]:
    return _table_records((line, line.text.split("\t")) for line in read_lines(path))


def _csv_records(path: Path) -> Iterator[tuple[Line, dict[str, Any]]]:
    return _table_records(read_csv_records(path))


def _table_records(rows: Iterator[tuple[Line, list[str]]]) -> Iterator[tuple[Line, dict[str, Any]]]:
    first = next(rows, None)
    if first is None:
        return
    line, header = first
    names = [name.strip().lower() for name in header]
    if not set(names) & set(KEY_NAMES) or not set(names) & set(TEXT_NAMES):
        columns = ", ".join(shown(name) for name in names)
        expected = f"a header with one of {', '.join(KEY_NAMES)} and one of {', '.join(TEXT_NAMES)}"
        raise line.broken(f"the columns {columns}", expected)
    for line, cells in rows:
        if len(cells) != len(names):
            raise line.broken(f"{len(cells)} columns", f"{len(names)}, as in the header")
        yield line, dict(zip(names, cells, strict=True))
