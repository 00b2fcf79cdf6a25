"""Sources (folders, files, manifests), and every file in them with what ``stat`` says of it."""

from __future__ import annotations

import errno
import heapq
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Literal

from index_store.errors import InputError
from stages.keys import printable_name
from stages.looks import looks_like_video
from stages.manifest import MANIFEST_SUFFIXES, read_manifest
from stages.walk import FileStatus, ScanProblem, file_status, walk

FoundFile = tuple[str, FileStatus, int]
"""(absolute path, its status, number of its source)."""

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
        status = file_status(path)
        if isinstance(status, OSError):
            return cls(path, "missing", status.strerror or str(status))
        if stat.S_ISDIR(status.st_mode):
            return cls(path, "folder")
        if os.path.splitext(path)[1].lower() not in MANIFEST_SUFFIXES:
            return cls(path, "file")
        listed: dict[str, str] = {}
        for listed_path, key in read_manifest(Path(path)):
            listed.setdefault(os.path.abspath(listed_path), key)
        return cls(path, "manifest", listed={name: listed[name] for name in sorted(listed)})

    def files(self, problems: list[ScanProblem]) -> Iterator[tuple[str, FileStatus]]:
        """(path, status) of each file, in the order of the paths."""
        if self.kind == "folder":
            return walk(self.path, problems)
        paths = [self.path] if self.kind == "file" else self.listed
        return ((path, file_status(path)) for path in paths)

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
        """Folders that could not be listed; complete when ``files`` has come to its end."""

    def require_all(self) -> None:
        """Raise InputError for a source that is missing."""
        for source in self.sources:
            if source.kind == "missing":
                raise InputError(
                    f"source {printable_name(source.path)} does not exist ({source.reason}); give a folder, a video, "
                    "or a CSV or JSONL manifest"
                )

    def files(self) -> Iterator[FoundFile]:
        """Every file once, with the first of its sources, in the order of the paths."""
        if len(self.sources) == 1:
            return self._files(0)
        return self._merged()

    def is_video(self, found: FoundFile) -> bool:
        """Whether a file counts as a video: whatever is listed, and what looks like one in a folder."""
        return self.sources[found[2]].kind != "folder" or looks_like_video(found[0])

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

    def _files(self, number: int) -> Iterator[FoundFile]:
        for path, status in self.sources[number].files(self.problems):
            yield path, status, number

    def _merged(self) -> Iterator[FoundFile]:
        last = ""
        streams = [self._files(number) for number, source in enumerate(self.sources) if source.kind != "missing"]
        for found in heapq.merge(*streams, key=itemgetter(0)):
            if found[0] != last:
                last = found[0]
                yield found
