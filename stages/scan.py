"""Sources (folders, files, manifests) -> the video files in them, in a fixed order.

A file counts as a video when its suffix says so or its first bytes do. What has a video's suffix but cannot be one (a
dangling link, a pipe, an empty file) is still listed: extract records it with its reason. All else is left alone.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import stat
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from index_store.errors import InputError
from index_store.layout import Layout
from index_store.records import VideoFile

_SUFFIXES = """
    .3g2 .3gp .asf .av1 .avi .divx .dv .f4v .flv .gif .h264 .h265 .hevc .ivf .m1v .m2ts .m2v .m4v .mjpeg .mjpg .mkv .mov
    .mp4 .mpe .mpeg .mpg .mpv .mts .mxf .obu .ogg .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv .y4m
"""
VIDEO_SUFFIXES = frozenset(_SUFFIXES.split())
MANIFEST_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl"})

_SNIFF_BYTES = 16
_MAGIC: tuple[tuple[int, bytes], ...] = (
    (4, b"ftyp"),  # ISO media: mp4, mov, 3gp
    (4, b"moov"),
    (4, b"mdat"),
    (0, b"\x1a\x45\xdf\xa3"),  # EBML: Matroska, WebM
    (8, b"AVI "),
    (0, b"GIF8"),
    (0, b"OggS"),
    (0, b"FLV\x01"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),  # ASF
    (0, b"\x00\x00\x01\xba"),  # MPEG program stream
    (0, b"\x00\x00\x01\xb3"),  # MPEG video
    (0, b"DKIF"),  # IVF
)


@dataclass(frozen=True, slots=True)
class ScanProblem:
    """A folder that could not be listed; the files in it are unknown."""

    path: Path
    reason: str


@dataclass(slots=True)
class ScanResult:
    """What the sources hold: files sorted by key, and what could not be looked at."""

    files: list[VideoFile] = field(default_factory=list)
    problems: list[ScanProblem] = field(default_factory=list)
    num_ignored: int = 0
    """Files that are no videos by suffix and by content."""


def scan(sources: Iterable[str | Path]) -> ScanResult:
    """List the videos of all sources.

    A source is a folder (searched through, links followed, loops cut), a file, or a CSV, TSV or JSONL manifest with a
    column ``path`` and, if wanted, ``key``. Keys are POSIX paths relative to the folder; a file's key is its name. Two
    files that want the same key are told apart by the names of the folders above them. Raises InputError for a source
    that does not exist or a manifest with a broken line.
    """
    result = ScanResult()
    seen: set[bytes] = set()
    found: dict[str, VideoFile] = {}
    for source in sources:
        for path, key in _expand(Path(source), result):
            absolute = Path(os.path.abspath(path))
            if os.fsencode(absolute) not in seen:
                seen.add(os.fsencode(absolute))
                free_key = unique_key(key, absolute, found)
                found[free_key] = video_file(absolute, free_key)
    result.files = [found[key] for key in sorted(found)]
    return result


def video_file(path: Path, key: str) -> VideoFile:
    """The record of one path as it is now; size 0 for what cannot be looked at or is not a regular file."""
    try:
        status = path.stat()
    except OSError:
        return VideoFile(key, path, 0, 0, 0)
    size_bytes = status.st_size if stat.S_ISREG(status.st_mode) else 0
    return VideoFile(key, path, size_bytes, status.st_mtime_ns, status.st_ino)


def unique_key(key: str, path: Path, taken: Container[str]) -> str:
    """``key``, or the shortest longer tail of ``path`` that nobody has taken, or at last ``key~2``, ``key~3`` ..."""
    parts = [printable_name(part) for part in path.parts[1:]]
    shortest = key.count("/") + 2
    tails = ("/".join(parts[-length:]) for length in range(shortest, len(parts) + 1))
    numbered = (f"{key}~{number}" for number in itertools.count(2))
    return next(wanted for wanted in itertools.chain([key], tails, numbered) if wanted not in taken)


def in_part(key: str, part: int, num_parts: int) -> bool:
    """Whether ``key`` belongs to a part of ``num_parts``, which may be counted from 0 or from 1 (n of n is 0 of n).

    The choice hangs on the key alone, so adding a video never moves another one to a different part.
    """
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % num_parts == part % num_parts


def printable_name(name: str) -> str:
    r"""A file name as text that every encoder takes: bytes that are not UTF-8 become ``\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def looks_like_video(path: str | Path) -> bool:
    """True when the suffix is a video's, or the first bytes of a regular file are."""
    if os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES:
        return True
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            head = file.read(_SNIFF_BYTES)
    except OSError:
        return False
    return any(head[offset : offset + len(magic)] == magic for offset, magic in _MAGIC)


def _expand(source: Path, result: ScanResult) -> Iterator[tuple[Path, str]]:
    if source.is_dir():
        yield from _walk(source, result)
    elif not os.path.lexists(source):
        raise InputError(
            f"source {printable_name(str(source))} does not exist; give a folder, a video, or a CSV or JSONL manifest"
        )
    elif source.suffix.lower() in MANIFEST_SUFFIXES:
        yield from _read_manifest(source)
    else:
        yield source, printable_name(source.name)


def _walk(root: Path, result: ScanResult) -> Iterator[tuple[Path, str]]:
    """Files below ``root`` that look like videos; every folder once, even when links lead back to it."""
    visited: set[tuple[int, int]] = set()
    pending: list[str] = [str(root)]
    while pending:
        folder = pending.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited or _is_store(Path(folder)):
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            result.problems.append(ScanProblem(Path(folder), error.strerror or str(error)))
            continue
        pending.extend(
            entry.path for entry in reversed(entries) if _is_folder(entry) and not entry.name.startswith(".")
        )
        for entry in entries:
            if _is_folder(entry):
                continue
            if entry.name.startswith("._") or not looks_like_video(entry.path):  # ._x: macOS' resource forks
                result.num_ignored += 1
                continue
            relative = os.path.relpath(entry.path, root)
            yield Path(entry.path), "/".join(printable_name(part) for part in relative.split(os.sep))


def _is_store(folder: Path) -> bool:
    """A store inside a source holds no videos."""
    layout = Layout(folder)
    return layout.settings_path.exists() and layout.catalog_path.exists()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _read_manifest(manifest: Path) -> Iterator[tuple[Path, str]]:
    rows = _jsonl_rows(manifest) if manifest.suffix.lower() == ".jsonl" else _csv_rows(manifest)
    empty = True
    for line, path, key in rows:
        if not path or "\0" in path:
            raise InputError(
                f"{manifest}, line {line}: 'path' is empty or has a NUL in it; write one video path a line"
            )
        empty = False
        yield manifest.parent / path, key or printable_name(Path(path).as_posix().lstrip("/"))
    if empty:
        raise InputError(
            f"{manifest} lists no video; expected a column 'path' (and, if wanted, 'key') and a line for each video"
        )


def _csv_rows(manifest: Path) -> Iterator[tuple[int, str, str]]:
    delimiter = "\t" if manifest.suffix.lower() == ".tsv" else ","
    try:
        with manifest.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            if "path" not in (reader.fieldnames or []):
                raise InputError(
                    f"{manifest}: no column 'path' in its first line, found {reader.fieldnames}; add that header"
                )
            for row in reader:
                yield reader.line_num, row["path"] or "", row.get("key") or ""
    except csv.Error as error:
        raise InputError(
            f"{manifest}: not readable as CSV ({error}); expected a header with 'path' and a line for each video"
        ) from error
    except OSError as error:
        raise InputError(f"{manifest}: {error.strerror}; check the manifest's path and permissions") from error


def _jsonl_rows(manifest: Path) -> Iterator[tuple[int, str, str]]:
    expected = 'expected one object a line, such as {"path": "a/b.mp4", "key": "b"}'
    try:
        with manifest.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise InputError(f"{manifest}, line {number}: not JSON ({error}); {expected}") from error
                if (
                    not isinstance(row, dict)
                    or not isinstance(row.get("path"), str)
                    or not isinstance(row.get("key", ""), str)
                ):
                    raise InputError(f"{manifest}, line {number}: no text under 'path'; {expected}")
                yield number, row["path"], row.get("key", "")
    except OSError as error:
        raise InputError(f"{manifest}: {error.strerror}; check the manifest's path and permissions") from error
