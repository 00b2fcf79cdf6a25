"""The file of an exact index, updated as a stream: no more than a block of vectors is in memory, and no FAISS.

FAISS's file of an inner-product ``Flat`` index, little-endian, packed: ``IxFI``, D (int32), rows n (int64), two numbers
that nobody reads (int64), 1 = trained (1 byte), metric 0 = inner product (int32), n x D (uint64), then n x D float32.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index_store.errors import DamageError
from index_store.index_files import (
    INDEX_FILE,
    READ_BYTES,
    CheckedFile,
    FileDigest,
    IndexManifest,
    hashed,
    write_ids,
)
from index_store.records import ShapeError, expect

_HEADER = struct.Struct("<4siqqqBiQ")
_UNUSED = 1 << 20


def flat_header(num_vectors: int, dim: int) -> bytes:
    """The bytes before the vectors."""
    return _HEADER.pack(b"IxFI", dim, num_vectors, _UNUSED, _UNUSED, 1, 0, num_vectors * dim)


@dataclass(frozen=True, slots=True)
class _Change:
    """What happens before row ``row`` of the old file: some vectors are added, then some rows are left out."""

    row: int
    num_added: int
    num_removed: int


def update_flat_file(
    old: Path,
    new: Path,
    manifest: IndexManifest,
    old_ids: NDArray[np.int64],
    changed: NDArray[np.int64],
    added: NDArray[np.int64],
    vectors: Iterable[NDArray[np.float32]],
    commit_number: int,
) -> IndexManifest:
    """Write into ``new`` the generation that is ``old`` without the videos ``changed`` and with those ``added``.

    manifest and old_ids are those of ``old``. changed, added: ascending ids; added is among changed, and ``vectors``
    has theirs in blocks float32 [m, D]. The files are those of an index built anew. Every byte of the old vectors is
    checked on the way. Raises DamageError; then ``new`` holds rubbish.
    """
    if (np.diff(old_ids) <= 0).any():
        raise DamageError(f"{old} has ids that do not ascend; run 'tbpipe index' to build the index again")
    kept = ~np.isin(old_ids, changed)
    new_ids = np.sort(np.concatenate([old_ids[kept], added]))
    supply = _Supply(vectors, manifest.dim)
    row_bytes = 4 * manifest.dim
    with CheckedFile(old / INDEX_FILE, manifest.index) as file, hashed(new / INDEX_FILE) as (write, index_digest):
        if file.read(_HEADER.size) != flat_header(len(old_ids), manifest.dim):
            raise DamageError(f"{old / INDEX_FILE} is no exact index of {len(old_ids)} vectors; run 'tbpipe index'")
        write(flat_header(len(new_ids), manifest.dim))
        row = 0
        for change in _changes(old_ids, kept, added):
            _copy(file, (change.row - row) * row_bytes, write)
            supply.give(change.num_added, write)
            _copy(file, change.num_removed * row_bytes, _drop)
            row = change.row + change.num_removed
        _copy(file, (len(old_ids) - row) * row_bytes, write)
        file.read(1)  # nothing; an empty index has been checked now, too
    supply.require_empty()
    return _finished(new, manifest, new_ids, index_digest(), commit_number)


def _changes(old_ids: NDArray[np.int64], kept: NDArray[np.bool_], added: NDArray[np.int64]) -> Iterator[_Change]:
    """Where the old rows are not simply copied, in their order; what is changed side by side is one change."""
    places, counts = np.unique(np.searchsorted(old_ids, added), return_counts=True)
    rows = np.union1d(places, np.flatnonzero(~kept))
    num_added = np.zeros(len(rows), np.int64)
    num_added[np.searchsorted(rows, places)] = counts
    is_removed = np.append(~kept, False)[rows].astype(np.int64)
    starts = np.flatnonzero(np.append(True, rows[1:] != rows[:-1] + is_removed[:-1])[: len(rows)])
    if len(rows):
        sums = (np.add.reduceat(values, starts).tolist() for values in (num_added, is_removed))
        yield from map(_Change, rows[starts].tolist(), *sums)


def _copy(file: CheckedFile, num_bytes: int, write: Callable[[bytes], int]) -> None:
    while num_bytes:
        content = file.read(min(num_bytes, READ_BYTES))
        write(content)
        num_bytes -= len(content)


def _drop(content: bytes) -> int:
    return len(content)


class _Supply:
    """The vectors to be added, given out in any portions."""

    def __init__(self, blocks: Iterable[NDArray[np.float32]], dim: int) -> None:
        self._blocks = iter(blocks)
        self._dim = dim
        self._rest = np.empty((0, dim), np.float32)

    def give(self, num_vectors: int, write: Callable[[bytes], int]) -> None:
        """Write the next ``num_vectors``. Raises ShapeError where there are none left."""
        while num_vectors:
            if not len(self._rest):
                self._rest = self._next()
            part, self._rest = self._rest[:num_vectors], self._rest[num_vectors:]
            write(part.tobytes())
            num_vectors -= len(part)

    def require_empty(self) -> None:
        """Raise ShapeError unless all were given."""
        if len(self._rest) or next(self._blocks, None) is not None:
            raise ShapeError("more vectors than ids to add")

    def _next(self) -> NDArray[np.float32]:
        block = next(self._blocks, None)
        if block is None:
            raise ShapeError("fewer vectors than ids to add")
        expect("vectors", block, (len(block), self._dim), ("float32",))
        return block


def _finished(
    new: Path, manifest: IndexManifest, ids: NDArray[np.int64], index: FileDigest, commit_number: int
) -> IndexManifest:
    written = replace(
        manifest,
        commit_number=commit_number,
        num_vectors=len(ids),
        num_built=len(ids),
        index=index,
        ids=write_ids(new, ids),
    )
    written.write(new)
    return written
