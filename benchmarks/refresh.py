"""What a refresh costs beside a bare ``scandir`` and ``stat`` of the same tree, from 10^4 to 10^6 sparse files.

Every run is a process of its own, so its CPU seconds hold the start of Python, and its peak memory is its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.corpus import features_of, settings
from benchmarks.measure import Ratio
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
_TBPIPE = (sys.executable, "-m", "pipeline")

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
_LAUNCHER = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A process counts the memory of the one that it was forked from: a small one starts it."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one process."""

    cpu_seconds: float
    peak_bytes: int
    output: str

    def __lt__(self, other: Cost) -> bool:
        """By CPU seconds."""
        return self.cpu_seconds < other.cpu_seconds


def run(sizes: tuple[int, ...] = SIZES, num_changed: int = NUM_CHANGED) -> Iterator[Ratio]:
    """Measure each size, and what a change of 1 % costs."""
    with tempfile.TemporaryDirectory() as name:
        costs = [_unchanged(Path(name) / str(size), size) for size in sizes]
        largest = f"{sizes[-1]:,} files"
        bare, idle = costs[-1]
        ratio = idle.cpu_seconds / bare.cpu_seconds
        yield Ratio(f"no-change refresh of {largest} / scandir + stat", ratio, LIMIT, True, _told(bare, idle))
        yield Ratio("its peak memory, MB", idle.peak_bytes / 1e6, MEMORY_LIMIT_BYTES / 1e6, True, largest)
        first_bare, first_idle = costs[0]
        growth = (idle.cpu_seconds - first_idle.cpu_seconds) / (bare.cpu_seconds - first_bare.cpu_seconds)
        yield Ratio(f"its growth from {sizes[0]:,} files / that of the scan", growth, LIMIT, True, _told(*costs[0]))
        yield _some_changed(Path(name) / "changed", num_changed)


def _told(bare: Cost, idle: Cost) -> str:
    seconds = f"{idle.cpu_seconds:.2f} s beside {bare.cpu_seconds:.2f} s of CPU"
    return f"{seconds}, peak {idle.peak_bytes / 1e6:.0f} MB"


def _unchanged(folder: Path, num_files: int) -> tuple[Cost, Cost]:
    """Of a bare scan of that many files, and of a refresh."""
    store = make_corpus(folder, num_files, settings(frames=1, tokens=1, width=8))
    costs = _least(folder / "videos", store)
    print(f"     {num_files:,} files: {_told(*costs)}", file=sys.stderr)
    shutil.rmtree(folder)
    return costs


def _some_changed(folder: Path, num_changed: int) -> Ratio:
    """Of a hundred times as many files, some become other videos."""
    render_corpus(folder / "rendered", seed=3, num_videos=12, video_format=VideoFormat(seconds=1.6))
    rendered = [path.read_bytes() for path in sorted((folder / "rendered" / "videos").iterdir())]
    clips = [rendered[number % 12] + number.to_bytes(8, "big") for number in range(num_changed)]
    (folder / "clips").mkdir()
    for number, clip in enumerate(clips):
        (folder / "clips" / f"{number:06d}.mp4").write_bytes(clip)
    extract = [*_TBPIPE, "extract", str(folder / "clips"), "--store", str(folder / "alone"), "--model", "tbpipe-small"]
    alone = _cost([*extract, "--device", "cpu"])
    store = make_corpus(folder, 100 * num_changed, Store.open(folder / "alone").settings)
    refresh = _refresh(folder / "videos", store)
    idle = min(_cost(refresh) for _ in range(_REPETITIONS))
    for number, clip in enumerate(clips):
        (folder / "videos" / _key(100 * number)).write_bytes(clip)
    changed = _cost(refresh)
    assert len(json.loads(changed.output)["changed"]) == num_changed
    ratio = changed.cpu_seconds / (alone.cpu_seconds + idle.cpu_seconds)
    seconds = f"{changed.cpu_seconds:.1f} s; {alone.cpu_seconds:.1f} s and {idle.cpu_seconds:.1f} s of CPU"
    detail = f"{seconds}; peak {changed.peak_bytes / 1e6:.0f} MB; {alone.peak_bytes / 1e6:.0f} MB"
    name = f"refresh with 1 % of {100 * num_changed:,} changed / (extracting these + refresh without changes)"
    return Ratio(name, ratio, CHANGE_LIMIT, True, detail)


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
    return [*_TBPIPE, "refresh", *sources, "--device", "cpu", "--json", "--quiet"]


def _least(videos: Path, store: Store) -> tuple[Cost, Cost]:
    """The bare scan and the refresh, taking turns."""
    scan = [sys.executable, "-c", _BARE_SCAN, str(videos)]
    bare, idle = [], []
    for _ in range(_REPETITIONS):
        bare.append(_cost(scan))
        idle.append(_cost(_refresh(videos, store)))
        assert json.loads(idle[-1].output)["new"] == []
    return min(bare), min(idle)


def _cost(command: Sequence[str]) -> Cost:
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    launched = [sys.executable, "-c", _LAUNCHER, *command]
    done = subprocess.run(launched, capture_output=True, text=True, env=compiled, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    *output, usage = done.stdout.splitlines()
    cpu_seconds, peak = json.loads(usage)
    return Cost(cpu_seconds, peak * (1 if sys.platform == "darwin" else 1024), "\n".join(output))
