"""Takes out of a store exactly what is damaged, so that the next extract and index make it again.

What can be brought back without computing is: a block of the catalog from the parity in its seal, a shard whose rows
are all intact by writing it again. Of any other damaged shard the intact rows go to a new one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from index_store.atomic import remove, replacing
from index_store.catalog import ShardRecord
from index_store.errors import (
    DamageError,
    InputError,
    NotWritableError,
    SafetyStopError,
    StoreError,
    StoreLockedError,
    from_os_error,
)
from index_store.features import write_shard
from index_store.layout import Layout
from index_store.lock import writer_lock
from index_store.readers import ANY_COMMIT, is_read
from index_store.seal import check_seal, describe_damage, remove_seal, restore_catalog, sealed_settings
from index_store.settings import StoreSettings, read_settings, restore_settings, settings_of
from index_store.shard_file import FORBIDDEN, MISSING, ShardRows, shard_rows
from index_store.store import Store
from index_store.verify import Advance, Problem, VerifyReport, verify
from index_store.writer import KeptRow, StoreWriter


@dataclass(slots=True)
class RepairReport:
    """What repair found and did."""

    problems: list[Problem] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    """Files that are again what was written, to the byte."""
    rewritten: list[str] = field(default_factory=list)
    """Shards of which the intact rows went to a new one."""
    num_kept: int = 0
    """Videos whose features moved there, unchanged."""
    lost: list[str] = field(default_factory=list)
    """Keys of the videos that the next extract computes again."""
    dropped_generations: list[int] = field(default_factory=list)
    """Index generations that were damaged; the next index builds a new one."""
    removed: list[str] = field(default_factory=list)
    """Prepared files, which are computed again when they are needed."""


def repair(
    directory: Path,
    lock_timeout_seconds: float = 0.0,
    on_bytes: Advance = lambda count: None,
    accept_loss: bool = False,
) -> RepairReport:
    """Repair the store in ``directory``; reads every byte of it.

    Killed at any time, the store is not worse than before, and repair can be run again. Raises DamageError for damage
    that only a copy can mend, StoreLockedError, NoSpaceError, NotWritableError for a file that may not be read;
    SafetyStopError, unless ``accept_loss``, when most shards are missing: more likely their disk is.
    """
    layout = Layout(directory.absolute())
    report = RepairReport()
    settings = _repaired_settings(layout, lock_timeout_seconds, report)
    with writer_lock(layout.lock_path, lock_timeout_seconds):
        _repair_catalog(layout, settings, report)
    store = Store(layout.directory, settings)
    with store.writer(lock_timeout_seconds) as writer:
        found = verify(layout.directory, read_data=True, on_bytes=on_bytes)
        report.problems += found.problems
        _require_repairable(found.problems)
        if not accept_loss:
            _require_shards(found)
        for number in sorted({problem.number for problem in found.problems if problem.part == "shard"}):
            _repair_shard(store, writer, number, report)
        for number in sorted({problem.number for problem in found.problems if problem.part == "index"}):
            writer.retire_generation(number)
            report.dropped_generations.append(number)
        for problem in found.problems:
            if problem.part == "prepared":
                _remove(layout.directory / problem.path)
                report.removed.append(problem.path)
    return report


def _repaired_settings(layout: Layout, lock_timeout_seconds: float, report: RepairReport) -> StoreSettings:
    """The pinned settings; where ``tbpipe.toml`` is damaged, it is written anew from the seal's copy."""
    try:
        return read_settings(layout.settings_path)
    except (StoreError, InputError) as error:
        settings = settings_of(sealed_settings(layout))
        if settings is None:
            raise
        with writer_lock(layout.lock_path, lock_timeout_seconds):
            kept = restore_settings(layout.settings_path, settings)
        where = f", the old file is {kept.name}: its comments are only there" if kept else ""
        report.problems.append(
            Problem("settings", layout.settings_path.name, "[store]", str(error), "run 'tbpipe repair'")
        )
        report.restored.append(f"{layout.settings_path.name}{where}")
        return settings


def _repair_catalog(layout: Layout, settings: StoreSettings, report: RepairReport) -> None:
    """Make the catalog what its last writer left. Raises DamageError where that is not possible."""
    found = check_seal(layout)
    if found.damaged or found.wrong_sizes:
        if is_read(layout.readers_lock_path, ANY_COMMIT):
            raise StoreLockedError(
                f"{layout.directory} is being read, and its catalog must be mended in place: "
                "end what reads it (search, rerank, evaluate ...), then run 'tbpipe repair' again"
            )
        report.problems += verify(layout.directory).problems
        names = {*(block.file for block in found.damaged), *found.wrong_sizes}
        restore_catalog(layout, found)
        report.restored += sorted(names)
    elif found.is_sealed and not found.faults:
        return
    with Store(layout.directory, settings).snapshot() as snapshot:
        faults = snapshot.catalog_faults(thorough=True)
    if faults:
        raise DamageError(
            f"{layout.catalog_path} is damaged ({faults[0]}), and it was not sealed: restore it from a copy, or "
            "extract into a new directory"
        )
    if found.faults:
        lines = describe_damage(layout, found)
        report.problems += [
            Problem("seal", layout.seal_path.name, "checksums of the catalog", line, "run 'tbpipe repair'")
            for line in lines
        ]
        remove_seal(layout)  # the next writer, a moment from now, makes a new one
        report.restored.append(layout.seal_path.name)


def _require_repairable(problems: list[Problem]) -> None:
    for problem in problems:
        if problem.found == FORBIDDEN:
            raise NotWritableError(f"{problem.path} {FORBIDDEN}; nothing was changed: check its permissions")
        if problem.part in ("settings", "catalog") or (problem.part in ("shard", "index") and not problem.number):
            raise DamageError(f"{problem}: this cannot be repaired, restore the file from a copy")


def _require_shards(found: VerifyReport) -> None:
    missing = [problem.path for problem in found.problems if problem.part == "shard" and problem.found == MISSING]
    if len(missing) > max(1, found.num_shards // 2):
        raise SafetyStopError(
            f"{len(missing)} of {found.num_shards} shards are missing (first: {missing[0]}): is their disk mounted? "
            "Nothing was changed; if they are lost for good, give --accept-loss"
        )


def _repair_shard(store: Store, writer: StoreWriter, shard_id: int, report: RepairReport) -> None:
    """Write the file again if all its rows are there; else keep the intact ones in a new shard."""
    layout = Layout(store.directory)
    with store.snapshot() as snapshot:
        shard = snapshot.shard(shard_id)
        assert shard is not None  # verify has just named it
        owners = snapshot.owners([shard_id])[shard_id]
    path = layout.shard_path(shard.name)
    name = str(path.relative_to(layout.directory))
    with shard_rows(path, shard, store.settings) as rows:
        if _is_written_again(path, shard, rows, store.settings):
            report.restored.append(name)
            return
        kept: list[KeptRow] = []
        lost: list[int] = []
        for row, videos in owners.items():
            features = rows.features(row) if rows.is_intact(row, videos[0].checksum) else None
            if features is not None:
                kept.append(KeptRow(videos, features))
                report.num_kept += len(videos)
            else:
                lost += [video.id for video in videos]
                report.lost += [video.key for video in videos]
    writer.rewrite(kept, [shard_id], lost)
    report.rewritten.append(name)


class _DifferentError(Exception):
    """What was written is not what was there once."""


def _is_written_again(path: Path, shard: ShardRecord, rows: ShardRows, settings: StoreSettings) -> bool:
    """Whether the rows, written anew, give the file that was committed; then it has its name again."""
    features = []
    for row in range(shard.num_rows):
        found = rows.features(row)
        if found is None:
            return False
        features.append(found)
    try:
        with replacing(path) as temporary:
            if write_shard(temporary, settings, features).sha256 != shard.sha256:
                raise _DifferentError
    except _DifferentError:
        return False
    except OSError as error:
        raise from_os_error(error, path) from error
    return True


def _remove(path: Path) -> None:
    try:
        remove(path)
    except OSError as error:
        raise from_os_error(error, path) from error
