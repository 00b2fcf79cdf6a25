"""Read a store as it was at one commit, whatever is written meanwhile."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from index_store.catalog import Catalog, FileRow, GenerationRecord, ShardRecord
from index_store.catalog_upkeep import RowOwner
from index_store.errors import DamageError
from index_store.features import (
    RESTORE_ADVICE,
    Array,
    FeatureReader,
    ReadPlan,
    dataset_specs,
    plan_reads,
    record_checksum,
)
from index_store.layout import Layout
from index_store.prepared import (
    PreparedAbout,
    PreparedInfo,
    PreparedKey,
    PreparedReader,
    PreparedWriter,
    has_prepared,
    open_prepared,
    prepared_sets,
    prepared_writer,
)
from index_store.prepared_check import PreparedFault, prepared_faults
from index_store.records import SEARCHABLE, ShapeError, VideoRecord, VideoStatus
from index_store.settings import StoreSettings

_POOLED_BLOCK_BYTES = 64 << 20
_MAX_LOCATED = 1 << 17
"""About 30 MB; looking up an id takes as long as copying 20 KB of its tokens."""


@dataclass(frozen=True, slots=True)
class StoreSize:
    """Bytes on disk, by part."""

    shards: int
    index: int
    catalog: int

    @property
    def total(self) -> int:
        """Bytes of the store without its runs."""
        return self.shards + self.index + self.catalog


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """The tokens of n videos. F frames, P tokens a frame, D width; masked frames are zero."""

    tokens: Array
    """float16 or int8 [n, F, P, D], raw, in the joint space."""
    scales: NDArray[np.float32] | None
    """float32 [n, F, P] when tokens are int8: token = int8 value x scale; None for float16."""
    frame_mask: NDArray[np.bool_]
    """bool [n, F], True = real frame."""
    timestamps_seconds: NDArray[np.float64]
    """float64 [n, F] from the start of the video; 0 where masked."""
    places: Array | None = None
    """uint8 or uint16 [n, F, P] where some patches are kept: which token of its frame each was, 0 = the frame
    embedding; 0 where masked. None: not known, or P is all of them."""

    def __repr__(self) -> str:
        """Shape and dtype, not the numbers."""
        return f"TokenBatch(tokens={self.tokens.dtype}{list(self.tokens.shape)})"


class FrameEmbeddingBatch(NamedTuple):
    """The frame embeddings of n videos."""

    embeddings: NDArray[np.float16]
    """float16 [n, F, D], raw; 0 where masked."""
    frame_mask: NDArray[np.bool_]
    """bool [n, F], True = real frame."""
    timestamps_seconds: NDArray[np.float64]
    """float64 [n, F]; 0 where masked."""


class Snapshot:
    """A store as it was at one commit; made by ``Store.snapshot``."""

    def __init__(self, layout: Layout, settings: StoreSettings, catalog: Catalog) -> None:
        self.settings = settings
        self._layout = layout
        self._catalog = catalog
        self._specs = {spec.name: spec for spec in dataset_specs(settings)}
        self._reader = FeatureReader(layout.shard_path, catalog.shard)
        self._located: dict[int, tuple[int, int]] = {}

    def close(self) -> None:
        """Close the catalog and every shard."""
        self._reader.close()
        self._catalog.close()

    # -- what is there ------------------------------------------------------------------------------------------------

    @property
    def commit_number(self) -> int:
        """How many commits there were; an index of the same number holds the same videos."""
        return self._catalog.commit_number

    def counts(self) -> dict[VideoStatus, int]:
        """Videos in every status."""
        return self._catalog.counts()

    @property
    def num_searchable(self) -> int:
        """Videos that have features."""
        counts = self.counts()
        return sum(counts[status] for status in SEARCHABLE)

    def videos(self, statuses: Iterable[VideoStatus] | None = None) -> Iterator[VideoRecord]:
        """Videos by id: all, or those in these states."""
        return self._catalog.videos(get_args(VideoStatus) if statuses is None else tuple(statuses))

    def quarantined_for(self, reason_code: str) -> Iterator[VideoRecord]:
        """Videos that are quarantined for this reason."""
        return self._catalog.quarantined_for(reason_code)

    def by_key(self, key: str) -> VideoRecord | None:
        """The video that users call ``key``."""
        return self._catalog.by_key(key)

    def by_path(self, path: Path) -> VideoRecord | None:
        """The first video that was last seen at ``path``."""
        return self._catalog.by_path(path)

    def by_content(self, content_hash: str) -> VideoRecord | None:
        """The first video that has features and this content."""
        return self._catalog.by_content(content_hash)

    def by_ids(self, ids: Sequence[int]) -> list[VideoRecord]:
        """The videos with these ids, in this order. Raises StoreError for an id that was never given."""
        return self._catalog.by_ids(ids)

    def changed_since(self, commit_number: int) -> Iterator[tuple[int, bool]]:
        """(id, whether it has features) of every video that a commit after this one changed, by id.

        0 gives every video ever seen. Where only files moved, nothing changed.
        """
        return self._catalog.changed_since(commit_number)

    def files(self) -> Iterator[FileRow]:
        """Where the files of all videos but the removed ones were, by path; those with odd names come last."""
        return self._catalog.files()

    def living_at(self, paths: Sequence[str | bytes]) -> list[int]:
        """The videos, but the removed ones, whose files were last seen at these paths as ``files`` gives them."""
        return self._catalog.living_at(paths)

    def names(self, ids: Sequence[int]) -> Iterator[tuple[int, str, bool]]:
        """(id, key, whether it has features) of these videos, in any order: less than ``by_ids`` for a great many."""
        return self._catalog.names(ids)

    def hashes_of_size(self, size_bytes: int) -> list[str]:
        """Distinct content hashes of the videos that have features and this file size, sorted."""
        return self._catalog.hashes_of_size(size_bytes)

    def shards(self) -> list[ShardRecord]:
        """Every shard, by id."""
        return self._catalog.shards()

    def shard(self, shard_id: int) -> ShardRecord | None:
        """One shard; None where there is none of this id."""
        return self._catalog.find_shard(shard_id)

    def generations(self) -> list[GenerationRecord]:
        """The index generations that are kept, oldest first."""
        return self._catalog.generations()

    def generation(self) -> GenerationRecord | None:
        """The newest index generation."""
        generations = self.generations()
        return generations[-1] if generations else None

    def rows_by_shard(self) -> dict[int, NDArray[np.int64]]:
        """The rows of each shard that a video has, int64, ascending; those of copies once. 8 bytes a video."""
        places = self._catalog.searchable_locations()
        codes = np.unique(np.fromiter((shard << 32 | row for _, shard, row in places), np.int64))
        shards, starts = np.unique(codes >> 32, return_index=True)
        parts = np.split(codes & 0xFFFFFFFF, starts[1:])
        return dict(zip(shards.tolist(), parts, strict=False))  # no shard: one empty part

    def open_prepared(self, key: PreparedKey) -> PreparedReader | None:
        """What was prepared of these videos with what ``key`` says; None where nothing was."""
        return open_prepared(self._layout, self, key)

    def has_prepared(self, method: str) -> bool:
        """Whether ``open_prepared`` may find something for a method; costs next to nothing."""
        return has_prepared(self._layout, method)

    def prepared_sets(self) -> list[PreparedInfo]:
        """Everything that was prepared, whether it can be used or not."""
        return prepared_sets(self._layout, self)

    def prepared_writer(
        self, about: PreparedAbout, lock_timeout_seconds: float = 0.0
    ) -> contextlib.AbstractContextManager[PreparedWriter]:
        """Write what is prepared of these videos, alone. Raises StoreLockedError, NotWritableError."""
        return prepared_writer(self._layout, self, about, lock_timeout_seconds)

    def prepared_faults(self) -> Iterator[PreparedFault]:
        """Prepared files of which something is not what was written; reads them whole."""
        return prepared_faults(self._layout, self)

    def catalog_faults(self, thorough: bool, is_sealed: bool = False) -> list[str]:
        """What the catalog contradicts itself in, or the store; ``thorough`` compares its indexes with its tables.

        ``is_sealed``: its pages are known to be what was written, and are looked at only if ``thorough``.
        """
        faults = [] if is_sealed and not thorough else self._catalog.structure_faults(thorough)
        datasets = {spec.name: spec.dtype for spec in self._specs.values()}
        return faults or self._catalog.content_faults(self.settings.fingerprint, datasets)

    def owners(self, shard_ids: Sequence[int]) -> dict[int, dict[int, list[RowOwner]]]:
        """The videos of each row of these shards (a few hundred at most): shard -> row -> videos, all by number."""
        return self._catalog.owners(shard_ids)

    @property
    def num_retired(self) -> int:
        """Shards and generations that are out of use and still there, for readers of an older commit."""
        return len(self._catalog.retired())

    def file_names(self) -> set[str]:
        """Names of the shards and generations that are real, and of those that a reader may still be using."""
        return self._catalog.file_names() | self._catalog.retired().keys()

    def size_bytes(self) -> StoreSize:
        """Bytes on disk, by part."""
        layout = self._layout
        catalog_paths = (layout.catalog_path, *layout.catalog_journal_paths, layout.seal_path)
        return StoreSize(
            shards=sum(map(_size_bytes, self._layout.shards_directory.iterdir())),
            index=sum(map(_size_bytes, self._layout.index_directory.iterdir())),
            catalog=sum(map(_size_bytes, catalog_paths)),
        )

    # -- features -----------------------------------------------------------------------------------------------------

    def read_tokens(self, ids: Sequence[int], out: Array | None = None) -> TokenBatch:
        """All tokens of these videos, in this order; ids may repeat.

        Every video is read from disk once, and straight into ``out`` if that is given: C-contiguous, of the stored
        dtype, [at least n, F, P, D]; then ``tokens`` is a view of it. Raises StoreError for a video without features,
        DamageError for a missing or short shard, ShapeError for a wrong ``out``.
        """
        found = self._empty_tokens(len(ids), None if out is None else self._checked_out(out, len(ids)))
        self._reader.read(plan_reads(self.locations(ids)), _arrays(found))
        return found

    def read_tokens_at(self, ids: Sequence[int], places: Sequence[int], out: TokenBatch) -> None:
        """Read the tokens of these videos into these rows of ``out``, whose arrays are C-contiguous and as stored.

        Every video is read from disk once. Errors as read_tokens; then the rows may hold anything.
        """
        plan = plan_reads(self.locations(ids), places)
        self._checked_out(out.tokens, len(out.tokens))
        self._reader.read(plan, _arrays(out))

    def empty_tokens(self, num_rows: int) -> TokenBatch:
        """Room for the tokens of so many videos."""
        return self._empty_tokens(num_rows)

    def read_frame_embeddings(self, ids: Sequence[int]) -> FrameEmbeddingBatch:
        """The frame embeddings of these videos, in this order; ids may repeat. Errors as read_tokens."""
        names = ("frame_embeddings", "frame_mask", "timestamps_seconds")
        return FrameEmbeddingBatch(*self._read(names, plan_reads(self.locations(ids))))

    def read_pooled(
        self, ids: Sequence[int] | None = None, block_bytes: int = _POOLED_BLOCK_BYTES
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Blocks of (ids int64 [m], pooled float32 [m, D]), each of at most ``block_bytes`` (or one row).

        Of all videos that have features, by id; or of ``ids``, in their order. Errors as read_tokens.
        """
        num_rows = max(1, block_bytes // self._specs["pooled"].row_bytes)
        if ids is None:
            found = self._catalog.searchable_locations()
            while block := list(itertools.islice(found, num_rows)):
                plan = plan_reads([(shard, row) for _, shard, row in block])
                yield np.array([video_id for video_id, _, _ in block], dtype=np.int64), self._read(["pooled"], plan)[0]
        else:
            for start in range(0, len(ids), num_rows):
                part = ids[start : start + num_rows]
                yield np.array(part, dtype=np.int64), self._read(["pooled"], plan_reads(self.locations(part)))[0]

    def verify_record(self, video_id: int) -> None:
        """Read everything of one video and raise DamageError unless it is what was committed."""
        (record,) = self.by_ids([video_id])
        plan = plan_reads(self.locations([video_id]))
        found = record_checksum(self._read(list(self._specs), plan))
        if found != record.checksum:
            raise DamageError(
                f"features of {record.key} (id {video_id}) in shard {record.shard}, row {record.row} have checksum "
                f"{found}, {record.checksum} was committed; {RESTORE_ADVICE}"
            )

    def read_rows(self, shard: int, rows: Sequence[int]) -> TokenBatch:
        """All tokens of these rows of one shard, whoever has them. Raises DamageError."""
        found = self._empty_tokens(len(rows))
        self._reader.read(plan_reads([(shard, row) for row in rows]), _arrays(found))
        return found

    def locations(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """(shard, row) of every id; remembered, because a snapshot never changes and good candidates come again.

        Raises StoreError for a video without features.
        """
        located = self._located if len(self._located) <= _MAX_LOCATED else {}
        unknown = [video_id for video_id in ids if video_id not in located]
        located.update(zip(unknown, self._catalog.locations(unknown), strict=True))
        self._located = located
        return [located[video_id] for video_id in ids]

    def _read(self, names: Sequence[str], plan: ReadPlan) -> list[Array]:
        found = {name: self._empty(name, plan.num_rows) for name in names}
        self._reader.read(plan, found)
        return list(found.values())

    def _empty_tokens(self, num_rows: int, tokens: Array | None = None) -> TokenBatch:
        return TokenBatch(
            self._empty("tokens", num_rows) if tokens is None else tokens,
            self._empty("token_scales", num_rows) if "token_scales" in self._specs else None,
            self._empty("frame_mask", num_rows),
            self._empty("timestamps_seconds", num_rows),
            self._empty("token_places", num_rows) if "token_places" in self._specs else None,
        )

    def _empty(self, name: str, num_rows: int) -> Array:
        spec = self._specs[name]
        return np.empty((num_rows, *spec.row_shape), dtype=spec.dtype)

    def _checked_out(self, out: Array, num_rows: int) -> Array:
        spec = self._specs["tokens"]
        fits = out.ndim == 4 and len(out) >= num_rows and out.shape[1:] == spec.row_shape
        if not fits or out.dtype != np.dtype(spec.dtype) or not out.flags.c_contiguous or not out.flags.writeable:
            raise ShapeError(
                f"out is {out.dtype}{list(out.shape)}, expected writeable C-contiguous {spec.dtype}[>={num_rows}, "
                f"{', '.join(map(str, spec.row_shape))}]"
            )
        return out[:num_rows]


def _arrays(batch: TokenBatch) -> dict[str, Array]:
    """By the name of their dataset."""
    arrays = {
        "tokens": batch.tokens,
        "token_scales": batch.scales,
        "frame_mask": batch.frame_mask,
        "timestamps_seconds": batch.timestamps_seconds,
        "token_places": batch.places,
    }
    return {name: array for name, array in arrays.items() if array is not None}


def _size_bytes(path: Path) -> int:
    """Bytes of a file, or of the files in a directory; 0 when it has just been removed."""
    try:
        return sum(map(_size_bytes, path.iterdir())) if path.is_dir() else path.stat().st_size
    except FileNotFoundError:
        return 0
