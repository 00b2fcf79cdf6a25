"""Damage of every kind is named, with its file and its record, and taken out; the rest stays as it was."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_store.catalog import IndexManifestFields
from index_store.compact import compact
from index_store.errors import (
    DamageError,
    NotWritableError,
    SafetyStopError,
    StoreError,
    StoreLockedError,
    StoreMissingError,
)
from index_store.prepared import PreparedAbout
from index_store.repair import RepairReport, repair
from index_store.settings import SamplingSettings
from index_store.snapshot import Snapshot
from index_store.store import Store
from index_store.vectors import VectorIndex
from index_store.verify import Problem, verify
from tests.index_store.samples import INT8_SETTINGS, PLACED_SETTINGS, SETTINGS, bad, copy_of, features, fill, ok, state
from tests.index_store.test_catalog_schema import rewritten

SHARD = "shards/00000001.h5"


def flip(path: Path, place: int) -> None:
    """Change one byte."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def publish(store: Store) -> None:
    """An index of all videos."""

    def build(directory: Path) -> IndexManifestFields:
        with store.snapshot() as snapshot:
            index = VectorIndex.build(snapshot.read_pooled, snapshot.num_searchable, 8, "Flat", snapshot.commit_number)
            manifest = index.save(directory, store.fingerprint)
        return IndexManifestFields(len(index), "Flat", manifest.fingerprint, manifest.commit_number)

    with store.writer() as writer:
        writer.publish_index(build)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Shard 1: a, b (and its copy e), c; shard 2: d; a is replaced later, so row 0 of shard 1 is waste; an index."""
    store = Store.create(tmp_path / "store", SETTINGS)
    fill(store, ok("a", 1), ok("b", 2), ok("c", 3), bad("q"))
    fill(store, ok("d", 4), copy_of("e", 2), ok("a", 5))
    publish(store)
    return store


def place_of(store: Store, name: str, row: int, shard: int = 1) -> int:
    """Where a row of a dataset begins in its file."""
    with store.snapshot() as snapshot:
        record = snapshot.shard(shard)
        assert record is not None
        dataset = next(dataset for dataset in record.datasets if dataset.name == name)
        return dataset.offset + row * dataset.row_bytes


def found(store: Store, read_data: bool = True) -> list[Problem]:
    return verify(store.directory, read_data).problems


def whole(store: Store) -> dict[str, tuple[int, str, str]]:
    """Everything that the store has; nothing of it is damaged."""
    report = verify(store.directory, read_data=True)
    assert report.problems == []
    with store.snapshot() as snapshot:
        return state(snapshot)


def test_a_store_that_is_whole_has_no_problem_and_is_not_changed(store: Store) -> None:
    before = {path: path.read_bytes() for path in store.directory.rglob("*") if path.is_file()}
    for read_data in (False, True):
        report = verify(store.directory, read_data)
        assert (report.problems, report.notes) == ([], [])
        assert (report.num_videos, report.num_shards, report.num_generations) == (5, 2, 1)
        assert (report.bytes_read > 0) == read_data
    files = {path for path in store.directory.rglob("*") if path.is_file()}
    assert {path for path in files - before.keys() if not path.name.endswith(("-wal", "-shm"))} == set()
    assert all(path.read_bytes() == content for path, content in before.items())
    assert repair(store.directory) == RepairReport()


def test_a_flipped_place_is_found_and_places_are_compacted_with_their_tokens(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", PLACED_SETTINGS)
    fill(store, ok("a", 1, PLACED_SETTINGS), ok("b", 2, PLACED_SETTINGS))
    fill(store, ok("a", 3, PLACED_SETTINGS))
    before = whole(store)
    assert compact(store, 0.1).num_rows_moved == 2
    assert whole(store) == before
    with store.snapshot() as snapshot:
        np.testing.assert_array_equal(snapshot.read_tokens([1]).places[0], features(3, PLACED_SETTINGS).token_places)
        (shard,) = snapshot.shards()
    name = f"shards/{shard.name}"
    flip(store.directory / name, place_of(store, "token_places", 1, shard.id) + 4)
    assert found(store, read_data=False) == []
    (problem,) = found(store)
    assert problem.path == name
    assert "its checksum differs" in problem.found
    assert repair(store.directory).lost == [record.split(" ")[0] for record in [problem.record]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "row", "record", "lost"),
    [
        ("tokens", 1, "b (id 2), e (id 6) in row 1", ["b", "e"]),
        ("pooled", 2, "c (id 3) in row 2", ["c"]),
        ("timestamps_seconds", 0, "outside every video", []),
    ],
)
def test_a_flipped_byte_of_a_shard_names_its_videos_and_only_they_are_lost(
    store: Store, name: str, row: int, record: str, lost: list[str]
) -> None:
    before = whole(store)
    flip(store.directory / SHARD, place_of(store, name, row))
    assert found(store, read_data=False) == []
    (problem,) = found(store)
    assert (problem.part, problem.path) == ("shard", SHARD)
    assert problem.record.startswith(record)
    report = repair(store.directory)
    assert report.lost == lost
    assert report.rewritten == [SHARD]
    after = whole(store)
    assert {key: after[key] for key in after if key not in lost} == {
        key: before[key] for key in after if key not in lost
    }
    with store.snapshot() as snapshot:
        for key in lost:
            record_after = snapshot.by_key(key)
            assert record_after is not None
            assert (record_after.status, record_after.reason_code, record_after.size_bytes) == (
                "quarantined",
                "damaged",
                -1,
            )
        changed = {video_id for video_id, _ in snapshot.changed_since(2)}
        assert changed == {before[key][0] for key in lost}
    seeds = {"b": ok("b", 2), "e": copy_of("e", 2), "c": ok("c", 3)}
    if lost:
        fill(store, *[seeds[key] for key in lost])
    assert whole(store) == before
    assert not (store.directory / SHARD).exists()


def test_structure_that_is_damaged_alone_is_written_again(store: Store) -> None:
    before, content = whole(store), (store.directory / SHARD).read_bytes()
    flip(store.directory / SHARD, 3)  # the HDF5 signature
    (problem,) = found(store)
    assert problem.record.startswith("outside every video")
    report = repair(store.directory)
    assert (report.restored, report.rewritten, report.lost) == ([SHARD], [], [])
    assert (store.directory / SHARD).read_bytes() == content
    assert whole(store) == before


def test_a_missing_shard_is_found_at_once_and_its_videos_are_lost(store: Store) -> None:
    (store.directory / SHARD).unlink()
    (problem,) = found(store, read_data=False)
    assert (problem.path, problem.record, problem.found) == (SHARD, "3 videos (first: b)", "is missing")
    assert repair(store.directory).lost == ["b", "e", "c"]
    assert set(whole(store)) == {"a", "b", "c", "d", "e", "q"}


def test_most_shards_missing_is_rather_a_disk_that_is_not_mounted(store: Store) -> None:
    fill(store, ok("x", 9))
    names = ("00000001.h5", "00000002.h5")
    for name in names:
        (store.directory / "shards" / name).rename(store.directory / name)
    with pytest.raises(
        SafetyStopError, match=r"2 of 3 shards are missing \(first: shards/00000001\.h5\): is their disk"
    ):
        repair(store.directory)
    for name in names:
        (store.directory / name).rename(store.directory / "shards" / name)
    assert found(store) == []
    for name in names:
        (store.directory / "shards" / name).unlink()
    assert repair(store.directory, accept_loss=True).lost == ["b", "e", "c", "d", "a"]


def test_a_file_that_may_not_be_read_is_no_damage_to_take_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:  # the tests may run as root, whom nothing stops
        if path.name == "00000001.h5":
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *arguments, **options)

    before = whole(store)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        (problem,) = found(store)
        assert (problem.path, problem.found, problem.remedy) == (SHARD, "may not be read", "allow it, and look again")
        with pytest.raises(NotWritableError, match="nothing was changed: check its permissions"):
            repair(store.directory)
    assert whole(store) == before


def test_of_a_short_shard_the_rows_that_are_there_are_kept(store: Store) -> None:
    os.truncate(store.directory / SHARD, place_of(store, "pooled", 2))
    (problem,) = found(store, read_data=False)
    assert "bytes," in problem.found
    report = repair(store.directory)
    assert (report.lost, report.num_kept) == (["c"], 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["index.faiss", "ids.npy", "manifest.json"])
def test_a_flipped_byte_of_an_index_drops_that_generation_only(store: Store, name: str) -> None:
    publish(store)
    before = whole(store)
    path = store.directory / "index" / "00000002" / name
    flip(path, path.stat().st_size // 2)
    (problem,) = found(store)
    assert (problem.part, problem.path) == ("index", f"index/00000002/{name}")
    assert problem.record == "generation 2 (5 vectors)"
    report = repair(store.directory)
    assert report.dropped_generations == [2]
    assert not path.parent.exists()
    assert whole(store) == before
    with store.snapshot() as snapshot:
        assert [generation.id for generation in snapshot.generations()] == [1]


def test_a_damaged_catalog_is_named_to_the_byte_and_put_back(store: Store) -> None:
    before = whole(store)
    content = (store.directory / "catalog.sqlite").read_bytes()
    flip(store.directory / "catalog.sqlite", 5000)
    report = verify(store.directory)
    assert [(problem.path, problem.record) for problem in report.problems] == [
        ("catalog.sqlite", "byte 5000 in block 0 (bytes 0 to 65535)")
    ]
    assert "not looked at" in report.notes[0]
    with pytest.raises(DamageError, match="tbpipe repair"):
        fill(store, bad("z"))
    with store.snapshot(), pytest.raises(StoreLockedError, match="being read"):
        repair(store.directory)
    assert repair(store.directory).restored == ["catalog.sqlite"]
    assert (store.directory / "catalog.sqlite").read_bytes() == content
    assert whole(store) == before


def test_a_damaged_seal_is_made_again(store: Store) -> None:
    content = (store.directory / "catalog.seal").read_bytes()
    flip(store.directory / "catalog.seal", 100)
    flip(store.directory / SHARD, place_of(store, "tokens", 1))
    seal, shard = found(store)
    assert (seal.part, seal.path, seal.found) == ("seal", "catalog.seal", "its first header is damaged")
    assert shard.part == "shard"
    report = repair(store.directory)
    assert (report.restored, report.lost) == (["catalog.seal"], ["b", "e"])
    assert (store.directory / "catalog.seal").read_bytes() != content
    assert found(store) == []


def test_damage_without_a_seal_is_found_and_only_a_copy_helps(store: Store) -> None:
    (store.directory / "catalog.seal").unlink()
    catalog = store.directory / "catalog.sqlite"
    content = bytearray(catalog.read_bytes())
    content[4096:8192] = bytes(4096)
    catalog.write_bytes(content)
    report = verify(store.directory)
    assert report.problems[0].part == "catalog"
    assert "not sealed" in report.notes[0]
    with pytest.raises(DamageError, match="restore it from a copy"):
        repair(store.directory)
    assert not (store.directory / "catalog.seal").exists()  # a seal would vouch for the damage


def test_a_store_of_an_older_tbpipe_is_whole_and_the_next_writer_seals_it(store: Store) -> None:
    before = whole(store)
    rewritten(store)
    report = verify(store.directory, read_data=True)
    assert report.problems == []
    assert "the next seals it" in report.notes[0]
    assert repair(store.directory) == RepairReport()
    assert whole(store) == before
    assert verify(store.directory).notes == []


def test_a_writer_that_changes_nothing_leaves_the_seal_alone(store: Store) -> None:
    seal = store.directory / "catalog.seal"
    inode = seal.stat().st_ino
    with store.writer():
        assert seal.exists()
    assert seal.stat().st_ino == inode
    with store.writer() as writer:
        writer.commit([bad("z")])
        assert not seal.exists()
        assert "a writer is at work" in verify(store.directory).notes[0]
    assert seal.exists()
    assert verify(store.directory).notes == ["the index is older than the store: 'tbpipe index' brings it up to date"]


def test_what_the_catalog_does_not_name_is_noted_and_is_no_problem(store: Store) -> None:
    (store.directory / "shards" / "00000077.h5").write_bytes(b"x")
    report = verify(store.directory)
    assert report.problems == []
    assert "1 files that the catalog does not name (first: shards/00000077.h5)" in report.notes[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [("frames = 3", "frames = 4"), ("[store]", "[stare]"), ("format_version = 1", "format_version = 3"), ("= ", "")],
)
def test_a_damaged_settings_file_is_written_anew_and_the_rest_is_looked_at(store: Store, old: str, new: str) -> None:
    before = whole(store)
    path = store.directory / "tbpipe.toml"
    path.write_text(path.read_text() + "\n[refresh]\nsources = ['/videos']\n")
    right = path.read_text()
    path.write_text(right.replace(old, new, 1))
    flip(store.directory / "catalog.seal", 100)
    assert [(problem.part, problem.path) for problem in found(store)] == [
        ("settings", "tbpipe.toml"),
        ("seal", "catalog.seal"),
    ]
    assert repair(store.directory).restored[0].startswith("tbpipe.toml, the old file is tbpipe.toml.damaged")
    assert whole(Store.open(store.directory)) == before
    assert Store.open(store.directory).settings == store.settings
    assert ("sources" in path.read_text()) == (old != "= ")  # of a file that is no TOML nothing else can be told
    assert (store.directory / "tbpipe.toml.damaged").read_text() == right.replace(old, new, 1)


def test_a_lost_settings_file_is_written_anew(store: Store) -> None:
    path = store.directory / "tbpipe.toml"
    right = path.read_text()
    path.unlink()
    assert [problem.path for problem in found(store)] == ["tbpipe.toml"]
    repair(store.directory)
    assert path.read_text() == right


def test_a_store_of_another_format_is_refused_with_what_to_do(store: Store) -> None:
    path = store.directory / "tbpipe.toml"
    path.write_text(path.read_text().replace("format_version = 1", "format_version = 2"))
    (store.directory / "catalog.seal").unlink()  # that would tell that it is damage
    for act in (verify, repair):
        with pytest.raises(StoreError, match="store format 2, this tbpipe reads format 1; use the tbpipe that made it"):
            act(store.directory)


def test_damaged_prepared_files_are_named_and_removed(store: Store) -> None:
    about = PreparedAbout("method", "ab" * 32, store.fingerprint, "", "", "cpu")
    with store.snapshot() as snapshot, snapshot.prepared_writer(about) as writer:
        for shard in snapshot.shards():
            with writer.file(shard) as file:
                file.put([0, 1], {"field": np.arange(6, dtype=np.float32).reshape(2, 3)}, {})
    assert found(store) == []
    folder = store.directory / "prepared" / f"method-{'ab' * 8}"
    size = (folder / "00000001.safetensors").stat().st_size
    for place, record in ((4096 + 12, "rows 1"), (20, "shard 1"), (size - 40, "rows 0")):
        flip(folder / "00000001.safetensors", place)
        (problem,) = found(store)
        assert (problem.part, problem.path) == ("prepared", f"prepared/{folder.name}/00000001.safetensors")
        assert problem.record == record
        flip(folder / "00000001.safetensors", place)
    flip(folder / "00000001.safetensors", 20)
    assert repair(store.directory).removed == [f"prepared/{folder.name}/00000001.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == ["00000002.safetensors", "about.json"]
    assert found(store) == []
    (folder / "about.json").write_text("{")
    (problem,) = found(store)
    assert (problem.path, problem.record) == (f"prepared/{folder.name}", "about.json")


@pytest.mark.slow
def test_verify_beside_a_writer_finds_nothing_wrong(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", SETTINGS)
    fill(store, ok("a", 1))
    is_done = threading.Event()

    def write() -> None:
        number = 2
        while not is_done.is_set():
            fill(store, ok(f"v{number}", number), ok("a", number + 1))
            publish(store)
            compact(store, shard_bytes=10_000)
            number += 1

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(write)
        try:
            reports = [verify(store.directory, read_data=True) for _ in range(40)]
        finally:
            is_done.set()
        writing.result()
    assert [report.problems for report in reports] == [[]] * 40
    assert len({report.num_videos for report in reports}) > 3


def test_there_must_be_a_store(tmp_path: Path) -> None:
    for act in (verify, repair):
        with pytest.raises(StoreMissingError):
            act(tmp_path)


def test_int8_stores_are_repaired_alike(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", INT8_SETTINGS)
    fill(store, ok("a", 1, INT8_SETTINGS), ok("b", 2, INT8_SETTINGS))
    before = whole(store)
    flip(store.directory / SHARD, place_of(store, "token_scales", 1))
    assert repair(store.directory).lost == ["b"]
    fill(store, ok("b", 2, INT8_SETTINGS))
    assert whole(store) == before


def test_large_rows_are_told_apart_too(tmp_path: Path) -> None:
    """HDF5 puts large datasets at whole pages and small ones between them: not in the order of the checksums."""
    settings = replace(SETTINGS, model=replace(SETTINGS.model, embed_dim=128), sampling=SamplingSettings("uniform", 12))
    store = Store.create(tmp_path / "store", settings)
    fill(store, *[ok(str(number), number, settings) for number in range(9)])
    before = whole(store)
    for name in ("tokens", "frame_mask", "pooled"):
        number = shard_number(store)
        flip(store.directory / "shards" / f"{number:08d}.h5", place_of(store, name, 4, number))
        (problem,) = found(store)
        assert "in row 4" in problem.record
        (lost,) = repair(store.directory).lost
        fill(store, ok(lost, int(lost), settings))
        assert whole(store) == before


def shard_number(store: Store) -> int:
    """The shard that has the most rows."""
    with store.snapshot() as snapshot:
        return max(snapshot.shards(), key=lambda shard: shard.num_rows).id


def test_a_reader_keeps_what_repair_replaces(store: Store) -> None:
    def tokens(snapshot: Snapshot) -> bytes:
        return snapshot.read_tokens([3]).tokens.tobytes()

    with store.snapshot() as snapshot:
        shutil.copy(store.directory / SHARD, store.directory / "copy")
        flip(store.directory / SHARD, place_of(store, "tokens", 1))
        repair(store.directory)
        assert (store.directory / SHARD).exists()
        assert tokens(snapshot) == tokens(snapshot)
    with store.writer():
        pass
    assert not (store.directory / SHARD).exists()


def interrupted(*arguments: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize(
    "step", ["index_store.catalog.Catalog.retire_shard", "index_store.writer._require_same_rows", "os.replace"]
)
def test_an_interrupted_repair_can_be_done_again(store: Store, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    flip(store.directory / SHARD, place_of(store, "tokens", 1))
    with monkeypatch.context() as patch:
        patch.setattr(step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            repair(store.directory)
    assert len(found(store)) == 1
    assert repair(store.directory).lost == ["b", "e"]
