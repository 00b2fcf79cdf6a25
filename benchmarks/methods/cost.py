"""What answering costs: CPU seconds of a (query, video) pair, and bytes that are read for a query."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import best_of
from index_store.records import Query, Ranking
from index_store.snapshot import Snapshot
from index_store.vectors import VectorIndex
from stages.rerank import rerank
from stages.rerankers.base import Reranker
from stages.search import TextEncoder
from stages.text_cache import TextCache

REPETITIONS = 3
NUM_ALONE = 20
_CACHE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one way to answer."""

    seconds_per_pair: float
    """CPU time of recalling, reading and scoring all queries in one run, over the pairs; texts are encoded before."""
    bytes_per_query: float
    """That the process asks the system for, on average, when a query is asked alone."""


def measure(
    snapshot: Snapshot,
    index: VectorIndex,
    encoder: TextEncoder,
    queries: Sequence[Query],
    reranker: Reranker,
    top_k: int,
) -> Cost:
    """Measure on the machine as it is, on as many threads as torch has."""
    cache = TextCache(encoder, _CACHE_BYTES)

    def answer(asked: Sequence[Query]) -> list[Ranking]:
        return list(rerank(snapshot, index, cache, asked, reranker, top_k=top_k))

    num_pairs = sum(len(ranking.hits) for ranking in answer(queries))  # and the texts are encoded
    (seconds,) = best_of(REPETITIONS, lambda: answer(queries), clock=time.process_time)
    alone = queries[:: -(-len(queries) // NUM_ALONE)]
    before = bytes_read()
    for query in alone:
        answer([query])
    between = bytes_read()
    for _ in alone:
        answer([])
    opening = bytes_read() - between
    return Cost(seconds / num_pairs, (between - before - opening) / len(alone))


def bytes_read() -> float:
    """Bytes that this process has asked the system for, from disk or memory (Linux)."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return float(fields["rchar"])
