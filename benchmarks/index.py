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
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(Path(folder) / "store", num_videos, settings(1, 1, WIDTH))
        build_index(store)
        for share in (0.0001, 0.01):
            changed = rng.permutation(num_videos)[: max(1, int(share * num_videos))].tolist()
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
    """Give each of these videos the content of the next one that random_store made."""
    with store.writer() as writer, store.snapshot() as snapshot:
        keys = [f"{number:07d}.mp4" for number in numbers]
        videos = [snapshot.by_key(key) for key in keys]
        contents = [video.content_hash for video in videos if video is not None]
        files = [VideoFile(key, store.directory / key, 1, 1, 1) for key in keys]
        shifted = [*contents[1:], contents[0]]
        writer.commit(
            [VideoOutcome(file, "ok", same_content_as=content) for file, content in zip(files, shifted, strict=True)]
        )


def _copy(store: Store, report: IndexReport, target: Path) -> None:
    """What cannot be done without: every byte is checked, written, and summed up again."""
    digests = hashlib.sha256(), hashlib.sha256()
    source = store.directory / "index" / report.generation / INDEX_FILE
    with source.open("rb") as read, target.open("wb") as written:
        while block := read.read(_BLOCK_BYTES):
            for digest in digests:
                digest.update(block)
            written.write(block)
