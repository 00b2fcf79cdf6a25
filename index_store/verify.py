"""Whether a store is what was written: every file looked at, every fault named with its file and record. Never writes.

Fast, this reads the catalog, the manifests and the sizes of all files; with ``read_data`` every byte of every file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from index_store.catalog import ShardRecord
from index_store.errors import DamageError, FingerprintError, InputError, StoreError
from index_store.generation_check import generation_faults
from index_store.generation_drift import drift
from index_store.index_files import INDEX_FILE
from index_store.layout import Layout, is_generation, is_shard, is_temporary
from index_store.seal import check_seal, describe_block, sealed_settings
from index_store.settings import StoreSettings, read_settings, settings_of
from index_store.shard_file import FORBIDDEN, file_fault, shard_rows
from index_store.snapshot import Snapshot
from index_store.store import Store

Part = Literal["settings", "catalog", "seal", "shard", "index", "prepared"]

Advance = Callable[[int], None]
"""Told the bytes that were read."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not what was written."""

    part: Part
    path: str
    """Of the file or directory, relative to the store."""
    record: str
    """What in the file: a video's key, a generation, a block of the catalog."""
    found: str
    """What is wrong, with what was expected."""
    remedy: str
    """What brings it back."""
    number: int = 0
    """Of the shard or generation; 0 for other parts."""

    def __str__(self) -> str:
        """One line."""
        return f"{self.path}: {self.record}: {self.found}; {self.remedy}"


@dataclass(slots=True)
class VerifyReport:
    """What verify found."""

    read_data: bool
    """Whether every byte was read."""
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is no damage but worth knowing."""
    num_videos: int = 0
    """With features."""
    num_shards: int = 0
    num_generations: int = 0
    bytes_read: int = 0

    @property
    def is_catalog_damaged(self) -> bool:
        """Then nothing else can be looked at: the catalog says what it must be."""
        return any(problem.part == "catalog" for problem in self.problems)

    def add(
        self, part: Part, path: str, record: str, found: str, remedy: str = "run 'tbpipe repair'", number: int = 0
    ) -> None:
        """Note a problem."""
        self.problems.append(Problem(part, path, record, found, remedy, number))


def verify(directory: Path, read_data: bool = False, on_bytes: Advance = lambda count: None) -> VerifyReport:
    """Look at the store in ``directory``; any number of readers and a writer may be at work meanwhile.

    Raises StoreMissingError where there is none, StoreError for one of a newer format.
    """
    report = VerifyReport(read_data)
    layout = Layout(directory.absolute())
    settings = _checked_settings(layout, report)
    if settings is None:
        return report
    is_sealed = _check_seal(layout, report)
    if not report.is_catalog_damaged:
        try:
            with Store(layout.directory, settings).snapshot() as snapshot:
                _check_snapshot(layout, snapshot, is_sealed, report, on_bytes)
        except (DamageError, ValueError, TypeError) as error:  # the last two: numbers or JSON that are none
            report.add("catalog", layout.catalog_path.name, "the database", str(error))
    if report.is_catalog_damaged:
        report.notes.append("the other files were not looked at: the catalog, which says what they must be, is damaged")
    return report


def _checked_settings(layout: Layout, report: VerifyReport) -> StoreSettings | None:
    """The pinned settings, from the seal's copy where ``tbpipe.toml`` is damaged; None where there is none either."""
    sealed = settings_of(sealed_settings(layout))
    name = layout.settings_path.name
    try:
        settings = read_settings(layout.settings_path)
    except (StoreError, InputError) as error:
        if sealed is None and not isinstance(error, (FingerprintError, InputError)):
            raise  # no store, or one of another format
        remedy = "restore it from a copy" if sealed is None else "run 'tbpipe repair'"
        report.add("settings", name, "[store]", str(error), remedy)
        return sealed
    if sealed is not None and sealed.model.pretrained != settings.model.pretrained:
        report.notes.append(
            f"{name} says pretrained = {settings.model.pretrained!r}, it was {sealed.model.pretrained!r}"
        )
    return settings


def _check_seal(layout: Layout, report: VerifyReport) -> bool:
    """Whether the catalog is known to be what its last writer left."""
    found = check_seal(layout)
    if not found.is_sealed:
        report.notes.append(
            "the catalog is not sealed: a writer is at work, or the last one was ended; the next seals it"
        )
    for name, (size, sealed) in found.wrong_sizes.items():
        report.add("catalog", name, "its length", f"{size} bytes, {sealed} were written")
    for block in found.damaged:
        report.add("catalog", block.file, describe_block(layout, found, block), "is not what was written")
    for fault in found.faults:
        report.add("seal", layout.seal_path.name, "checksums of the catalog", fault)
    return found.is_whole


def _check_snapshot(
    layout: Layout, snapshot: Snapshot, is_sealed: bool, report: VerifyReport, on_bytes: Advance
) -> None:
    for fault in snapshot.catalog_faults(report.read_data, is_sealed):
        report.add("catalog", layout.catalog_path.name, "the database", fault)
    if report.is_catalog_damaged:
        return
    report.num_videos = snapshot.num_searchable
    _check_shards(layout, snapshot, report, on_bytes)
    _check_generations(layout, snapshot, report, on_bytes)
    _check_prepared(snapshot, report)
    _note_leftovers(layout, snapshot, report)


def _check_shards(layout: Layout, snapshot: Snapshot, report: VerifyReport, on_bytes: Advance) -> None:
    shards = snapshot.shards()
    report.num_shards = len(shards)
    for shard, fault in _in_threads(shards, lambda shard: _shard_fault(layout, shard, report.read_data)):
        if report.read_data:
            report.bytes_read += shard.size_bytes
            on_bytes(shard.size_bytes)
        if fault == FORBIDDEN:
            name = str(layout.shard_path(shard.name).relative_to(layout.directory))
            report.add("shard", name, "the file", fault, "allow it, and look again", shard.id)
        elif fault:
            _name_rows(layout, snapshot, shard, fault, report)


def _shard_fault(layout: Layout, shard: ShardRecord, read_data: bool) -> str:
    return file_fault(layout.shard_path(shard.name), shard.size_bytes, shard.sha256, read_data)


def _name_rows(layout: Layout, snapshot: Snapshot, shard: ShardRecord, fault: str, report: VerifyReport) -> None:
    """One problem for each row of a damaged shard that is not what was committed; one at least."""
    path = layout.shard_path(shard.name)
    name = str(path.relative_to(layout.directory))
    before = len(report.problems)
    owners = snapshot.owners([shard.id])[shard.id]
    if not path.exists():
        keys = [owner.key for row in owners.values() for owner in row]
        report.add("shard", name, f"{len(keys)} videos (first: {keys[0] if keys else 'none'})", fault, number=shard.id)
        return
    with shard_rows(path, shard, snapshot.settings) as rows:
        for row, videos in owners.items():
            if not rows.is_intact(row, videos[0].checksum):
                names = ", ".join(f"{owner.key} (id {owner.id})" for owner in videos)
                report.add(
                    "shard", name, f"{names} in row {row}", f"its checksum differs (the file {fault})", number=shard.id
                )
    if len(report.problems) == before:
        report.add(
            "shard",
            name,
            "outside every video (structure, padding or a row that is not in use)",
            fault,
            number=shard.id,
        )


def _check_generations(layout: Layout, snapshot: Snapshot, report: VerifyReport, on_bytes: Advance) -> None:
    generations = snapshot.generations()
    report.num_generations = len(generations)
    for generation in generations:
        for name, found in generation_faults(generation, report.read_data):
            path = str((generation.path / name).relative_to(layout.directory))
            report.add(
                "index",
                path,
                f"generation {generation.id} ({generation.num_vectors} vectors)",
                found,
                number=generation.id,
            )
        if report.read_data and generation.path.is_dir():
            size_bytes = sum(path.stat().st_size for path in generation.path.iterdir())
            report.bytes_read += size_bytes
            on_bytes(size_bytes)
    if report.read_data and generations and not report.problems:
        newest = generations[-1]
        found = drift(snapshot, newest)
        if found:
            path = str((newest.path / INDEX_FILE).relative_to(layout.directory))
            report.add("index", path, f"generation {newest.id}", found, number=newest.id)
    if generations and generations[-1].commit_number != snapshot.commit_number:
        report.notes.append("the index is older than the store: 'tbpipe index' brings it up to date")


def _check_prepared(snapshot: Snapshot, report: VerifyReport) -> None:
    """What is prepared can be computed again at any time, so it is looked at only when every byte is."""
    if not report.read_data:
        return
    for fault in snapshot.prepared_faults():
        report.add("prepared", fault.path, fault.record, fault.found)


def _note_leftovers(layout: Layout, snapshot: Snapshot, report: VerifyReport) -> None:
    named = snapshot.file_names()
    folders = (layout.directory, layout.shards_directory, layout.index_directory)
    found = [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if is_temporary(path) or ((is_shard(path) or is_generation(path)) and path.name not in named)
    ]
    if found:
        name = found[0].relative_to(layout.directory)
        report.notes.append(
            f"{len(found)} files that the catalog does not name (first: {name}): a writer is at work, or was ended; "
            "the next writer removes them"
        )
    for folder in folders:
        if not folder.is_dir():
            report.add(
                "shard" if folder == layout.shards_directory else "index", folder.name, "the directory", "is missing"
            )


def _in_threads(shards: Sequence[ShardRecord], look: Callable[[ShardRecord], str]) -> Iterator[tuple[ShardRecord, str]]:
    """What ``look`` finds for each shard, in their order; several are read at once."""
    with ThreadPoolExecutor(os.cpu_count(), "tbpipe-verify") as threads:
        yield from zip(shards, threads.map(look, shards), strict=True)
