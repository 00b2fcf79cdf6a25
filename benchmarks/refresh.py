"""What a refresh costs beside a bare ``scandir`` and ``stat`` of the same tree, from 10^4 to 10^6 sparse files.

Every run is a process of its own, so its CPU seconds hold the start of Python, and its peak memory is its own.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.corpus import features_of
from benchmarks.measure import Ratio
from benchmarks.process import TBPIPE, Cost, cost_of
from index_store.records import VideoFile, VideoOutcome
from index_store.settings import StoreSettings
from index_store.store import Store
from stages.index import build_index
from stages.synthetic.render import VideoFormat, render_corpus

SIZES = (10_000, 100_000, 1_000_000)
NUM_CHANGED = 100
LIMIT = 2.0
CHANGE_LIMIT = 1.15
MEMORY_LIMIT_BYTES = 600e6
_PER_FOLDER = 1000
_PER_COMMIT = 20_000
_REPETITIONS = 3

_BARE_SCAN = """
import os, sys
pending = [sys.argv[1]]
while pending:
    with os.scandir(pending.pop()) as entries:
        for entry in entries:
            if entry.is_dir():
                pending.append(entry.path)
            else:
                entry.stat()
"""


def run(sizes: tuple[int, ...] = SIZES, num_changed: int = NUM_CHANGED) -> Iterator[Ratio]:
    """Measure each size, and what a change of 1 % costs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = _clips(folder, num_changed)
        extract = [*TBPIPE, "extract", str(folder / "clips"), "--store", str(folder / "alone")]
        alone = cost_of([*extract, "--model", "tbpipe-small", "--device", "cpu"])
        shape = Store.open(folder / "alone").settings
        costs = []
        for size in sizes:
            store = make_corpus(folder / str(size), size, shape)
            costs.append(_least(folder / str(size) / "videos", store))
            print(f"     {size:,} files: {_told(*costs[-1])}", file=sys.stderr)
            if size != sizes[-1]:
                shutil.rmtree(folder / str(size))
        bare, idle = costs[-1]
        largest = f"{sizes[-1]:,} files"
        ratio = idle.cpu_seconds / bare.cpu_seconds
        yield Ratio(f"no-change refresh of {largest} / scandir + stat", ratio, LIMIT, True, _told(bare, idle))
        yield Ratio("its peak memory, MB", idle.peak_bytes / 1e6, MEMORY_LIMIT_BYTES / 1e6, True, largest)
        first_bare, first_idle = costs[0]
        growth = (idle.cpu_seconds - first_idle.cpu_seconds) / (bare.cpu_seconds - first_bare.cpu_seconds)
        yield Ratio(f"its growth from {sizes[0]:,} files / that of the scan", growth, LIMIT, True, _told(*costs[0]))
        changed = _after_changes(folder / str(sizes[-1]), store, clips, sizes[-1] // 100)
        more = (changed.peak_bytes - alone.peak_bytes) / 1e6
        name = f"peak memory of a refresh with 1 % of {largest} changed - that of extracting {num_changed}, MB"
        yield Ratio(name, more, MEMORY_LIMIT_BYTES / 1e6, True, f"{_megabytes(changed)}, {_megabytes(alone)}")
        shutil.rmtree(folder / str(sizes[-1]))
        yield _some_changed(folder / "changed", clips, shape, alone)


def _told(bare: Cost, idle: Cost) -> str:
    return f"{idle.cpu_seconds:.2f} s beside {bare.cpu_seconds:.2f} s of CPU, peak {_megabytes(idle)}"


def _megabytes(cost: Cost) -> str:
    return f"{cost.peak_bytes / 1e6:.0f} MB"


def _clips(folder: Path, number: int) -> list[bytes]:
    """So many videos of different content, as files in ``clips`` and as bytes."""
    render_corpus(folder / "rendered", seed=3, num_videos=12, video_format=VideoFormat(seconds=1.6))
    rendered = [path.read_bytes() for path in sorted((folder / "rendered" / "videos").iterdir())]
    clips = [rendered[place % 12] + place.to_bytes(8, "big") for place in range(number)]
    (folder / "clips").mkdir()
    for place, clip in enumerate(clips):
        (folder / "clips" / f"{place:06d}.mp4").write_bytes(clip)
    return clips


def _after_changes(folder: Path, store: Store, clips: Sequence[bytes], num_changed: int) -> Cost:
    """Of a refresh after so many files, one of a hundred, have become one of the clips."""
    for number in range(num_changed):
        (folder / "videos" / _key(100 * number)).write_bytes(clips[number % len(clips)])
    cost = cost_of(_refresh(folder / "videos", store))
    assert len(json.loads(cost.output)["changed"]) == num_changed
    return cost


def _some_changed(folder: Path, clips: Sequence[bytes], shape: StoreSettings, alone: Cost) -> Ratio:
    """Of a hundred times as many files, some become other videos, which cost ``alone`` to extract."""
    store = make_corpus(folder, 100 * len(clips), shape)
    idle = min(cost_of(_refresh(folder / "videos", store)) for _ in range(_REPETITIONS))
    changed = _after_changes(folder, store, clips, len(clips))
    ratio = changed.cpu_seconds / (alone.cpu_seconds + idle.cpu_seconds)
    seconds = f"{changed.cpu_seconds:.1f} s; {alone.cpu_seconds:.1f} s and {idle.cpu_seconds:.1f} s of CPU"
    name = f"refresh with 1 % of {100 * len(clips):,} changed / (extracting these + refresh without changes)"
    return Ratio(name, ratio, CHANGE_LIMIT, True, seconds)


def make_corpus(folder: Path, num_files: int, shape: StoreSettings) -> Store:
    """A tree of sparse files, and a store that knows them all: one has features, the others share them."""
    videos = folder / "videos"
    store = Store.create(folder / "store", shape)
    (features,) = features_of(store.settings, 1)
    with store.writer() as writer:
        outcomes: list[VideoOutcome] = []
        for number in range(num_files):
            file = _sparse_file(videos, number)
            own = features if number == 0 else None
            shared = "" if number == 0 else "f" * 64
            outcomes.append(VideoOutcome(file, "ok", "f" * 64, 1.0, "none", features=own, same_content_as=shared))
            if len(outcomes) == _PER_COMMIT or number + 1 == num_files:
                writer.commit(outcomes)
                outcomes = []
    build_index(store)
    return store


def _sparse_file(videos: Path, number: int) -> VideoFile:
    key = _key(number)
    path = videos / key
    if number % _PER_FOLDER == 0:
        path.parent.mkdir(parents=True)
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.truncate(descriptor, 1000 + number)
    status = os.fstat(descriptor)
    os.close(descriptor)
    return VideoFile(key, path, status.st_size, status.st_mtime_ns, status.st_ino)


def _key(number: int) -> str:
    return f"{number // _PER_FOLDER:04d}/clip_{number % _PER_FOLDER:04d}.mp4"


def _refresh(videos: Path, store: Store) -> list[str]:
    sources = ["--store", str(store.directory), "--source", str(videos)]
    return [*TBPIPE, "refresh", *sources, "--device", "cpu", "--json", "--quiet"]


def _least(videos: Path, store: Store) -> tuple[Cost, Cost]:
    """The bare scan and the refresh, taking turns."""
    scan = [sys.executable, "-c", _BARE_SCAN, str(videos)]
    bare, idle = [], []
    for _ in range(_REPETITIONS):
        bare.append(cost_of(scan))
        idle.append(cost_of(_refresh(videos, store)))
        assert json.loads(idle[-1].output)["new"] == []
    return min(bare), min(idle)
