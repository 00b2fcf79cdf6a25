"""Broad view: search through our code against FAISS itself, on the same index and queries."""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np

from benchmarks.measure import Ratio, best_of, cpu_seconds
from index_store.vectors import VectorIndex

NUM_VECTORS, WIDTH, NUM_QUERIES, NUM_RESULTS = 200_000, 512, 100, 50


def run(num_vectors: int = NUM_VECTORS, repetitions: int = 7) -> Iterator[Ratio]:
    """CPU seconds of a batch of queries, both ways."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((num_vectors, WIDTH), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[rng.choice(num_vectors, NUM_QUERIES)] + 0.02 * rng.standard_normal(
        (NUM_QUERIES, WIDTH), np.float32
    )
    queries = np.ascontiguousarray(queries / np.linalg.norm(queries, axis=1, keepdims=True), np.float32)
    raw = faiss.IndexFlatIP(WIDTH)
    raw.add(vectors)
    ours = VectorIndex.build(lambda: [(np.arange(num_vectors), vectors)], num_vectors, WIDTH)
    faiss.cvar.distance_compute_blas_threshold = 0
    np.testing.assert_array_equal(ours.search(queries, NUM_RESULTS).ids, raw.search(queries, NUM_RESULTS)[1])
    seconds, limit = best_of(
        repetitions,
        lambda: ours.search(queries, NUM_RESULTS),
        lambda: raw.search(queries, NUM_RESULTS),
        clock=cpu_seconds,
    )
    detail = f"{NUM_QUERIES} queries over {num_vectors} x {WIDTH}"
    yield Ratio("search, CPU seconds / raw FAISS", seconds / limit, 1.05, at_most=True, detail=detail)
    faiss.cvar.distance_compute_blas_threshold = 128_000
    (shipped,) = best_of(2, lambda: raw.search(queries, NUM_RESULTS), clock=cpu_seconds)
    faiss.cvar.distance_compute_blas_threshold = 0
    yield Ratio("FAISS as shipped / with its BLAS threshold at 0", shipped / limit, 1.0, at_most=False, detail=detail)
