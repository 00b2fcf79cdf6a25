"""Random reads of whole videos: ``Snapshot.read_tokens`` against ``numpy.memmap`` on the same shard files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.corpus import random_store
from benchmarks.measure import Ratio, best_of

NUM_VIDEOS = 600
NUM_READ = 100
REPETITIONS = 15


def run(num_videos: int = NUM_VIDEOS, num_read: int = NUM_READ, repetitions: int = REPETITIONS) -> Iterator[Ratio]:
    """Read the same random videos both ways, from the page cache."""
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(Path(folder) / "store", num_videos)
        with store.snapshot() as snapshot:
            records = list(snapshot.videos())
            chosen = [records[place] for place in np.random.default_rng(1).choice(num_videos, num_read, replace=False)]
            ids = [record.id for record in chosen]
            ours = np.empty((num_read, *store.settings.token_shape), np.float16)
            theirs = np.empty_like(ours)
            maps = {}
            for shard in snapshot.shards():
                dataset = next(dataset for dataset in shard.datasets if dataset.name == "tokens")
                file = store.directory / "shards" / shard.name
                maps[shard.id] = np.memmap(file, np.float16, "r", dataset.offset, dataset.shape)

            def through_memmap() -> None:
                for place, record in enumerate(chosen):
                    theirs[place] = maps[record.shard][record.row]

            seconds, limit = best_of(repetitions, lambda: snapshot.read_tokens(ids, ours), through_memmap)
        np.testing.assert_array_equal(ours, theirs)
        rate = ours.nbytes / seconds / 1e9
        yield Ratio(
            "random reads, rate / memmap",
            limit / seconds,
            0.9,
            at_most=False,
            detail=f"{rate:.1f} GB/s, {num_read} of {num_videos} videos",
        )
