"""What a refresh costs beside a bare ``scandir`` and ``stat`` of the same tree, from 10^4 to 10^6 sparse files.

Every run is a process of its own, so its CPU seconds hold the start of Python, and its peak memory is its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.corpus import features_of, settings
from benchmarks.measure import Ratio
from index_store.records import VideoFile, VideoOutcome
from index_store.store import Store
from stages.index import build_index

SIZES = (10_000, 100_000, 1_000_000)
NO_CHANGE_LIMIT = 2.0
MEMORY_LIMIT_BYTES = 600e6
GROWTH_LIMIT = 1.25
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


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one process."""

    cpu_seconds: float
    peak_bytes: int
    output: str

    def __lt__(self, other: Cost) -> bool:
        """By CPU seconds."""
        return self.cpu_seconds < other.cpu_seconds


def run(sizes: tuple[int, ...] = SIZES) -> Iterator[Ratio]:
    """Measure each size, the claims at the largest."""
    before: tuple[float, float] | None = None
    with tempfile.TemporaryDirectory() as name:
        for size in sizes:
            folder = Path(name) / str(size)
            store = make_corpus(folder, size)
            bare, idle = _least(folder / "videos", store)
            label = f"{size:,} files"
            seconds = f"{idle.cpu_seconds:.2f} s beside {bare.cpu_seconds:.2f} s, CPU"
            detail = f"{seconds}; peak {idle.peak_bytes / 1e6:.0f} MB"
            if size == sizes[-1]:
                ratio = idle.cpu_seconds / bare.cpu_seconds
                yield Ratio(f"no-change refresh of {label} / scandir + stat", ratio, NO_CHANGE_LIMIT, True, detail)
                yield Ratio("peak memory, MB", idle.peak_bytes / 1e6, MEMORY_LIMIT_BYTES / 1e6, True, label)
            else:
                print(f"     no-change refresh of {label}: {detail}", file=sys.stderr)
            if before is not None:
                ...
            before = (idle.cpu_seconds, bare.cpu_seconds)


def make_corpus(folder: Path, num_files: int) -> Store:
    """A tree of sparse files, and a store that knows them all: one has features, the others share them."""
    videos = folder / "videos"
    store = Store.create(folder / "store", settings(frames=1, tokens=1, width=8))
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
    key = f"{number // _PER_FOLDER:04d}/clip_{number % _PER_FOLDER:04d}.mp4"
    path = videos / key
    if number % _PER_FOLDER == 0:
        path.parent.mkdir(parents=True)
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.truncate(descriptor, 1000 + number)
    status = os.fstat(descriptor)
    os.close(descriptor)
    return VideoFile(key, path, status.st_size, status.st_mtime_ns, status.st_ino)


def _least(videos: Path, store: Store) -> tuple[Cost, Cost]:
    """The bare scan and the refresh, taking turns."""
    scan = [sys.executable, "-c", _BARE_SCAN, str(videos)]
    refresh = [sys.executable, "-m", "pipeline", "refresh", "--store", str(store.directory), "--source", str(videos)]
    bare, idle = [], []
    for _ in range(_REPETITIONS):
        bare.append(_cost(scan))
        idle.append(_cost([*refresh, "--json", "--quiet"]))
        assert json.loads(idle[-1].output)["new"] == []
    return min(bare), min(idle)


def _cost(command: list[str]) -> Cost:
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=compiled)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit, output)
