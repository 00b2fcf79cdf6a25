"""What the catalog says is done, and what is left to do."""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from index_store.records import SEARCHABLE, VideoFile, VideoRecord
from index_store.snapshot import Snapshot
from stages.keys import TakenKeys, unique_key

if TYPE_CHECKING:
    from stages.decode_pool import DecodeTask


@dataclass(slots=True)
class ExtractPlan:
    """The videos of a scan, sorted into what must be computed and what need not."""

    tasks: list[tuple[VideoFile, DecodeTask]] = field(default_factory=list)
    num_unchanged: int = 0
    num_changed: int = 0
    """Of the tasks, those whose file was stored before and looks different now."""
    moved: list[VideoRecord] = field(default_factory=list)
    """Rows whose file is the same under a new path."""


def plan_extract(snapshot: Snapshot, files: Sequence[VideoFile]) -> ExtractPlan:
    """Decide for each file by path, then by key; the same size, time and inode (or key) mean the same content.

    A file that looks changed is hashed before it is decoded (its task carries the hashes that are known), so that a
    copy, a move or a touch costs no computation.
    """
    from stages.decode_pool import DecodeTask

    plan = ExtractPlan()
    taken: set[str] = set()
    for file in files:
        record, file = _identify(snapshot, file, taken)
        taken.add(file.key)
        if record is not None and _looks_unchanged(record, file):
            if record.path == file.path:
                plan.num_unchanged += 1
            else:
                plan.moved.append(replace(record, path=file.path, inode=file.inode))
            continue
        plan.num_changed += record is not None
        plan.tasks.append((file, DecodeTask(file.path, frozenset(snapshot.hashes_of_size(file.size_bytes)))))
    return plan


def _identify(snapshot: Snapshot, file: VideoFile, taken: Container[str]) -> tuple[VideoRecord | None, VideoFile]:
    """The catalog's row of this file, if it has one, and the file under the key it gets."""
    record = snapshot.by_path(file.path)
    if record is not None:
        return record, replace(file, key=record.key)
    record = snapshot.by_key(file.key)
    if record is None:
        return None, file if file.key not in taken else replace(file, key=unique_key(file.key, file.path, taken))
    if not os.path.lexists(record.path) and file.key not in taken:
        return record, file  # the whole source has moved: same key, old path gone
    return None, replace(file, key=unique_key(file.key, file.path, TakenKeys(snapshot, taken)))


def _looks_unchanged(record: VideoRecord, file: VideoFile) -> bool:
    return (
        record.status in (*SEARCHABLE, "quarantined")
        and record.size_bytes == file.size_bytes
        and record.mtime_ns == file.mtime_ns
        and (record.inode == file.inode or record.path != file.path)  # a copied disk has other inodes
    )
