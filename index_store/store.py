"""The store: one directory of videos' features, written by one process and read by any number.

A commit writes a shard under a temporary name, makes it durable, gives it its name, and then makes it real with one
catalog transaction. Killed anywhere in between, the store is as before or as after; the next writer removes the rest.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from index_store.atomic import remove, replacing, sync
from index_store.catalog import Catalog, FileRow, GenerationRecord, IndexManifestFields, RowLocation, ShardRecord
from index_store.catalog_upkeep import RowOwner
from index_store.errors import DamageError, FingerprintError, StoreError, from_os_error
from index_store.features import (
    RESTORE_ADVICE,
    Array,
    FeatureReader,
    ReadPlan,
    dataset_specs,
    plan_reads,
    record_checksum,
    write_shard,
)
from index_store.layout import Layout, generation_name, is_generation, is_shard, is_temporary, shard_name
from index_store.lock import writer_lock
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
from index_store.readers import is_read, reader_lock
from index_store.records import SEARCHABLE, ShapeError, VideoFeatures, VideoOutcome, VideoRecord, VideoStatus
from index_store.seal import seal_again, unsealed_while_changing
from index_store.settings import StoreSettings, has_store_section, read_settings, write_settings

NUM_GENERATIONS_KEPT = 2
"""The newest, and the one that a reader of an older snapshot may be about to open."""

_POOLED_BLOCK_BYTES = 64 << 20
_MAX_REPLACED = 10_000
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


class Store:
    """A store directory with its pinned settings. Holds nothing open: cheap, and safe to send to another process."""

    def __init__(self, directory: Path, settings: StoreSettings) -> None:
        self.directory = directory
        self.settings = settings
        self.fingerprint = settings.fingerprint
        self._layout = Layout(directory)

    def __repr__(self) -> str:
        """The directory and the start of the fingerprint."""
        return f"Store({str(self.directory)!r}, {self.fingerprint[:12]})"

    @classmethod
    def create(cls, directory: Path, settings: StoreSettings) -> Store:
        """Make an empty store in a directory that is absent or empty.

        Only a ``tbpipe.toml`` without ``[store]`` may be there; what it says is kept.
        The store exists once its settings are pinned: killed before that, ``create`` simply works again.
        Raises StoreError when something else is in the directory.
        """
        layout = Layout(directory.absolute())
        try:
            layout.directory.mkdir(parents=True, exist_ok=True)
            _require_vacant(layout)
            with writer_lock(layout.lock_path):
                _require_vacant(layout)
                _fill(layout, settings)
        except OSError as error:
            raise from_os_error(error, layout.directory) from error
        return cls(layout.directory, settings)

    @classmethod
    def open(cls, directory: Path) -> Store:
        """Open the store in ``directory``.

        Raises StoreMissingError where there is none, StoreError for another format version, FingerprintError when its
        pinned settings were edited.
        """
        layout = Layout(directory.absolute())
        return cls(layout.directory, read_settings(layout.settings_path))

    @contextlib.contextmanager
    def writer(self, lock_timeout_seconds: float = 0.0) -> Iterator[StoreWriter]:
        """Write to the store, alone; waits up to ``lock_timeout_seconds`` for another writer to end.

        Removes first what a killed writer never committed, and at last what no reader can need any more. Raises
        StoreLockedError, NotWritableError; DamageError before the first change, when the catalog is not what the last
        writer left.
        """
        with (
            writer_lock(self._layout.lock_path, lock_timeout_seconds),
            unsealed_while_changing(self._layout, self.settings.section_json) as before_change,
        ):
            catalog = Catalog.open_for_writing(self._layout, self.fingerprint, before_change)
            try:
                writer = StoreWriter(self._layout, self.settings, catalog)
                writer.remove_uncommitted()
                yield writer
                writer.remove_retired()
            finally:
                catalog.close()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """The store as it is now, whatever is committed, removed or rewritten meanwhile."""
        with reader_lock(self._layout.readers_lock_path) as hold:
            catalog = Catalog.open_snapshot(self._layout, self.fingerprint)
            snapshot = Snapshot(self._layout, self.settings, catalog)
            try:
                hold(snapshot.commit_number)
                yield snapshot
            finally:
                snapshot.close()


def _require_vacant(layout: Layout) -> None:
    """Raise StoreError unless a store may be made here: nothing is lost if everything of ours is replaced."""
    if has_store_section(layout.settings_path):
        raise StoreError(f"{layout.directory} is a store already; open it, or name another directory")
    parts = (layout.shards_directory, layout.index_directory, layout.runs_directory)
    files = (layout.settings_path, layout.lock_path, layout.readers_lock_path, layout.catalog_path, layout.seal_path)
    ours = {*files, *layout.catalog_journal_paths, *parts}
    for path in sorted(layout.directory.iterdir()):
        if path not in ours and not is_temporary(path):
            raise StoreError(f"{layout.directory} is not empty ({path.name} is there); name an empty or new directory")
    for part in parts:
        if part.is_dir() and any(part.iterdir()):
            raise StoreError(
                f"{layout.directory} has {part.name}/ but no [store] in {layout.settings_path.name}; "
                "restore that file from a copy, or name another directory"
            )


def _fill(layout: Layout, settings: StoreSettings) -> None:
    """Make the parts of an empty store, durably; the settings come last because they make it exist."""
    for path in (layout.seal_path, layout.catalog_path, *layout.catalog_journal_paths):
        remove(path)
    layout.readers_lock_path.touch()
    for part in (layout.shards_directory, layout.index_directory, layout.runs_directory):
        part.mkdir(exist_ok=True)
    Catalog.create(layout, settings.fingerprint)
    seal_again(layout, settings.section_json)
    sync(layout.directory)
    sync(layout.directory.parent)
    write_settings(layout.settings_path, settings)


class StoreWriter:
    """The one writer of a store; made by ``Store.writer``."""

    def __init__(self, layout: Layout, settings: StoreSettings, catalog: Catalog) -> None:
        self._layout = layout
        self._settings = settings
        self._catalog = catalog
        self._replaced: dict[str, VideoRecord] = {}
        """What videos had before this writer gave them something else, by content: others may share it still."""

    def commit(self, outcomes: Sequence[VideoOutcome], removed: Sequence[int] = ()) -> None:
        """Make these outcomes real, all or none; features become the rows of one new shard, in the given order.

        The videos with the ids ``removed`` become tombstones with the same commit, as ``remove`` does it.

        A key that is known keeps its id and loses its old features. ``same_content_as`` takes over the features and
        what was found out (status, reason, duration, decoder) of that content. A quarantined outcome counts an attempt,
        any other sets the count to 0. What only says again which content a video has (its file was moved or re-dated)
        notes the file and changes nothing else; if that is all, no commit is counted. Raises StoreError (nothing
        changed) for outcomes that contradict themselves, NoSpaceError, NotWritableError.
        """
        if not outcomes and not removed:
            return
        originals = self._originals(outcomes)
        features = [outcome.features for outcome in outcomes if outcome.features is not None]
        shard_id = self._catalog.next_shard_id()
        path = self._layout.shard_path(shard_name(shard_id))
        with self._removed_on_failure(path):
            info = None
            if features:
                with replacing(path) as temporary:
                    info = write_shard(temporary, self._settings, features)
            placed = list(_place(outcomes, originals, shard_id, info.checksums if info else ()))
            known = [self._catalog.by_key(outcome.file.key) for outcome in outcomes]
            with self._catalog.transaction():
                if info is not None:
                    self._catalog.add_shard(info.record(shard_id, path.name, self._settings.fingerprint))
                new = [pair for pair in zip(placed, known, strict=True) if not self._is_noted(*pair)]
                if new or removed:
                    self._catalog.count_commit()
                for entry, _ in new:
                    self._catalog.put_video(entry.outcome, entry.location, entry.checksum)
                for video_id in removed:
                    self._catalog.remove(int(video_id))
            self._remember(known)

    def remove(self, ids: Sequence[int]) -> None:
        """Drop the features of these videos, in one transaction.

        Each stays as a tombstone: its id is never given again, and its key gets it back when it returns. The features
        stay in their shard until it is compacted.
        """
        self.commit((), removed=ids)

    def requeue(self, keys: Sequence[str] | None) -> int:
        """Let the next extract try quarantined videos again: all, or those with these keys. Returns how many.

        They stay quarantined, with their attempts, but what their files looked like is forgotten (size and mtime -1,
        inode 0, no content hash), so that a scan takes them for changed.
        """
        with self._catalog.transaction():
            return self._catalog.requeue(keys)

    def touch(self, records: Iterable[VideoRecord]) -> None:
        """Note new path, size, mtime and inode of files whose content is unchanged (moved or re-dated).

        Raises StoreError for an id that was never given; then nothing is changed.
        """
        with self._catalog.transaction():
            for record in records:
                self._catalog.touch(record)

    def publish_index(self, build: Callable[[Path], IndexManifestFields]) -> int:
        """Publish a new index generation, whole; returns its id.

        ``build`` fills the empty directory that it is given and says what it built. Generations older than the one
        before are retired: removed as soon as nobody can be reading them. Raises FingerprintError for an index of other
        features, NoSpaceError, NotWritableError; whatever ``build`` raises passes, and then nothing is published.
        """
        self.remove_uncommitted()  # a directory, unlike a file, cannot take the place of an abandoned one
        generation_id = self._catalog.next_generation_id()
        path = self._layout.generation_path(generation_name(generation_id))
        with self._removed_on_failure(path):
            with replacing(path) as temporary:
                temporary.mkdir()
                fields = build(temporary)
                self._require_own(fields)
            with self._catalog.transaction():
                self._catalog.add_generation(generation_id, fields)
                self._catalog.keep_generations(NUM_GENERATIONS_KEPT)
        return generation_id

    def rewrite(self, kept: Sequence[KeptRow], dropped: Sequence[int], lost: Sequence[int] = ()) -> None:
        """Give rows of other shards a new one, retire the shards ``dropped``, and take the features of videos ``lost``.

        All or nothing. ``lost``: ids; they are quarantined as damaged, and the next extract computes them again.
        Videos whose row only moves have not changed. Raises DamageError, and nothing is changed, for a kept row that is
        not what was committed; NoSpaceError, NotWritableError.
        """
        shard_id = self._catalog.next_shard_id()
        path = self._layout.shard_path(shard_name(shard_id))
        with self._removed_on_failure(path):
            info = None
            if kept:
                with replacing(path) as temporary:
                    info = write_shard(temporary, self._settings, [row.features for row in kept])
                    _require_same_rows(kept, info.checksums)
            with self._catalog.transaction():
                if lost:
                    self._catalog.count_commit()
                    self._catalog.lose_features(lost, "the stored features were damaged")
                if info is not None:
                    self._catalog.add_shard(info.record(shard_id, path.name, self._settings.fingerprint))
                    for number, row in enumerate(kept):
                        self._catalog.move_videos([owner.id for owner in row.owners], shard_id, number)
                for number in dropped:
                    self._catalog.retire_shard(number)

    def retire_generation(self, generation_id: int) -> None:
        """Take an index generation out of use; its directory goes when nobody can be reading it."""
        with self._catalog.transaction():
            self._catalog.retire_generation(generation_id)

    def remove_retired(self) -> None:
        """Remove shards and indexes that the catalog named once and that no reader can be about to open."""
        retired = self._catalog.retired()
        is_needed = {number: is_read(self._layout.readers_lock_path, number) for number in set(retired.values())}
        gone = [name for name, number in retired.items() if not is_needed[number]]
        if not gone:
            return
        try:
            for name in gone:
                is_file = is_shard(Path(name))
                remove(self._layout.shard_path(name) if is_file else self._layout.generation_path(name))
        except OSError as error:
            raise from_os_error(error, self._layout.directory) from error
        with self._catalog.transaction():
            self._catalog.forget_retired(gone)

    def remove_uncommitted(self) -> None:
        """Remove what the catalog never named: unfinished files, shards and indexes of a killed or failed writer."""
        known = self._catalog.file_names() | self._catalog.retired().keys()
        directories = (self._layout.directory, self._layout.shards_directory, self._layout.index_directory)
        try:
            for path in [path for directory in directories for path in sorted(directory.iterdir())]:
                if is_temporary(path) or ((is_shard(path) or is_generation(path)) and path.name not in known):
                    remove(path)
        except OSError as error:
            raise from_os_error(error, self._layout.directory) from error

    def _originals(self, outcomes: Sequence[VideoOutcome]) -> dict[str, VideoRecord]:
        """The stored videos whose features are to be shared, by content. Raises StoreError for impossible outcomes."""
        originals: dict[str, VideoRecord] = {}
        new: set[str] = set()
        for outcome in outcomes:
            _require_sound(outcome)
            content = outcome.same_content_as
            if outcome.features is not None:
                new.add(outcome.content_hash)
            elif content and content not in new and content not in originals:
                record = self._catalog.by_content(content) or self._replaced.get(content)
                if record is None:
                    raise StoreError(f"{outcome.file.key!r} shares content {content}, which is not stored; extract it")
                originals[content] = record
        return originals

    def _remember(self, replaced: Iterable[VideoRecord | None]) -> None:
        """Keep what videos had: files that change places are committed one after the other."""
        self._replaced.update((known.content_hash, known) for known in replaced if known and known.shard is not None)
        for content in list(self._replaced)[:-_MAX_REPLACED]:
            del self._replaced[content]

    def _is_noted(self, placed: _Placed, known: VideoRecord | None) -> bool:
        """Whether a video has these features already; where its file is now is noted."""
        if known is None or known.shard is None or placed.location != RowLocation(known.shard, known.row or 0):
            return False
        file = placed.outcome.file
        self._catalog.touch(
            replace(known, path=file.path, size_bytes=file.size_bytes, mtime_ns=file.mtime_ns, inode=file.inode)
        )
        return True

    def _require_own(self, fields: IndexManifestFields) -> None:
        if fields.fingerprint != self._settings.fingerprint:
            raise FingerprintError(
                f"the index was built from features with fingerprint {fields.fingerprint}, "
                f"{self._layout.directory} has {self._settings.fingerprint}; build it from this store"
            )

    @contextlib.contextmanager
    def _removed_on_failure(self, path: Path) -> Iterator[None]:
        """Remove the file or directory ``path`` if the block fails before the catalog names it."""
        try:
            yield
        except BaseException as error:
            # Whatever cannot be removed now, the next writer removes. The first error is the one to report.
            with contextlib.suppress(OSError, StoreError):
                if path.exists() and self._catalog.settle() and path.name not in self._catalog.file_names():
                    remove(path)
            if isinstance(error, OSError):
                raise from_os_error(error, path) from error
            raise


@dataclass(frozen=True, slots=True, eq=False)
class KeptRow:
    """A row of a shard that goes on in another one."""

    owners: Sequence[RowOwner]
    """The videos that have it; one at least."""
    features: VideoFeatures


def _require_same_rows(kept: Sequence[KeptRow], checksums: Sequence[str]) -> None:
    """Raise DamageError unless what was written is what was committed."""
    for row, checksum in zip(kept, checksums, strict=True):
        owner = row.owners[0]
        if checksum != owner.checksum:
            raise DamageError(
                f"features of {owner.key} (id {owner.id}) have checksum {checksum}, {owner.checksum} was committed; "
                "run 'tbpipe repair'"
            )


@dataclass(frozen=True, slots=True)
class _Placed:
    """An outcome with the place of its features."""

    outcome: VideoOutcome
    location: RowLocation | None
    checksum: str


def _place(
    outcomes: Sequence[VideoOutcome], originals: dict[str, VideoRecord], shard_id: int, checksums: Sequence[str]
) -> Iterator[_Placed]:
    """Every outcome with its place: a row of the new shard, the row of the content that it shares, or none."""
    new: dict[str, _Placed] = {}
    row = 0
    for outcome in outcomes:
        if outcome.features is not None:
            placed = new[outcome.content_hash] = _Placed(outcome, RowLocation(shard_id, row), checksums[row])
            row += 1
        elif not outcome.same_content_as:
            placed = _Placed(outcome, None, "")
        elif outcome.same_content_as in new:
            original = new[outcome.same_content_as]
            placed = _Placed(_share(outcome, original.outcome), original.location, original.checksum)
        else:
            record = originals[outcome.same_content_as]
            assert record.shard is not None  # by_content gives no other
            assert record.row is not None
            placed = _Placed(_share(outcome, record), RowLocation(record.shard, record.row), record.checksum)
        yield placed


def _share(outcome: VideoOutcome, original: VideoOutcome | VideoRecord) -> VideoOutcome:
    """``outcome`` with everything that was found out about the same content before."""
    return replace(
        outcome,
        status=original.status,
        content_hash=original.content_hash,
        duration_seconds=original.duration_seconds,
        decoder=original.decoder,
        decoder_note=original.decoder_note,
        reason_code=original.reason_code,
        reason_detail=original.reason_detail,
    )


def _require_sound(outcome: VideoOutcome) -> None:
    """Raise StoreError for an outcome that says two things at once."""
    key = outcome.file.key
    num_sources = (outcome.features is not None) + bool(outcome.same_content_as)
    if num_sources != (1 if outcome.status in SEARCHABLE else 0):
        raise StoreError(f"{key!r} is {outcome.status} with {num_sources} sources of features; nothing was committed")
    if outcome.features is not None and not outcome.content_hash:
        raise StoreError(f"{key!r} has features but no content hash; nothing was committed")
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise StoreError(f"key {key!r} is not text; escape the bytes that are not UTF-8") from error


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
        plan = plan_reads(self.locations(ids))
        tokens = self._empty("tokens", len(ids)) if out is None else self._checked_out(out, len(ids))
        return self._tokens(plan, tokens)

    def read_frame_embeddings(self, ids: Sequence[int]) -> FrameEmbeddingBatch:
        """The frame embeddings of these videos, in this order; ids may repeat. Errors as read_tokens."""
        plan = plan_reads(self.locations(ids))
        return FrameEmbeddingBatch(
            self._read("frame_embeddings", plan), self._read("frame_mask", plan), self._read("timestamps_seconds", plan)
        )

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
                yield np.array([video_id for video_id, _, _ in block], dtype=np.int64), self._read("pooled", plan)
        else:
            for start in range(0, len(ids), num_rows):
                part = ids[start : start + num_rows]
                yield np.array(part, dtype=np.int64), self._read("pooled", plan_reads(self.locations(part)))

    def verify_record(self, video_id: int) -> None:
        """Read everything of one video and raise DamageError unless it is what was committed."""
        (record,) = self.by_ids([video_id])
        plan = plan_reads(self.locations([video_id]))
        found = record_checksum([self._read(name, plan) for name in self._specs])
        if found != record.checksum:
            raise DamageError(
                f"features of {record.key} (id {video_id}) in shard {record.shard}, row {record.row} have checksum "
                f"{found}, {record.checksum} was committed; {RESTORE_ADVICE}"
            )

    def read_rows(self, shard: int, rows: Sequence[int]) -> TokenBatch:
        """All tokens of these rows of one shard, whoever has them. Raises DamageError."""
        return self._tokens(plan_reads([(shard, row) for row in rows]), self._empty("tokens", len(rows)))

    def locations(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """(shard, row) of every id; remembered, because a snapshot never changes and good candidates come again.

        Raises StoreError for a video without features.
        """
        located = self._located if len(self._located) <= _MAX_LOCATED else {}
        unknown = [video_id for video_id in ids if video_id not in located]
        located.update(zip(unknown, self._catalog.locations(unknown), strict=True))
        self._located = located
        return [located[video_id] for video_id in ids]

    def _tokens(self, plan: ReadPlan, tokens: Array) -> TokenBatch:
        self._reader.read("tokens", plan, tokens)
        scales = self._read("token_scales", plan) if "token_scales" in self._specs else None
        return TokenBatch(tokens, scales, self._read("frame_mask", plan), self._read("timestamps_seconds", plan))

    def _read(self, name: str, plan: ReadPlan) -> Array:
        out = self._empty(name, plan.num_rows)
        self._reader.read(name, plan, out)
        return out

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


def _size_bytes(path: Path) -> int:
    """Bytes of a file, or of the files in a directory; 0 when it has just been removed."""
    try:
        return sum(map(_size_bytes, path.iterdir())) if path.is_dir() else path.stat().st_size
    except FileNotFoundError:
        return 0
