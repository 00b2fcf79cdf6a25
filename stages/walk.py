"""A folder -> the files below it, in the order of their paths: what refresh compares with the catalog as it goes.

Only names are held, and those of one folder at a time: a million files cost a ``stat`` each and next to no memory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from index_store.layout import Layout

ListedFile = tuple[str, int, int, int]
"""(absolute path, size_bytes, mtime_ns, inode) as the catalog notes them: size 0 for what is no regular file, all 0 for
what ``stat`` says nothing about."""

BATCH_FILES = 64
"""As many as the catalog reads rows at once; both stay in a processor's cache while they are compared."""

_KIND = 0o170000
"""The bits of ``st_mode`` that say what kind of file it is."""
_STORE_FILES = frozenset({Layout(Path()).settings_path.name, Layout(Path()).catalog_path.name})


@dataclass(frozen=True, slots=True)
class ScanProblem:
    """A folder that could not be listed; the files in it are unknown."""

    path: Path
    reason: str


def walk(root: str, problems: list[ScanProblem]) -> Iterator[list[ListedFile]]:
    """Every file below ``root``, an absolute path, some at a time, in the order of their paths as text.

    Links are followed, and each folder is entered once, even when links lead back to it. Left out are hidden folders,
    macOS' resource forks and stores. Folders that cannot be listed are added to ``problems``.
    """
    visited: set[tuple[int, int]] = set()
    open_folders = [_listing(root, visited, problems)]
    while open_folders:
        folder = open_folders[-1]
        subfolder = folder.next_subfolder()
        files = folder.files_before(subfolder)
        for start in range(0, len(files), BATCH_FILES):
            yield _listed(folder.prefix, files[start : start + BATCH_FILES])
        if subfolder is None:
            open_folders.pop()
        else:
            open_folders.append(_listing(folder.prefix + subfolder, visited, problems))


def listed_file(path: str) -> ListedFile:
    """``stat``, links followed."""
    try:
        status = os.stat(path)
    except OSError:
        return (path, 0, 0, 0)
    return (path, status.st_size if stat.S_ISREG(status.st_mode) else 0, status.st_mtime_ns, status.st_ino)


def stat_error(path: str | Path) -> OSError | None:
    """Why ``stat`` says nothing of a file."""
    try:
        os.stat(path)
    except OSError as error:
        return error
    return None


def _listed(prefix: str, names: Sequence[str]) -> list[ListedFile]:
    """``listed_file`` of files of one folder: opened once, the way to it is gone once for all of them."""
    files: list[ListedFile] = []
    add, look = files.append, os.stat  # this loop is what a refresh without changes takes its time for
    try:
        descriptor = os.open(prefix, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return [listed_file(prefix + name) for name in names]
    try:
        for name in names:
            try:
                status = look(name, dir_fd=descriptor)
            except OSError:
                add((prefix + name, 0, 0, 0))
                continue
            size_bytes = status.st_size if status.st_mode & _KIND == stat.S_IFREG else 0
            add((prefix + name, size_bytes, status.st_mtime_ns, status.st_ino))
    finally:
        os.close(descriptor)
    return files


@dataclass(slots=True)
class _Folder:
    """A listed folder that is being gone through."""

    prefix: str
    files: list[str]
    """Names, last one first."""
    subfolders: list[str]
    """Names, last one first."""

    def next_subfolder(self) -> str | None:
        """The next folder to enter."""
        return self.subfolders.pop() if self.subfolders else None

    def files_before(self, subfolder: str | None) -> list[str]:
        """The names that come before it: "b.mp4" comes before what is in "b", because "." comes before "/"."""
        if subfolder is None:
            names, self.files = self.files[::-1], []
            return names
        end = subfolder + "/"
        count = len(self.files)
        while count and self.files[count - 1] < end:
            count -= 1
        names, self.files[count:] = self.files[count:][::-1], []
        return names


def _listing(folder: str, visited: set[tuple[int, int]], problems: list[ScanProblem]) -> _Folder:
    files: list[str] = []
    subfolders: list[str] = []
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) not in visited:
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = entry.name
                    try:
                        is_folder = entry.is_dir()
                    except OSError:  # a loop of links
                        is_folder = False
                    if is_folder:
                        subfolders.append(name)
                    else:
                        files.append(name)
    except OSError as error:
        problems.append(ScanProblem(Path(folder), error.strerror or str(error)))
        files, subfolders = [], []
    if _STORE_FILES.issubset(files):
        files, subfolders = [], []
    files = [name for name in files if name[:2] != "._"]
    files.sort(reverse=True)
    subfolders = sorted((name for name in subfolders if name[0] != "."), key=lambda name: name + "/", reverse=True)
    return _Folder(folder.rstrip("/") + "/", files, subfolders)
