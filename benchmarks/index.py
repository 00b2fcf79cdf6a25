"""The next index generation from the one before: one sequential copy of the file, and what changed."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.corpus import random_store, settings
from benchmarks.measure import Ratio, cpu_seconds
from index_store.index_files import INDEX_FILE
from index_store.records import VideoFile, VideoOutcome
from index_store.store import Store
from stages.index import IndexReport, build_index

NUM_VIDEOS, WIDTH = 50_000, 512
_BLOCK_BYTES = 1 << 22


def run(num_videos: int = NUM_VIDEOS) -> Iterator[Ratio]:
    """CPU seconds after 0.01 and 1 % of the videos have changed."""
    even = (2 * np.random.default_rng(0).permutation(num_videos // 2)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(Path(folder) / "store", num_videos, settings(1, 1, WIDTH))
        build_index(store)
        for share in (0.0001, 0.01):
            changed = [even.pop() for _ in range(max(1, int(share * num_videos)))]
            _change(store, changed)
            before = cpu_seconds()
            report = build_index(store)
            updated = cpu_seconds() - before
            assert (report.was_updated, report.num_replaced) == (True, len(changed))
            before = cpu_seconds()
            _copy(store, report, Path(folder) / "copy")
            copied = cpu_seconds() - before
            before = cpu_seconds()
            build_index(store, rebuild=True)
            anew = cpu_seconds() - before
            detail = f"{len(changed)} of {num_videos} x {WIDTH} changed; built anew: {anew / copied:.2f}"
            yield Ratio(
                f"index updated, {share:.2%} changed, CPU seconds / reading, hashing and writing the file",
                updated / copied,
                1.5,
                at_most=True,
                detail=detail,
            )


def _change(store: Store, numbers: list[int]) -> None:
    """Give each of these videos, of even number, the content of the next one."""
    files = [VideoFile(f"{number:07d}.mp4", store.directory / f"{number:07d}.mp4", 1, 1, 1) for number in numbers]
    with store.writer() as writer, store.snapshot() as snapshot:
        # ids begin with 1
        neighbours = snapshot.by_ids([number + 2 for number in numbers])
        pairs = zip(files, neighbours, strict=True)
        writer.commit([VideoOutcome(file, "ok", same_content_as=video.content_hash) for file, video in pairs])


def _copy(store: Store, report: IndexReport, target: Path) -> None:
    """What cannot be done without: every byte is checked, written, and summed up again."""
    digests = hashlib.sha256(), hashlib.sha256()
    source = store.directory / "index" / report.generation / INDEX_FILE
    with source.open("rb") as read, target.open("wb") as written:
        while block := read.read(_BLOCK_BYTES):
            for digest in digests:
                digest.update(block)
            written.write(block)
