"""Pooled embeddings of all videos -> one published index generation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index_store.catalog import IndexManifestFields
from index_store.errors import DamageError, InputError, StoreError
from index_store.layout import generation_name
from index_store.store import Snapshot, Store
from index_store.vectors import (
    EXACT_FACTORY,
    Recall,
    VectorBlock,
    VectorIndex,
    exact_neighbours,
    read_manifest,
    sample_vectors,
)

RECALL_AT = 50
"""Recall is measured at the number of candidates that rerank takes unless told otherwise."""
RECALL_TARGET = 0.95
"""An approximate index searches as widely as it takes to reach this, unless its parameters are given."""

_RECALL_QUERIES = 200
_FLOAT32_BYTES = 4
_FLOAT16_BYTES = 2


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What ``tbpipe index`` did."""

    generation: str
    """Name of its directory under ``index/``."""
    num_vectors: int
    dim: int
    factory: str
    search_parameters: str
    recall: float | None
    """Share of the recall_k nearest videos that a search finds; None when the index is exact."""
    recall_k: int
    num_recall_queries: int
    """How many stored embeddings were searched for."""
    size_bytes: int
    was_up_to_date: bool
    """Nothing was done: the newest generation holds this commit, built in this way."""


def build_index(
    store: Store, factory: str = EXACT_FACTORY, search_parameters: str = "", lock_timeout_seconds: float = 0.0
) -> IndexReport:
    """Publish an index of every video that has features, unless the newest one is just that.

    ``factory``: any FAISS factory string; ``search_parameters``: as in ``nprobe=8``, chosen to reach RECALL_TARGET when
    empty. Raises InputError for a store without features, UsageError for a factory that cannot be used,
    StoreLockedError.
    """
    with store.writer(lock_timeout_seconds) as writer, store.snapshot() as snapshot:
        if snapshot.num_searchable == 0:
            raise InputError(f"{store.directory} holds no video with features; run 'tbpipe extract' first")
        present = _present(snapshot, factory, search_parameters)
        if present is not None:
            return present

        def build(directory: Path) -> IndexManifestFields:
            index = _built(snapshot, factory, search_parameters)
            manifest = index.save(directory, store.fingerprint)
            return IndexManifestFields(len(index), factory, manifest.fingerprint, manifest.commit_number)

        generation_id = writer.publish_index(build)
    with store.snapshot() as snapshot:
        path = next(record.path for record in snapshot.generations() if record.id == generation_id)
    return _report(path, generation_name(generation_id), was_up_to_date=False)


def choose_factory(num_vectors: int, dim: int, memory_bytes: int) -> str:
    """The most exact factory whose index of ``num_vectors`` vectors of width ``dim`` fits into ``memory_bytes``.

    Exact float32, then float16, then 8 bits a component in inverted lists, then 8 bits for 8 components.
    """
    if num_vectors * dim * _FLOAT32_BYTES <= memory_bytes:
        return EXACT_FACTORY
    if num_vectors * dim * _FLOAT16_BYTES <= memory_bytes:
        return "SQfp16"
    num_lists = 1 << int(np.log2(4 * np.sqrt(num_vectors)))
    if num_vectors * (dim + 8) <= memory_bytes or dim % 8:
        return f"IVF{num_lists},SQ8"
    return f"IVF{num_lists},PQ{dim // 8}"


def _present(snapshot: Snapshot, factory: str, search_parameters: str) -> IndexReport | None:
    """The report of the newest generation if building again would give the same; None for a damaged or older one."""
    generation = snapshot.generation()
    if generation is None or generation.commit_number != snapshot.commit_number or generation.factory != factory:
        return None
    try:
        manifest = read_manifest(generation.path)
        VectorIndex.open(generation.path, snapshot.settings.fingerprint)
    except (DamageError, StoreError):
        return None  # it is built again
    if search_parameters not in ("", manifest.search_parameters):
        return None
    return _report(generation.path, generation.name, was_up_to_date=True)


def _report(path: Path, name: str, was_up_to_date: bool) -> IndexReport:
    manifest = read_manifest(path)
    return IndexReport(
        generation=name,
        num_vectors=manifest.num_vectors,
        dim=manifest.dim,
        factory=manifest.factory,
        search_parameters=manifest.search_parameters,
        recall=manifest.recall.value if manifest.recall else None,
        recall_k=manifest.recall.at if manifest.recall else 0,
        num_recall_queries=manifest.recall.num_queries if manifest.recall else 0,
        size_bytes=manifest.index.size_bytes + manifest.ids.size_bytes,
        was_up_to_date=was_up_to_date,
    )


def _built(snapshot: Snapshot, factory: str, search_parameters: str) -> VectorIndex:
    """The index, with its recall measured unless it is exact."""
    num_vectors, dim = snapshot.num_searchable, snapshot.settings.embed_dim

    def blocks() -> Iterator[VectorBlock]:
        return snapshot.read_pooled()

    index = VectorIndex.build(blocks, num_vectors, dim, factory, snapshot.commit_number)
    index.set_search_parameters(search_parameters)
    if not index.is_exact and num_vectors > 1:
        ids, queries = sample_vectors(blocks(), num_vectors, _RECALL_QUERIES, dim)
        at = min(RECALL_AT, num_vectors - 1)
        nearest = exact_neighbours(blocks(), queries, at + 1)
        parameter = None if search_parameters else index.tunable_parameter()
        if parameter is not None:
            _tune(index, *parameter, ids, queries, nearest)
        index.recall = Recall(at, _recall(index, ids, queries, nearest), len(ids))
    return index


def _tune(
    index: VectorIndex,
    name: str,
    largest: int,
    ids: NDArray[np.int64],
    queries: NDArray[np.float32],
    nearest: NDArray[np.int64],
) -> None:
    """Double the search parameter until the recall is RECALL_TARGET or nothing is left to search."""
    value = 1
    while True:
        index.set_search_parameters(f"{name}={value}")
        if value == largest or _recall(index, ids, queries, nearest) >= RECALL_TARGET:
            return
        value = min(2 * value, largest)


def _recall(
    index: VectorIndex, ids: NDArray[np.int64], queries: NDArray[np.float32], nearest: NDArray[np.int64]
) -> float:
    """Share of the nearest vectors [T, k + 1] of stored vectors ``queries`` that are found; their own not counted."""
    found = index.search(queries, nearest.shape[1]).ids
    hits = sum(
        len(set(truth) & set(got) - {own})
        for truth, got, own in zip(nearest.tolist(), found.tolist(), ids.tolist(), strict=True)
    )
    own_among_nearest = sum(own in truth for truth, own in zip(nearest.tolist(), ids.tolist(), strict=True))
    return hits / (nearest.size - own_among_nearest)
