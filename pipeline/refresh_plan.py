"""What a refresh has to do: which videos are new, changed, moved or gone, decided before anything is written.

A path that is as it was costs nothing. A file with the size, modification time and inode of a video whose path is gone
(or holds another file now) is that video's content under a new name, and is not read. Everything else that differs is
read and hashed, and decoded only if its content is unknown.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from index_store.catalog import FileRow
from index_store.records import SEARCHABLE, VideoFile, VideoOutcome, VideoRecord
from index_store.snapshot import Snapshot
from pipeline.changes import UNREADABLE, Changes, FileNow, Identity, identity
from stages.keys import TakenKeys, unique_key
from stages.sources import GONE, Sources
from stages.walk import ScanProblem, stat_error


class GoneVideo(NamedTuple):
    """A video whose file is no longer in its source."""

    id: int
    key: str
    has_features: bool
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Move:
    """Known content under another key."""

    outcome: VideoOutcome
    origin: str
    """The key that it had."""
    removed: int | None
    """The video that becomes a tombstone with it: the last one of its content whose file is gone."""
    is_onto_known: bool
    """The key has a video already, whose content is replaced."""


@dataclass(slots=True)
class RefreshPlan:
    """What is to be done, in numbers and names."""

    num_unchanged: int = 0
    new: list[str] = field(default_factory=list)
    """Keys of the tasks that are unknown or were removed before."""
    changed: list[str] = field(default_factory=list)
    """Keys of the other tasks."""
    tasks: list[tuple[VideoFile, frozenset[str]]] = field(default_factory=list)
    """Files to read, sorted by key, each with the hashes of the stored contents that it may have."""
    touched: list[VideoRecord] = field(default_factory=list)
    """Videos with the same key and content at another path, as they are to be noted."""
    moves: list[Move] = field(default_factory=list)
    removed: list[GoneVideo] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """Keys of videos that are listed, or linked to, while there is no file: they lose their features."""
    emptied: list[str] = field(default_factory=list)
    """Sources that had videos and have none now, or are missing."""
    num_outside: int = 0
    """Videos that lie in none of the sources: left alone."""
    num_kept: int = 0
    """Videos about whose files nothing can be said now: left alone."""
    problems: list[ScanProblem] = field(default_factory=list)

    @property
    def num_deletes(self) -> int:
        """Videos whose features would be dropped although nothing takes their place."""
        return sum(video.has_features for video in self.removed) + len(self.lost)

    @property
    def is_empty(self) -> bool:
        """Whether the catalog says what the sources hold."""
        return not (self.tasks or self.touched or self.moves or self.removed)


def plan_refresh(snapshot: Snapshot | None, sources: Sources, changes: Changes) -> RefreshPlan:
    """Decide what becomes of every difference; ``snapshot`` is None where there is no store yet."""
    plan = RefreshPlan(num_unchanged=changes.num_unchanged)
    if snapshot is None:
        planner = _Planner(None, sources, changes, plan, {}, {})
        planner.place_new(planner.claim_keys())
    else:
        gone, outside = _unseen(snapshot, sources, changes, plan)
        planner = _Planner(snapshot, sources, changes, plan, gone, outside)
        rest = planner.claim_keys()
        planner.place_changed()
        planner.place_new(rest)
        planner.retry_unreadable()
        planner.place_gone()
    plan.problems = [*sources.problems, *plan.problems]
    plan.tasks.sort(key=lambda task: task[0].key)
    plan.new.sort()
    plan.changed.sort()
    return plan


def _unseen(
    snapshot: Snapshot, sources: Sources, changes: Changes, plan: RefreshPlan
) -> tuple[dict[int, FileRow], dict[int, FileRow]]:
    """The videos whose files are gone, and those that lie in no source, by id; the others are only counted."""
    unknown = {str(problem.path) for problem in sources.problems}.union(changes.dead_links)
    dead: set[str] = set()
    with_videos = changes.num_found.keys() | {now.source for now in changes.new}
    emptied: set[int] = set()
    gone: dict[int, FileRow] = {}
    outside: dict[int, FileRow] = {}
    for video_id, row in zip(_ids(snapshot, changes.missing), changes.missing, strict=True):
        path = os.fsdecode(row[0])
        number = sources.covering(path)
        cut_off = next((folder for folder in _folders_above(path) if folder in unknown), None) if unknown else None
        if number is None:
            outside[video_id] = row
        elif cut_off is not None:
            plan.num_kept += 1
            dead.add(cut_off)
        else:
            gone[video_id] = row
            if number not in with_videos:
                emptied.add(number)
    plan.num_outside = len(outside)
    plan.emptied = [sources.sources[number].path for number in sorted(emptied)]
    plan.problems = [
        ScanProblem(Path(path), "a link that leads nowhere now; the videos below it are kept")
        for path in sorted(dead.intersection(changes.dead_links))
    ]
    return gone, outside


def _ids(snapshot: Snapshot, rows: Sequence[FileRow]) -> list[int]:
    return snapshot.living_at([row[0] for row in rows])


def _folders_above(path: str) -> Iterator[str]:
    end = path.rfind("/")
    while end > 0:
        yield path[:end]
        end = path.rfind("/", 0, end)


class _Planner:
    """Sorts changed, new and missing files into a plan."""

    def __init__(
        self,
        snapshot: Snapshot | None,
        sources: Sources,
        changes: Changes,
        plan: RefreshPlan,
        gone: dict[int, FileRow],
        outside: dict[int, FileRow],
    ) -> None:
        self._snapshot, self._sources, self._changes, self._plan = snapshot, sources, changes, plan
        self._gone, self._outside = gone, outside
        replaced = [row for row, _ in changes.changed]
        self._replaced = dict(zip(_ids(snapshot, replaced), replaced, strict=True)) if snapshot is not None else {}
        """Videos whose paths hold other files now."""
        self._displaced: dict[Identity, int] = {}
        if changes.new or changes.changed:
            for rows in (outside, self._replaced, gone):  # what is gone comes first
                self._displaced.update((row[1:], video_id) for video_id, row in rows.items())
        self._claimed: set[int] = set()
        """Gone videos whose keys have files again."""
        self._moved_away: set[int] = set()
        self._taken: set[str] = set()

    def claim_keys(self) -> list[FileNow]:
        """Give videos whose files are gone the new files that have their keys; returns the other new files."""
        files = sorted(self._changes.new, key=lambda now: (now.source, now.path))
        return [now for now in files if not self._take_over(now)]

    def place_changed(self) -> None:
        """Known paths: moved onto, gone behind a link, unreadable for now, or to be read."""
        assert self._snapshot is not None
        records = self._snapshot.by_ids(list(self._replaced))
        for record, (_, now) in zip(records, self._changes.changed, strict=True):
            self._taken.add(record.key)
            if now.error is not None and now.error.errno not in GONE:
                self._plan.num_kept += 1
                self._plan.problems.append(ScanProblem(Path(now.path), now.error.strerror or str(now.error)))
            elif now.error is not None:
                if record.status in SEARCHABLE:
                    self._plan.lost.append(record.key)
                self._add_task(record.key, now, self._plan.changed)
            elif not self._move(record.key, now, is_onto_known=True):
                self._add_task(record.key, now, self._plan.changed)

    def place_new(self, files: Sequence[FileNow]) -> None:
        """Files under keys that no living video has."""
        for now in files:
            key = self._free_key(self._sources.key(now.path, now.source), now.path)
            self._taken.add(key)
            if not self._move(key, now, is_onto_known=False):
                self._add_task(key, now, self._plan.new)

    def retry_unreadable(self) -> None:
        """Files that could not be read and can be now: permissions are no part of what the catalog notes."""
        assert self._snapshot is not None
        for record in self._snapshot.quarantined_for("unreadable"):
            number = self._sources.covering(str(record.path))
            if number is None or record.key in self._taken:
                continue
            now = FileNow.at(str(record.path), number)
            noted = identity(("", record.size_bytes, record.mtime_ns, record.inode))
            if now.identity == noted and now.identity[0] and _is_readable(record.path):
                self._plan.num_unchanged -= 1
                self._add_task(record.key, now, self._plan.changed)

    def place_gone(self) -> None:
        """Videos without files that nothing has taken over."""
        assert self._snapshot is not None
        ids = sorted(self._gone.keys() - self._claimed - self._moved_away)
        self._plan.removed = sorted(
            (GoneVideo(*row, self._gone[row[0]][1]) for row in self._snapshot.names(ids)), key=lambda video: video.key
        )

    def _take_over(self, now: FileNow) -> bool:
        """Whether the file belongs to the video that has its key: one whose own file is gone, or is this one."""
        key = self._sources.key(now.path, now.source)
        record = self._by_key(key)
        if record is None or record.status == "removed" or key in self._taken:
            return False
        row = self._gone.get(record.id) or self._outside.get(record.id)
        if row is None or not (record.id in self._gone or _has_left(record.path, Path(now.path))):
            return False
        self._taken.add(key)
        self._claimed.add(record.id)
        if row[1:3] == now.identity[:2] and now.error is None:  # a copied disk has other inodes
            self._plan.touched.append(replace(record, path=Path(now.path), inode=now.identity[2] % 2**64))
        elif not self._move(key, now, is_onto_known=True):
            self._add_task(key, now, self._plan.changed)
        return True

    def _move(self, key: str, now: FileNow, is_onto_known: bool) -> bool:
        """Take the file for the content that it was elsewhere; False where it is not known from there."""
        origin_id = self._displaced.get(now.identity) if now.identity != UNREADABLE else None
        if origin_id is None or self._snapshot is None:
            return False
        (origin,) = self._snapshot.by_ids([origin_id])
        if origin.key == key or (origin_id in self._outside and not _has_left(origin.path, None)):
            return False
        removed = None
        if origin_id in self._gone and origin_id not in self._moved_away and origin_id not in self._claimed:
            self._moved_away.add(origin_id)
            removed = origin_id
        self._plan.moves.append(Move(_moved(origin, self._file(key, now)), origin.key, removed, is_onto_known))
        return True

    def _add_task(self, key: str, now: FileNow, keys: list[str]) -> None:
        file = self._file(key, now)
        known = self._snapshot.hashes_of_size(file.size_bytes) if self._snapshot is not None else ()
        keys.append(key)
        self._plan.tasks.append((file, frozenset(known)))

    def _file(self, key: str, now: FileNow) -> VideoFile:
        size_bytes, mtime_ns, inode = now.identity
        return VideoFile(key, Path(now.path), size_bytes, mtime_ns, inode % 2**64)

    def _by_key(self, key: str) -> VideoRecord | None:
        return self._snapshot.by_key(key) if self._snapshot is not None else None

    def _free_key(self, key: str, path: str) -> str:
        """The key that nobody has, or only a tombstone."""
        return unique_key(key, Path(path), TakenKeys(self._snapshot, self._taken))


def _moved(origin: VideoRecord, file: VideoFile) -> VideoOutcome:
    if origin.status in SEARCHABLE:
        return VideoOutcome(file, origin.status, origin.content_hash, same_content_as=origin.content_hash)
    return VideoOutcome(
        file,
        origin.status,
        origin.content_hash,
        reason_code=origin.reason_code,
        reason_detail=origin.reason_detail,
    )


def _is_readable(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError:
        return False
    return True


def _has_left(path: Path, now: Path | None) -> bool:
    """Whether there is no file at ``path`` any more, or the one that is at ``now`` as well."""
    error = stat_error(path)
    if error is not None:
        return error.errno in GONE
    return now is not None and os.path.samefile(path, now)


def batches(moves: Sequence[Move], size: int) -> Iterator[list[Move]]:
    """What is committed together: moves to unknown keys some at a time, those onto known ones at once, at the end.

    Two videos may have changed places: each needs the other's content as it was.
    """
    to_new = [move for move in moves if not move.is_onto_known]
    for start in range(0, len(to_new), size):
        yield to_new[start : start + size]
    onto_known = [move for move in moves if move.is_onto_known]
    if onto_known:
        yield onto_known
