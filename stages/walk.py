"""A folder -> the files below it, in the order of their paths: what refresh compares with the catalog as it goes.

Only names are held, and those of one folder at a time: a million files cost a ``stat`` each and next to no memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from index_store.layout import Layout

FileStatus = os.stat_result | OSError
"""What ``stat`` says of a file, or why it says nothing."""

_STORE_FILES = frozenset({Layout(Path()).settings_path.name, Layout(Path()).catalog_path.name})


@dataclass(frozen=True, slots=True)
class ScanProblem:
    """A folder that could not be listed; the files in it are unknown."""

    path: Path
    reason: str


def walk(root: str, problems: list[ScanProblem]) -> Iterator[tuple[str, FileStatus]]:
    """(path, status) of every file below ``root``, an absolute path, in the order of their paths as text.

    Links are followed, and each folder is entered once, even when links lead back to it. Left out are hidden folders,
    macOS' resource forks and stores. Folders that cannot be listed are added to ``problems``.
    """
    visited: set[tuple[int, int]] = set()
    open_folders = [_listing(root, visited, problems)]
    while open_folders:
        folder = open_folders[-1]
        prefix, subfolders = folder.prefix, folder.subfolders
        for name in folder.names:
            path = prefix + name
            if name in subfolders:
                open_folders.append(_listing(path, visited, problems))
                break
            if name[:2] == "._":
                continue
            yield path, file_status(path)
        else:
            open_folders.pop()


def file_status(path: str | Path) -> FileStatus:
    """``stat``, links followed, with its error as a value."""
    try:
        return os.stat(path)
    except OSError as error:
        return error


@dataclass(frozen=True, slots=True)
class _Folder:
    """A listed folder that is being gone through."""

    prefix: str
    names: Iterator[str]
    """Of files and of folders to enter, so sorted that the paths below come out in order."""
    subfolders: frozenset[str]


def _listing(folder: str, visited: set[tuple[int, int]], problems: list[ScanProblem]) -> _Folder:
    names: list[str] = []
    subfolders: set[str] = set()
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) not in visited:
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not _is_folder(entry):
                        names.append(entry.name)
                    elif not entry.name.startswith("."):
                        subfolders.add(entry.name)
    except OSError as error:
        problems.append(ScanProblem(Path(folder), error.strerror or str(error)))
        names, subfolders = [], set()
    if _STORE_FILES.issubset(names):
        names, subfolders = [], set()
    if subfolders:  # "b.mp4" comes before what is in "b", because "." comes before "/"
        names = sorted([*names, *subfolders], key=lambda name: name + "/" if name in subfolders else name)
    else:
        names.sort()
    return _Folder(folder.rstrip("/") + "/", iter(names), frozenset(subfolders))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False
