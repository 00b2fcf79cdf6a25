"""Sources (folders, files, manifests) -> the video files in them, in a fixed order.

A file counts as a video when its suffix says so or its first bytes do. What has a video's suffix but cannot be one (a
dangling link, a pipe, an empty file) is still listed: extract records it with its reason. All else is left alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from index_store.records import VideoFile
from stages.keys import unique_key
from stages.looks import looks_like_video
from stages.sources import Sources
from stages.walk import ScanProblem


@dataclass(slots=True)
class ScanResult:
    """What the sources hold: files sorted by key, and what could not be looked at."""

    files: list[VideoFile] = field(default_factory=list)
    problems: list[ScanProblem] = field(default_factory=list)
    num_ignored: int = 0
    """Files that are no videos by suffix and by content."""


def scan(paths: Sequence[str | Path]) -> ScanResult:
    """List the videos of all sources.

    A source is a folder (searched through, links followed, loops cut), a file, or a CSV, TSV or JSONL manifest with a
    column ``path`` and, if wanted, ``key``. Keys are POSIX paths relative to the folder; a file's key is its name. Two
    files that want the same key are told apart by the names of the folders above them. Raises InputError for a source
    that does not exist or a manifest with a broken line.
    """
    sources = Sources(paths)
    sources.require_all()
    result = ScanResult(problems=sources.problems)
    seen: set[str] = set()
    found: dict[str, VideoFile] = {}
    for source in sources.sources:
        for path, size_bytes, mtime_ns, inode in itertools.chain.from_iterable(source.batches(sources.problems)):
            if path in seen:
                continue
            seen.add(path)
            if source.kind == "folder" and not looks_like_video(path):
                result.num_ignored += 1
                continue
            key = unique_key(source.key(path), Path(path), found)
            found[key] = VideoFile(key, Path(path), size_bytes, mtime_ns, inode)
    result.files = [found[key] for key in sorted(found)]
    return result
