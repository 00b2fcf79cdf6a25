"""The next index generation from the one before and what changed since its commit.

Where only commits were counted (a file failed again), its files get a second name. Otherwise an exact index is copied
as a stream, and its files are those of one built anew; any other keeps its training: vectors are added behind the
others, rows of videos that are gone are dead. Once MAX_DRIFT of it has changed, it is built anew.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index_store.catalog import GenerationRecord
from index_store.errors import StoreError
from index_store.flat_file import update_flat_file
from index_store.index_files import (
    IDS_FILE,
    INDEX_FILE,
    IndexManifest,
    check_file,
    read_ids,
    read_manifest,
)
from index_store.snapshot import Snapshot
from index_store.vectors import EXACT_FACTORY, VectorBlock, VectorIndex, knows_flat_files

MAX_DRIFT = 0.2
"""Rows added and rows dead since an index was built anew, in parts of what it held then. Inverted lists are chosen for
a number of vectors, codes for their distribution, and the recall is measured once; a fifth changes little of that."""


@dataclass(frozen=True, slots=True)
class Base:
    """A published generation that the next one may be made from."""

    generation: GenerationRecord
    manifest: IndexManifest

    @classmethod
    def of(cls, snapshot: Snapshot, generation: GenerationRecord) -> Base:
        """Raises StoreError where its manifest is damaged, or that of another index."""
        manifest = read_manifest(generation.path)
        expected = (generation.commit_number, snapshot.settings.fingerprint, generation.factory)
        if (manifest.commit_number, manifest.fingerprint, manifest.factory) != expected:
            raise StoreError(f"{generation.path} is not the index that was published under this name")
        return cls(generation, manifest)

    def check(self, every_byte: bool) -> None:
        """Raise DamageError unless its files are what was written; or only as long, without ``every_byte``."""
        for name, digest in ((INDEX_FILE, self.manifest.index), (IDS_FILE, self.manifest.ids)):
            check_file(self.generation.path / name, digest, every_byte)


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What happened to the videos of an index since its commit."""

    changed: NDArray[np.int64]
    """int64, ascending: every video whose features came, changed or went, whether the index has it or not."""
    added: NDArray[np.int64]
    """int64, ascending: those of them that have features now."""
    num_replaced: int
    """Of ``added``, those that the index has."""
    num_removed: int
    """Videos of the index that have no features any more."""

    @classmethod
    def since(cls, snapshot: Snapshot, commit_number: int, row_ids: NDArray[np.int64]) -> Change:
        """row_ids int64 [rows]: the videos of the index as of that commit; -1 = dead."""
        codes = (video_id << 1 | has_features for video_id, has_features in snapshot.changed_since(commit_number))
        found = np.fromiter(codes, np.int64)
        changed, added = found >> 1, found[found & 1 == 1] >> 1
        num_replaced = int(np.isin(added, row_ids).sum())
        return cls(changed, added, num_replaced, int(np.isin(changed, row_ids).sum()) - num_replaced)


def updated(snapshot: Snapshot, base: Base, directory: Path) -> tuple[IndexManifest, Change] | None:
    """Fill ``directory`` with the next generation; None, and nothing is written, where it is to be built anew.

    Raises DamageError where the generation before is not what was written.
    """
    manifest, old = base.manifest, base.generation.path
    row_ids = read_ids(old, manifest)
    change = Change.since(snapshot, manifest.commit_number, row_ids)
    if not len(change.added) and not change.num_removed:
        base.check(every_byte=False)
        return _again(manifest, old, directory, snapshot.commit_number), change

    def blocks() -> Iterator[VectorBlock]:
        return snapshot.read_pooled(change.added.tolist())

    if manifest.factory == EXACT_FACTORY:
        if not knows_flat_files(manifest.dim):
            return None
        vectors = (block for _, block in blocks())
        written = update_flat_file(
            old, directory, manifest, row_ids, change.changed, change.added, vectors, snapshot.commit_number
        )
        return written, change
    if drift(row_ids, change, manifest.num_built) > MAX_DRIFT and snapshot.num_searchable:
        return None
    index = VectorIndex.open(old, manifest.fingerprint)
    index.update(change.changed, blocks(), snapshot.commit_number)
    return index.save(directory, manifest.fingerprint), change


def _again(manifest: IndexManifest, old: Path, new: Path, commit_number: int) -> IndexManifest:
    """The generation ``old`` of a later commit: its files, which never change, under a second name."""
    for name in (INDEX_FILE, IDS_FILE):
        try:
            os.link(old / name, new / name)
        except OSError:  # a file system without such names
            shutil.copyfile(old / name, new / name)
    manifest = replace(manifest, commit_number=commit_number)
    manifest.write(new)
    return manifest


def drift(row_ids: NDArray[np.int64], change: Change, num_built: int) -> float:
    """Rows added and rows dead after ``change``, in parts of the rows that were there when it was built anew."""
    num_added = len(row_ids) - num_built + len(change.added)
    num_dead = int((row_ids < 0).sum()) + change.num_replaced + change.num_removed
    return (num_added + num_dead) / max(1, num_built)
