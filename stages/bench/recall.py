"""Reading, index and broad view beside the bytes that they move and the products that they make."""

from __future__ import annotations

import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from index_store.layout import Layout
from index_store.snapshot import Snapshot
from index_store.store import Store
from index_store.vectors import VectorIndex, exact_neighbours
from stages.bench.machine import GIGA, HASHING, MEMORY, WRITING, announce, clock_of, drop, drops, matmul, read_exactly
from stages.bench.measure import Need, Stage, Yardstick

RAW_CACHED = "pread, page cache"
RAW_COLD = "pread, disk"
FAISS = "FAISS"

_MOST_BYTES = 128 << 20
"""That are read at once."""
_THREADS = 4
"""That read raw bytes from the disk at once."""


class Reading:
    """The same videos' tokens read by the store and by plain ``pread`` calls."""

    def __init__(self, store: Store, snapshot: Snapshot, ids: NDArray[np.int64], num_videos: int) -> None:
        """ids: of videos that have features, of which up to ``num_videos`` are drawn, copies of one only once."""
        self._snapshot = snapshot
        settings = snapshot.settings
        self.row_bytes = math.prod(settings.token_shape) * np.dtype(settings.tokens.dtype).itemsize
        drawn = np.random.default_rng(1).permutation(ids)[: min(num_videos, max(1, _MOST_BYTES // self.row_bytes))]
        distinct = dict(zip(snapshot.locations(drawn.tolist()), drawn.tolist(), strict=True))
        self.ids = list(distinct.values())
        self.ours = np.empty((len(self.ids), *settings.token_shape), settings.tokens.dtype)
        """Where the store reads to."""
        self.raw = np.empty((len(self.ids), self.row_bytes), np.uint8)
        """Where plain calls read to, in the order of the disk."""
        self._descriptors: dict[int, int] = {}
        self._reads = self._planned(Layout(store.directory))
        self._threads = ThreadPoolExecutor(_THREADS, "tbpipe-bench-read")

    def _planned(self, layout: Layout) -> list[tuple[int, int]]:
        """(descriptor, offset) of every row, in the order of the disk."""
        shards = {shard.id: shard for shard in self._snapshot.shards()}
        reads = []
        for shard_id, row in sorted(self._snapshot.locations(self.ids)):
            shard = shards[shard_id]
            if shard_id not in self._descriptors:
                self._descriptors[shard_id] = os.open(layout.shard_path(shard.name), os.O_RDONLY)
            dataset = next(dataset for dataset in shard.datasets if dataset.name == "tokens")
            reads.append((self._descriptors[shard_id], dataset.offset + row * dataset.row_bytes))
        return reads

    def close(self) -> None:
        """Close the files."""
        self._threads.shutdown()
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    @property
    def can_be_dropped(self) -> bool:
        """Whether the page cache can be emptied of the shards."""
        self._read_raw(0)
        self._drop()
        return drops(self._reads[0][0])

    def yardsticks(self) -> list[Yardstick]:
        """Plain system calls for the same bytes: by CPU seconds from memory, by the wall from the disk."""
        gigabytes = len(self._reads) * self.row_bytes / GIGA
        return [
            Yardstick(RAW_CACHED, "GB", gigabytes, self._read_all_raw),
            Yardstick(RAW_COLD, "GB", gigabytes, self._read_raw_threaded, "wall", self._drop),
        ]

    def cached(self) -> Stage:
        """From the page cache."""
        return self._stage("reading, cached", RAW_CACHED, f"{len(self.ids)} videos of {self.row_bytes / 1e3:.0f} KB")

    def cold(self) -> Stage:
        """From the disk."""
        detail = f"the same, dropped from the page cache; limit: the same rows announced and read, {_THREADS} threads"
        return self._stage("reading, cold", RAW_COLD, detail)

    def _stage(self, name: str, yardstick: str, detail: str) -> Stage:
        is_cold = yardstick == RAW_COLD
        needs = ((Need(yardstick, self.row_bytes / GIGA),),)
        read = lambda: self._snapshot.read_tokens(self.ids, self.ours)  # noqa: E731  same arguments each time
        if is_cold:
            return Stage(name, "videos", len(self.ids), read, needs, "wall", self._drop, detail=detail)
        return Stage(name, "videos", len(self.ids), read, needs, detail=detail)

    def _read_raw(self, place: int) -> None:
        descriptor, offset = self._reads[place]
        read_exactly(descriptor, self.raw[place].data, offset)

    def _read_all_raw(self) -> None:
        for place in range(len(self._reads)):
            self._read_raw(place)

    def _read_raw_threaded(self) -> None:
        """All announced first, so that the disk always has something to do; the store announces some at a time."""
        for descriptor, offset in self._reads:
            announce(descriptor, offset, self.row_bytes)
        list(self._threads.map(self._read_raw, range(len(self._reads))))

    def _drop(self) -> None:
        for descriptor in self._descriptors.values():
            drop(descriptor)


# -- index and broad view ----------------------------------------------------------------------------------------------


def index_stage(vectors: NDArray[np.float32], directory: Path) -> Stage:
    """An exact index built from vectors in memory: what is written is hashed and written once."""
    number, width = vectors.shape
    row = 4 * width / GIGA

    def run() -> None:
        index = built(vectors)
        index.save(directory, "bench")

    return Stage(
        "index",
        "videos",
        number,
        run,
        ((Need(HASHING, row),), (Need(WRITING, row),)),
        before=lambda: shutil.rmtree(directory, ignore_errors=True),
        detail=f"{number} x {width}, exact, built anew and written",
    )


def built(vectors: NDArray[np.float32], ids: NDArray[np.int64] | None = None, commit_number: int = 0) -> VectorIndex:
    """An exact index of vectors float32 [n, D] of the videos ``ids``, or of videos 1 .. n."""
    ids = np.arange(1, len(vectors) + 1) if ids is None else ids
    return VectorIndex.build(lambda: [(ids, vectors)], len(vectors), vectors.shape[1], commit_number=commit_number)


def faiss_yardstick(vectors: NDArray[np.float32], queries: NDArray[np.float32], num_results: int) -> Yardstick:
    """FAISS itself on the same vectors and queries."""
    ids = np.arange(1, len(vectors) + 1)
    return Yardstick(
        FAISS,
        "queries",
        len(queries),
        lambda: exact_neighbours([(ids, vectors)], queries, num_results),
        detail=f"{len(queries)} at once over {len(vectors)} x {vectors.shape[1]}, {num_results} results",
    )


def broad_view(index: VectorIndex, queries: NDArray[np.float32], num_results: int, device: torch.device) -> Stage:
    """A search beside its products, or the vectors' way through memory where those take longer."""
    return Stage(
        f"broad view, {len(queries)} at once" if len(queries) > 1 else "broad view, one query",
        "queries",
        len(queries),
        lambda: index.search(queries, num_results),
        search_needs(len(index), index.dim, len(queries)),
        clock_of(device),
        detail=f"{len(index)} x {index.dim}, {index.factory}, {num_results} results",
    )


def broad_view_by_faiss(index: VectorIndex, queries: NDArray[np.float32], num_results: int) -> Stage:
    """The same beside FAISS itself."""
    return Stage(
        "broad view beside FAISS",
        "queries",
        len(queries),
        lambda: index.search(queries, num_results),
        ((Need(FAISS, 1.0),),),
        detail="the same; results scored again, ordered and made certain",
    )


def search_needs(num_vectors: int, width: int, num_queries: int) -> tuple[tuple[Need, ...], ...]:
    """Of one query of an exact search: its products; the vectors are read once for all queries."""
    return (
        (
            Need(matmul(torch.float32), 2 * num_vectors * width / GIGA),
            Need(MEMORY, 4 * num_vectors * width / num_queries / GIGA),
        ),
    )
