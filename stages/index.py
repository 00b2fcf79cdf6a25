"""Pooled embeddings of all videos -> one published index generation, built anew or from the one before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index_store.catalog import IndexManifestFields
from index_store.errors import InputError, StoreError
from index_store.index_files import IndexManifest, Recall
from index_store.layout import generation_name
from index_store.snapshot import Snapshot
from index_store.store import Store
from index_store.vectors import EXACT_FACTORY, VectorBlock, VectorIndex, exact_neighbours, sample_vectors
from index_store.writer import StoreWriter
from stages.index_update import Base, Change, updated

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
    was_updated: bool = False
    """Made from the generation before. Otherwise built anew, and the counts below are 0."""
    num_added: int = 0
    num_replaced: int = 0
    num_removed: int = 0
    remark: str = ""
    """What was wrong with the generation before, where it was to be used."""


def build_index(
    store: Store,
    factory: str | None = EXACT_FACTORY,
    search_parameters: str = "",
    lock_timeout_seconds: float = 0.0,
    *,
    rebuild: bool = False,
) -> IndexReport:
    """``update_index`` under the writer lock. Raises StoreLockedError, and what that raises."""
    with store.writer(lock_timeout_seconds) as writer:
        return update_index(store, writer, factory, search_parameters, rebuild=rebuild)


def update_index(
    store: Store,
    writer: StoreWriter,
    factory: str | None = None,
    search_parameters: str = "",
    *,
    rebuild: bool = False,
    every_byte: bool = True,
) -> IndexReport:
    """Publish an index of every video that has features, unless the newest generation is just that.

    ``factory``: any FAISS factory string; None: that of the newest generation, or exact. ``search_parameters``: as in
    ``nprobe=8``, chosen to reach RECALL_TARGET when empty. ``rebuild``: whatever generations there are. Without
    ``every_byte`` a generation that is up to date is taken for whole if its files have their lengths; one that the next
    is made from is always checked, and replaced by one built anew where it is damaged. Raises InputError for a store
    that has neither features nor an index, UsageError for a factory that cannot be used.
    """
    with store.snapshot() as snapshot:
        newest = snapshot.generation()
        factory = factory or (newest.factory if newest else EXACT_FACTORY)
        base, remark = (None, "") if rebuild else _base(snapshot, factory, search_parameters)
        if base is not None and base.manifest.commit_number == snapshot.commit_number:
            try:
                base.check(every_byte)
                return _report(base.generation.name, base.manifest, was_up_to_date=True)
            except StoreError as error:
                base, remark = None, _found(error)
        if base is None and snapshot.num_searchable == 0:
            raise InputError(f"{store.directory} holds no video with features; run 'tbpipe extract' first")
        made = _Made(snapshot, base, factory, search_parameters, remark)
        generation_id = writer.publish_index(made)
        return made.report(generation_name(generation_id))


def _base(snapshot: Snapshot, factory: str, search_parameters: str) -> tuple[Base | None, str]:
    """The newest generation if it was built in this way; or why it cannot be used although it was."""
    newest = snapshot.generation()
    if newest is None or newest.factory != factory:
        return None, ""
    try:
        base = Base.of(snapshot, newest)
    except StoreError as error:
        return None, _found(error)
    return (base if search_parameters in ("", base.manifest.search_parameters) else None), ""


def _found(error: StoreError) -> str:
    """What is wrong, without the advice to build it again: that is being done."""
    return str(error).rsplit("; ", 1)[0]


class _Made:
    """Fills the directory of a generation, and tells how."""

    def __init__(
        self, snapshot: Snapshot, base: Base | None, factory: str, search_parameters: str, remark: str
    ) -> None:
        self._snapshot = snapshot
        self._base = base
        self._factory = factory
        self._search_parameters = search_parameters
        self._remark = remark
        self._manifest: IndexManifest | None = None
        self._change: Change | None = None

    def __call__(self, directory: Path) -> IndexManifestFields:
        """Fill ``directory`` from the generation before, or anew."""
        manifest = self._updated(directory) or self._built(directory)
        self._manifest = manifest
        return IndexManifestFields(manifest.num_vectors, manifest.factory, manifest.fingerprint, manifest.commit_number)

    def report(self, name: str) -> IndexReport:
        """What was made, once it is published under this name."""
        assert self._manifest is not None
        change = self._change
        return replace(
            _report(name, self._manifest, was_up_to_date=False),
            was_updated=change is not None,
            num_added=len(change.added) - change.num_replaced if change else 0,
            num_replaced=change.num_replaced if change else 0,
            num_removed=change.num_removed if change else 0,
            remark=self._remark,
        )

    def _updated(self, directory: Path) -> IndexManifest | None:
        if self._base is None:
            return None
        try:
            found = updated(self._snapshot, self._base, directory)
        except StoreError as error:
            # Whatever is wrong with the old files. If it is a shard that cannot be read, building anew fails as well.
            if self._snapshot.num_searchable == 0:
                raise
            self._remark = _found(error)
            return None
        manifest, self._change = found or (None, None)
        return manifest

    def _built(self, directory: Path) -> IndexManifest:
        index = _built(self._snapshot, self._factory, self._search_parameters)
        return index.save(directory, self._snapshot.settings.fingerprint)


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


def _report(name: str, manifest: IndexManifest, was_up_to_date: bool) -> IndexReport:
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
