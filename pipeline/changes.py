"""What the sources hold beside what the catalog knows: both sorted by path, gone through once, side by side.

Nothing is kept of a file that is as it was, so a million of them take no memory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from index_store.catalog import FileRow
from stages.sources import FoundFile

Identity = tuple[int, int, int]
"""(size_bytes, mtime_ns, inode): files of which all three are the same are taken for the same content."""

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
    def of(cls, found: FoundFile) -> FileNow:
        """What the scan found, as the catalog would note it."""
        path, status, source = found
        if isinstance(status, OSError):
            return cls(path, UNREADABLE, source, status)
        size_bytes = status.st_size if stat.S_ISREG(status.st_mode) else 0
        return cls(path, (size_bytes, status.st_mtime_ns, signed(status.st_ino)), source, None)


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


def find_changes(rows: Iterator[FileRow], found: Iterable[FoundFile], is_video: Callable[[FoundFile], bool]) -> Changes:
    """Compare; ``rows`` and ``found`` are sorted by path, rows with paths of bytes come last.

    ``is_video`` is asked of unknown paths only.
    """
    changes = Changes()
    odd_names: list[FoundFile] = []
    counts: dict[int, int] = {}
    row = next(rows, None)
    for file in found:
        path, status, number = file
        while row is not None and isinstance(row[0], str) and row[0] < path:
            changes.missing.append(row)
            row = next(rows, None)
        if row is None or row[0] != path:
            if path.isascii() or _is_text(path):
                _add_new(changes, file, is_video)
            else:
                odd_names.append(file)
            continue
        counts[number] = counts.get(number, 0) + 1
        if (
            not isinstance(status, OSError)
            and row[2] == status.st_mtime_ns
            and row[1] == status.st_size
            and (row[3] == status.st_ino or row[3] == signed(status.st_ino))
        ):
            changes.num_unchanged += 1
        else:
            _add_known(changes, row, file)
        row = next(rows, None)
    changes.num_found = counts
    _match_odd_names(changes, odd_names, is_video, row, rows)
    return changes


def signed(inode: int) -> int:
    """As SQLite keeps it: its integers are signed."""
    return inode - 2**64 if inode >= 2**63 else inode


def _add_known(changes: Changes, row: FileRow, file: FoundFile) -> None:
    now = FileNow.of(file)
    if row[1:4] == now.identity:  # no regular file, or still one of which nothing can be said
        changes.num_unchanged += 1
    else:
        changes.changed.append((row, now))


def _add_new(changes: Changes, file: FoundFile, is_video: Callable[[FoundFile], bool]) -> None:
    if is_video(file):
        changes.new.append(FileNow.of(file))
    elif isinstance(file[1], OSError):
        changes.dead_links.append(file[0])


def _match_odd_names(
    changes: Changes,
    found: list[FoundFile],
    is_video: Callable[[FoundFile], bool],
    row: FileRow | None,
    rows: Iterator[FileRow],
) -> None:
    """Those that are not UTF-8, and whatever rows are left."""
    by_path: dict[bytes, FileRow] = {}
    while row is not None:
        if isinstance(row[0], bytes):
            by_path[row[0]] = row
        else:
            changes.missing.append(row)
        row = next(rows, None)
    for file in found:
        known = by_path.pop(os.fsencode(file[0]), None)
        if known is None:
            _add_new(changes, file, is_video)
        else:
            changes.num_found[file[2]] = changes.num_found.get(file[2], 0) + 1
            _add_known(changes, known, file)
    changes.missing.extend(by_path.values())


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
