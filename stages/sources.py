"""Sources (folders, files, manifests), and every file in them with what ``stat`` says of it."""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from index_store.errors import InputError
from stages.keys import printable_name
from stages.looks import looks_like_video
from stages.manifest import MANIFEST_SUFFIXES, read_manifest
from stages.walk import BATCH_FILES, ListedFile, ScanProblem, listed_file, walk

GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""``stat`` fails with one of these where there is no file; with any other, nobody knows."""


@dataclass(frozen=True, slots=True)
class Source:
    """One source as it is now."""

    path: str
    """Absolute."""
    kind: Literal["folder", "file", "manifest", "missing"]
    reason: str = ""
    """Why a missing one cannot be used."""
    listed: dict[str, str] = field(default_factory=dict)
    """Of a manifest: absolute path -> key, sorted by path."""

    @classmethod
    def open(cls, source: str | Path) -> Source:
        """Look at a source. Raises InputError for a manifest with a broken line."""
        path = os.path.abspath(source)
        try:
            status = os.stat(path)
        except OSError as error:
            return cls(path, "missing", error.strerror or str(error))
        if stat.S_ISDIR(status.st_mode):
            return cls(path, "folder")
        if os.path.splitext(path)[1].lower() not in MANIFEST_SUFFIXES:
            return cls(path, "file")
        listed: dict[str, str] = {}
        for listed_path, key in read_manifest(Path(path)):
            listed.setdefault(os.path.abspath(listed_path), key)
        return cls(path, "manifest", listed={name: listed[name] for name in sorted(listed)})

    def batches(self, problems: list[ScanProblem]) -> Iterator[list[ListedFile]]:
        """Its files in the order of their paths, some at a time; what could not be listed is added to ``problems``."""
        if self.kind == "folder":
            return walk(self.path, problems)
        paths = iter([self.path] if self.kind == "file" else self.listed)
        return iter(lambda: [listed_file(path) for path in itertools.islice(paths, BATCH_FILES)], [])

    def key(self, path: str) -> str:
        """What users call the file at ``path``: POSIX, relative to a folder; a single file's name."""
        if self.kind == "manifest":
            return self.listed[path]
        start = 1 + (len(self.path.rstrip("/")) if self.kind == "folder" else self.path.rindex("/"))
        return printable_name(path[start:])


class Sources:
    """Several sources, gone through together."""

    def __init__(self, sources: Sequence[str | Path]) -> None:
        self.sources = [Source.open(source) for source in sources]
        self.problems: list[ScanProblem] = []
        """Folders that could not be listed; complete when ``batches`` has come to its end."""

    def require_all(self) -> None:
        """Raise InputError for a source that is missing."""
        for source in self.sources:
            if source.kind == "missing":
                raise InputError(
                    f"source {printable_name(source.path)} does not exist ({source.reason}); give a folder, a video, "
                    "or a CSV or JSONL manifest"
                )

    def batches(self) -> Iterator[tuple[int, list[ListedFile]]]:
        """(number of the source, some of its files): every file once, with the first of its sources, by path."""
        there = [(number, source) for number, source in enumerate(self.sources) if source.kind != "missing"]
        there.sort(key=lambda pair: pair[1].path + "/")
        ends = itertools.pairwise(there)
        if all(source.kind == "folder" for _, source in there) and not any(
            (after.path + "/").startswith(before.path.rstrip("/") + "/") for (_, before), (_, after) in ends
        ):
            for number, source in there:
                for batch in source.batches(self.problems):
                    yield number, batch
        else:
            yield from self._merged()

    def is_video(self, path: str, number: int) -> bool:
        """Whether a file counts as a video: whatever is listed, and what looks like one in a folder."""
        return self.sources[number].kind != "folder" or looks_like_video(path)

    def key(self, path: str, number: int) -> str:
        """What users call a file of source ``number``, unless another one has that name."""
        return self.sources[number].key(path)

    def covering(self, path: str) -> int | None:
        """Number of the source that must hold ``path``, or nobody does: a folder above it, the file, a manifest.

        A manifest is the list of all videos that lie in no folder of the sources.
        """
        manifest = None
        for number, source in enumerate(self.sources):
            if source.kind in ("folder", "missing") and path.startswith(source.path.rstrip("/") + "/"):
                return number
            if path == source.path:
                return number
            if manifest is None and source.kind == "manifest":
                manifest = number
        return manifest

    def _merged(self) -> Iterator[tuple[int, list[ListedFile]]]:
        """Sources that overlap: file by file."""

        def numbered(number: int, source: Source) -> Iterator[tuple[str, int, ListedFile]]:
            for batch in source.batches(self.problems):
                yield from ((file[0], number, file) for file in batch)

        last = ""
        streams = [numbered(number, source) for number, source in enumerate(self.sources) if source.kind != "missing"]
        for path, number, file in heapq.merge(*streams):
            if path != last:
                last = path
                yield number, [file]
