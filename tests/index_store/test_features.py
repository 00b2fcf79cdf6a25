from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import index_store.features as module
from index_store.catalog import ShardRecord
from index_store.errors import DamageError
from index_store.features import FeatureReader, dataset_specs, plan_reads, record_checksum, write_shard
from index_store.layout import Layout, shard_name
from index_store.records import ShapeError, VideoFeatures
from index_store.settings import StoreSettings
from tests.index_store.samples import INT8_SETTINGS, PLACED_SETTINGS, SETTINGS, features

ROOT = Path(__file__).parents[2]


def test_any_hdf5_program_reads_a_shard(tmp_path: Path) -> None:
    for settings in (SETTINGS, INT8_SETTINGS, PLACED_SETTINGS):
        videos = [features(seed, settings) for seed in range(4)]
        path = tmp_path / "shard.h5"
        info = write_shard(path, settings, videos)
        with h5py.File(path) as file:
            assert set(file) == {spec.name for spec in dataset_specs(settings)}
            for name, dataset in file.items():
                assert dataset.chunks is None
                assert dataset.compression is None
                expected = np.stack([getattr(video, name) for video in videos])
                assert dataset.dtype == expected.dtype
                np.testing.assert_array_equal(dataset[...], expected)
            assert file.attrs["format_version"] == 1
            assert file.attrs["fingerprint"].decode() == settings.fingerprint
            assert file.attrs["settings_json"].decode() == settings.canonical_json
        assert info.size_bytes == path.stat().st_size
        assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_offsets_lead_to_the_rows_without_hdf5(tmp_path: Path) -> None:
    videos = [features(seed) for seed in range(3)]
    info = write_shard(tmp_path / "shard.h5", SETTINGS, videos)
    content = (tmp_path / "shard.h5").read_bytes()
    for dataset in info.datasets:
        for row, video in enumerate(videos):
            start = dataset.offset + row * dataset.row_bytes
            assert content[start : start + dataset.row_bytes] == getattr(video, dataset.name).tobytes()


def test_checksums_are_over_the_documented_order(tmp_path: Path) -> None:
    video = features(1, PLACED_SETTINGS)
    info = write_shard(tmp_path / "shard.h5", PLACED_SETTINGS, [video])
    names = ("tokens", "token_scales", "token_places", "frame_mask", "timestamps_seconds", "frame_embeddings", "pooled")
    joined = b"".join(getattr(video, name).tobytes() for name in names)
    assert info.checksums == (hashlib.blake2b(joined, digest_size=16).hexdigest(),)
    assert record_checksum([getattr(video, name) for name in names]) == info.checksums[0]


@pytest.mark.slow
def test_the_same_features_give_the_same_bytes_in_another_process_at_another_time(tmp_path: Path) -> None:
    here = write_shard(tmp_path / "here.h5", SETTINGS, [features(seed) for seed in range(3)])
    code = (
        "import sys; from pathlib import Path; from index_store.features import write_shard\n"
        "from tests.index_store.samples import SETTINGS, features\n"
        "write_shard(Path(sys.argv[1]), SETTINGS, [features(seed) for seed in range(3)])"
    )
    time.sleep(1.1)  # HDF5 keeps times in whole seconds
    dirty_memory = {**os.environ, "MALLOC_PERTURB_": "165"}  # what is not initialised would show
    command = [sys.executable, "-c", code, str(tmp_path / "there.h5")]
    subprocess.run(command, cwd=ROOT, env=dirty_memory, check=True)
    assert (tmp_path / "there.h5").read_bytes() == (tmp_path / "here.h5").read_bytes()
    assert here.sha256 == hashlib.sha256((tmp_path / "there.h5").read_bytes()).hexdigest()


def test_features_of_other_settings_are_refused(tmp_path: Path) -> None:
    for video in (
        features(0, INT8_SETTINGS),
        features(0, replace(SETTINGS, tokens=replace(SETTINGS.tokens, keep="1"))),
    ):
        with pytest.raises(ShapeError, match="tokens of video 1"):
            write_shard(tmp_path / "shard.h5", SETTINGS, [features(0), video])
    with pytest.raises(ShapeError, match="token_places of video 0 is nothing"):
        write_shard(tmp_path / "shard.h5", PLACED_SETTINGS, [features(0, INT8_SETTINGS)])


def test_the_outline_reads_back_as_it_was_written() -> None:
    outline = module._Outline()
    outline.seek(5)
    outline.write(b"abc")
    outline.seek(-1, os.SEEK_CUR)
    outline.write(b"XY")
    outline.truncate(12)
    outline.seek(0)
    assert outline.read(12) == b"\0\0\0\0\0abXY\0\0\0"
    assert (outline.tell(), outline.seek(0, os.SEEK_END)) == (12, 12)


class Shards:
    """Shards on disk beside the arrays that went into them."""

    def __init__(self, directory: Path, num_shards: int, num_rows: int, settings: StoreSettings = SETTINGS) -> None:
        self.layout = Layout(directory)
        self.layout.shards_directory.mkdir()
        self.settings = settings
        self.videos: dict[tuple[int, int], VideoFeatures] = {}
        self.records: dict[int, ShardRecord] = {}
        for shard in range(1, num_shards + 1):
            videos = [features(100 * shard + row, settings) for row in range(num_rows)]
            self.videos.update({(shard, row): video for row, video in enumerate(videos)})
            info = write_shard(self.layout.shard_path(shard_name(shard)), settings, videos)
            self.records[shard] = info.record(shard, shard_name(shard), settings.fingerprint)

    def reader(self) -> FeatureReader:
        return FeatureReader(self.layout.shard_path, self.records.__getitem__)

    def expect(self, reader: FeatureReader, locations: list[tuple[int, int]]) -> None:
        plan = plan_reads(locations)
        for spec in dataset_specs(self.settings):
            out: Any = np.full((len(locations), *spec.row_shape), 1, dtype=spec.dtype)
            reader.read(plan, {spec.name: out})
            for place, location in enumerate(locations):
                np.testing.assert_array_equal(out[place], getattr(self.videos[location], spec.name))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return Shards(tmp_path_factory.mktemp("shards"), num_shards=3, num_rows=6)


LOCATIONS = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5)), max_size=20)


@given(locations=LOCATIONS)
def test_rows_come_back_in_the_order_asked_for(shards: Shards, locations: list[tuple[int, int]]) -> None:
    reader = shards.reader()
    shards.expect(reader, locations)
    reader.close()


@pytest.mark.slow
@given(locations=LOCATIONS, kept_bytes=st.sampled_from([0, 20, 150, 1000]), threaded=st.booleans())
def test_the_way_of_reading_does_not_matter(
    shards: Shards, locations: list[tuple[int, int]], kept_bytes: int, threaded: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_KEPT_BYTES", kept_bytes)
        patch.setattr(module, "_THREADED_BYTES", 0 if threaded else 1 << 40)
        patch.setattr(module, "_MAX_OPEN_SHARDS", 1)
        patch.setattr(module, "_ONLY_CACHED", 0)
        reader = shards.reader()
        shards.expect(reader, locations)
        reader.close()


def test_rows_that_are_not_in_memory_are_read_too(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int, int]] = []
    announce = module._OpenShard.announce

    def recorded(shard: Any, name: str, row: int, num_rows: int) -> None:
        asked.append((name, row, num_rows))
        announce(shard, name, row, num_rows)

    monkeypatch.setattr(module._OpenShard, "announce", recorded)
    monkeypatch.setattr(module, "_KEPT_BYTES", 0)
    monkeypatch.setattr(module, "_RUNS_ANNOUNCED", 3)
    monkeypatch.setattr(module, "_ONLY_CACHED", 1 << 30)  # an unknown flag: nothing can be read so
    reader = shards.reader()
    shards.expect(reader, [(1, row) for row in (4, 2, 0, 5)])
    reader.close()
    assert asked[:2] == [("tokens", 2, 1), ("tokens", 4, 1)]  # while row 0 is read; rows 4 and 5 are two runs


def test_every_row_is_read_once(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    preadv = os.preadv

    def counted(descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        done = preadv(descriptor, buffers, offset, flags)
        read.append(done)
        return done

    monkeypatch.setattr(os, "preadv", counted)
    reader = shards.reader()
    (tokens, *_) = dataset_specs(SETTINGS)
    out = np.empty((6, *tokens.row_shape), dtype=tokens.dtype)
    monkeypatch.setattr(module, "_KEPT_BYTES", 0)
    reader.read(plan_reads([(1, 2), (2, 0), (1, 2), (1, 2), (2, 1), (1, 5)]), {"tokens": out})
    reader.close()
    assert sum(read) == 4 * tokens.row_bytes


def test_neighbours_are_read_in_one_call() -> None:
    plan = plan_reads([(2, 0), (1, 3), (1, 4), (1, 5), (1, 2), (1, 4), (2, 1)])
    # (shard, row, place, rows): 3 to 5 lie together on disk and in the result; 2 precedes them only on disk
    assert plan.runs == [(1, 2, 4, 1), (1, 3, 1, 3), (2, 0, 0, 1), (2, 1, 6, 1)]
    assert plan.copies == [(2, 5)]


def test_rows_can_be_read_into_places_of_a_longer_result(tmp_path: Path) -> None:
    shards = Shards(tmp_path, 2, 6)
    reader = shards.reader()
    (tokens, *_) = dataset_specs(SETTINGS)
    plan = plan_reads([(1, 3), (1, 4), (2, 0), (1, 3)], [5, 6, 1, 8])
    assert plan.runs == [(1, 3, 5, 2), (2, 0, 1, 1)]
    apart, together = np.zeros((9, *tokens.row_shape), tokens.dtype), np.empty((3, *tokens.row_shape), tokens.dtype)
    reader.read(plan, {"tokens": apart})
    reader.read(plan_reads([(1, 3), (1, 4), (2, 0)]), {"tokens": together})
    reader.close()
    np.testing.assert_array_equal(apart[[5, 6, 1, 8]], together[[0, 1, 2, 0]])
    assert not apart[[0, 2, 3, 4, 7]].any()


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shards = Shards(tmp_path, 2, 2)
    shards.layout.shard_path(shard_name(2)).unlink()
    reader = shards.reader()
    with pytest.raises(DamageError, match=r"00000002\.h5 is missing; restore it"):
        shards.expect(reader, [(1, 0), (2, 0)])
    reader.close()


@pytest.mark.parametrize("change", [-1, 1])
def test_a_shard_of_another_length_is_named(tmp_path: Path, change: int) -> None:
    shards = Shards(tmp_path, 1, 2)
    path = shards.layout.shard_path(shard_name(1))
    size = path.stat().st_size
    os.truncate(path, size + change)
    reader = shards.reader()
    with pytest.raises(DamageError, match=f"00000001.h5 has {size + change} bytes, {size} were written"):
        shards.expect(reader, [(1, 0)])
    reader.close()


def test_a_shard_that_is_cut_while_it_is_open_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT_BYTES", 0)
    shards = Shards(tmp_path, 1, 2)
    reader = shards.reader()
    shards.expect(reader, [(1, 0)])
    (tokens,) = (dataset for dataset in shards.records[1].datasets if dataset.name == "tokens")
    end = tokens.offset + tokens.row_bytes + 10
    os.truncate(shards.layout.shard_path(shard_name(1)), end)
    with pytest.raises(DamageError, match=f"00000001.h5 ends at byte {end}, inside row 1"):
        shards.expect(reader, [(1, 1)])
    reader.close()


def test_no_more_shards_stay_open_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_OPEN_SHARDS", 2)
    shards = Shards(tmp_path, 5, 1)
    before = len(os.listdir("/proc/self/fd"))
    reader = shards.reader()
    shards.expect(reader, [(shard, 0) for shard in range(1, 6)])
    assert len(os.listdir("/proc/self/fd")) == before + 2
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before
