"""Write to a store, as the one who holds its lock.

A commit writes a shard under a temporary name, makes it durable, gives it its name, and then makes it real with one
catalog transaction. Killed anywhere in between, the store is as before or as after; the next writer removes the rest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from index_store.atomic import remove, replacing
from index_store.catalog import Catalog, IndexManifestFields, RowLocation
from index_store.catalog_upkeep import RowOwner
from index_store.errors import DamageError, FingerprintError, StoreError, from_os_error
from index_store.features import write_shard
from index_store.layout import Layout, generation_name, is_generation, is_shard, is_temporary, shard_name
from index_store.readers import is_read
from index_store.records import SEARCHABLE, VideoFeatures, VideoOutcome, VideoRecord
from index_store.settings import StoreSettings

NUM_GENERATIONS_KEPT = 2
"""The newest, and the one that a reader of an older snapshot may be about to open."""
_MAX_REPLACED = 10_000


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
