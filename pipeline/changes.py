"""What the sources hold beside what the catalog knows: both sorted by path, gone through once, side by side.

Where nothing has changed, a thousand files and a thousand rows are equal lists, and nothing is kept of them: a million
files take no memory, and little more time than it takes to ``stat`` them.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from index_store.catalog import FileRow
from stages.walk import ListedFile, listed_file, stat_error

Identity = tuple[int, int, int]
"""(size_bytes, mtime_ns, inode), signed as SQLite keeps it: files with the same are taken for the same content."""

UNREADABLE: Identity = (0, 0, 0)
"""Of a file of which ``stat`` says nothing."""


@dataclass(frozen=True, slots=True)
class FileNow:
    """A file that is not as the catalog knows it."""

    path: str
    identity: Identity
    source: int
    """Number of its source."""
    error: OSError | None
    """Why ``stat`` says nothing of it."""

    @classmethod
    def of(cls, file: ListedFile, source: int) -> FileNow:
        """What the scan found, or where that was nothing, why."""
        error = stat_error(file[0]) if file[1:] == UNREADABLE else None
        return cls(file[0], identity(file), source, error)

    @classmethod
    def at(cls, path: str, source: int) -> FileNow:
        """What is at ``path`` at this moment."""
        return cls.of(listed_file(path), source)


@dataclass(slots=True)
class Changes:
    """Where sources and catalog differ."""

    num_unchanged: int = 0
    num_found: dict[int, int] = field(default_factory=dict)
    """For each source, the files in it that the catalog knows by their paths."""
    changed: list[tuple[FileRow, FileNow]] = field(default_factory=list)
    """Known paths whose files look different."""
    new: list[FileNow] = field(default_factory=list)
    """Videos with unknown paths."""
    dead_links: list[str] = field(default_factory=list)
    """Paths that are no video's, of which ``stat`` says nothing: perhaps links to folders that are gone."""
    missing: list[FileRow] = field(default_factory=list)
    """Videos whose paths were not found."""


def find_changes(
    rows: Iterator[FileRow],
    batches: Iterable[tuple[int, Sequence[ListedFile]]],
    is_video: Callable[[str, int], bool],
) -> Changes:
    """Compare; ``rows`` and the files of the batches are sorted by path, rows with paths of bytes come last.

    ``is_video`` is asked of unknown paths only.
    """
    comparison = _Comparison(rows, is_video)
    for number, files in batches:
        comparison.compare(number, files)
    return comparison.finish()


def identity(file: ListedFile | FileRow) -> Identity:
    """Without the path."""
    inode = file[3]
    return (file[1], file[2], inode - 2**64 if inode >= 2**63 else inode)


class _Comparison:
    """Goes through both at the same pace."""

    def __init__(self, rows: Iterator[FileRow], is_video: Callable[[str, int], bool]) -> None:
        self._rows = rows
        self._ahead: list[FileRow] = []
        """Rows that were read and belong to later files."""
        self._is_video = is_video
        self._odd_names: list[tuple[int, ListedFile]] = []
        self._changes = Changes()

    def compare(self, number: int, files: Sequence[ListedFile]) -> None:
        """The next files, all of one source."""
        rows = self._take(len(files))
        if rows == files:
            self._count(number, len(files))
            self._changes.num_unchanged += len(files)
        else:
            self._compare_each(number, files, rows)

    def finish(self) -> Changes:
        """The differences, with the rows that are left."""
        by_path: dict[bytes, FileRow] = {}
        for row in itertools.chain(self._ahead, self._rows):
            if isinstance(row[0], bytes):
                by_path[row[0]] = row
            else:
                self._changes.missing.append(row)
        for number, file in self._odd_names:
            known = by_path.pop(os.fsencode(file[0]), None)
            if known is None:
                self._add_new(number, file)
            else:
                self._add_known(number, file, known)
        self._changes.missing.extend(by_path.values())
        return self._changes

    def _take(self, count: int) -> list[FileRow]:
        taken, self._ahead = self._ahead[:count], self._ahead[count:]
        taken.extend(itertools.islice(self._rows, count - len(taken)))
        return taken

    def _compare_each(self, number: int, files: Sequence[ListedFile], rows: list[FileRow]) -> None:
        """One by one; rows behind the last file wait for the next ones."""
        upcoming = deque([*rows, *self._ahead])

        def next_row() -> FileRow | None:
            return upcoming.popleft() if upcoming else next(self._rows, None)

        row = next_row()
        for file in files:
            path = file[0]
            while row is not None and isinstance(row[0], str) and row[0] < path:
                self._changes.missing.append(row)
                row = next_row()
            if row is not None and row[0] == path:
                self._add_known(number, file, row)
                row = next_row()
            elif path.isascii() or _is_text(path):
                self._add_new(number, file)
            else:
                self._odd_names.append((number, file))
        self._ahead = list(upcoming) if row is None else [row, *upcoming]

    def _count(self, number: int, count: int) -> None:
        self._changes.num_found[number] = self._changes.num_found.get(number, 0) + count

    def _add_known(self, number: int, file: ListedFile, row: FileRow) -> None:
        self._count(number, 1)
        if row[1:] == file[1:] or row[1:] == identity(file):
            self._changes.num_unchanged += 1
        else:
            self._changes.changed.append((row, FileNow.of(file, number)))

    def _add_new(self, number: int, file: ListedFile) -> None:
        if self._is_video(file[0], number):
            self._changes.new.append(FileNow.of(file, number))
        elif file[1:] == UNREADABLE:
            self._changes.dead_links.append(file[0])


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
