"""The index of one generation in memory: built, searched, updated, saved and opened. The only file that imports faiss.

The CPU form is what is kept (index_files.py says how); a GPU copy is a cache made from it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from index_store.errors import ComponentMissingError, DamageError, FingerprintError, StoreError, UsageError
from index_store.flat_file import flat_header
from index_store.index_files import (
    INDEX_FILE,
    READ_BYTES,
    IndexManifest,
    Recall,
    check_file,
    first_line,
    hashed,
    read_ids,
    read_manifest,
    write_ids,
)
from index_store.layout import FORMAT_VERSION
from index_store.records import ShapeError, expect

EXACT_FACTORY = "Flat"
"""The factory that stores the vectors as they are and compares a query with all of them."""

_MARGIN = 8  # results fetched beyond k, so that a tie at the cut is seen in one pass
_WIDEN = 4  # growth of the fetch while it is not certain that the top k are right
_MAX_FETCHED = 1 << 22  # results of one wide fetch in memory: 50 MB
_GPU_MAX_RESULTS = 2048  # FAISS on a GPU returns no more
_TRAINING_BYTES = 1 << 30
_TRAINING_PER_LIST = 256  # FAISS samples down to this many vectors for each inverted list
# How far a score of a fetch may be from the score by which we order, for unit-length vectors. float32: both sums of D
# products are within 1e-5 at any D in use. float16 on the GPU: each factor is off by at most 2^-11.
_FLOAT32_ERROR = 1e-5
_FLOAT16_ERROR = 1e-3

_BLAS_THRESHOLD = 0
"""Queries x D from which FAISS uses BLAS."""

VectorBlock = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Video ids int64 [m] and their vectors float32 [m, D]."""


class SearchResult(NamedTuple):
    """The best rows of each query, best first; equal scores are ordered by id."""

    scores: NDArray[np.float32]
    """float32 [T, k]; -inf where an approximate index found fewer than k."""
    ids: NDArray[np.int64]
    """int64 [T, k]; -1 there."""


@functools.cache
def _faiss() -> Any:
    """The library, set up once.

    FAISS 1.15.1 compares queries x D with this threshold before it uses BLAS for exact search: 100 queries over
    200k x 512 cost 3.3 CPU s with its own 128,000 and 0.3 with 0. For a lone query see ``_for_one``.
    """
    try:
        import faiss
    except ImportError as error:
        raise ComponentMissingError(
            f"FAISS cannot be loaded ({error}): pip install faiss-cpu, or faiss-gpu on Linux"
        ) from error
    faiss.cvar.distance_compute_blas_threshold = _BLAS_THRESHOLD
    return faiss


class VectorIndex:
    """Vectors of videos, searched by inner product."""

    def __init__(self, index: Any, row_ids: NDArray[np.int64], factory: str, commit_number: int) -> None:
        """row_ids int64 [rows], the video of each row of ``index``; -1 = dead, no video has it any more."""
        self._index = index
        self._set_rows(row_ids)
        self.factory = factory
        self.commit_number = commit_number
        """The commit of the store whose videos these are."""
        self.num_built = len(row_ids)
        """Vectors when it was last built anew."""
        self.search_parameters = ""
        self.recall: Recall | None = None
        self._gpu: Any = None
        self._gpu_resources: list[Any] = []
        self._fetch_error = _FLOAT32_ERROR

    def _set_rows(self, row_ids: NDArray[np.int64]) -> None:
        self._row_ids = row_ids
        self.ids = row_ids
        """int64 [n], the videos that can be found, ascending."""
        self._row_of: NDArray[np.int64] | None = None
        """int64 [n], the row of each of them; None where it is the n-th one."""
        if not _ascend(row_ids) or (row_ids[:1] < 0).any():
            live = np.flatnonzero(row_ids >= 0)
            self._row_of = live[np.argsort(row_ids[live], kind="stable")]
            self.ids = row_ids[self._row_of]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"VectorIndex({self.factory}, {len(self)} x {self.dim})"

    @property
    def dim(self) -> int:
        """D, the width of the vectors."""
        return int(self._index.d)

    @property
    def is_exact(self) -> bool:
        """Whether every vector is compared, as it was given."""
        return isinstance(self._index, _faiss().IndexFlat)

    # -- making -------------------------------------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        blocks: Callable[[], Iterable[VectorBlock]],
        num_vectors: int,
        dim: int,
        factory: str = EXACT_FACTORY,
        commit_number: int = 0,
    ) -> VectorIndex:
        """An index of ``num_vectors`` vectors, which ``blocks()`` yields by ascending id.

        It is called once for adding and once more where FAISS must train. Beside the index one block is in memory, or
        the training sample (at most 1 GiB). Raises UsageError for a factory string that FAISS does not know, that
        cannot use inner products, or that needs more vectors than there are.
        """
        index = _made(dim, factory)
        if not index.is_trained:
            _train(index, blocks, num_vectors, dim, factory)
        ids = np.empty(num_vectors, np.int64)
        done = 0
        is_flat = isinstance(index, _faiss().IndexFlat) and num_vectors > 0
        add = _flat_adder(index, num_vectors) if is_flat else index.add
        for block_ids, vectors in blocks():
            expect("vectors", vectors, (len(block_ids), dim), ("float32",))
            if done + len(block_ids) > num_vectors:
                raise ShapeError(f"more than the {num_vectors} vectors that were announced")
            ids[done : done + len(block_ids)] = block_ids
            with _factory_errors(factory, num_vectors):
                add(np.ascontiguousarray(vectors))
            done += len(block_ids)
        if done != num_vectors or not _ascend(ids):
            raise ShapeError(f"{done} vectors came, expected {num_vectors} with ascending ids")
        return cls(index, ids, factory, commit_number)

    def update(self, changed: NDArray[np.int64], blocks: Iterable[VectorBlock], commit_number: int) -> None:
        """Take out the videos ``changed`` (int64, any number of them unknown), then add those that ``blocks`` yields.

        What was trained stays as it is. Rows taken out are dead: they stay in the file and are never found.
        """
        row_ids = [np.where(np.isin(self._row_ids, changed), np.int64(-1), self._row_ids)]
        for block_ids, vectors in blocks:
            expect("vectors", vectors, (len(block_ids), self.dim), ("float32",))
            self._index.add(np.ascontiguousarray(vectors))
            row_ids.append(block_ids)
        self._set_rows(np.concatenate(row_ids))
        if not _ascend(self.ids):
            raise ShapeError("a video was added that the index holds; name it among the changed ones")
        self.commit_number = commit_number

    def set_search_parameters(self, parameters: str) -> None:
        """Apply a FAISS parameter string such as ``nprobe=8``; kept with the index. UsageError for an unknown one."""
        if parameters:
            try:
                _faiss().ParameterSpace().set_index_parameters(self._index, parameters)
            except (RuntimeError, ValueError) as error:
                message = f"FAISS cannot apply {parameters!r} to a {self.factory} index; give name=value as in nprobe=8"
                raise UsageError(message) from error
        self.search_parameters = parameters

    def tunable_parameter(self) -> tuple[str, int] | None:
        """Name and largest useful value of the parameter that trades time for recall; None where there is none."""
        lists = _faiss().try_extract_index_ivf(self._index)
        if lists is not None:
            return "nprobe", int(lists.nlist)
        if isinstance(self._index, _faiss().IndexHNSW):
            return "efSearch", 1024
        return None

    def save(self, directory: Path, fingerprint: str) -> IndexManifest:
        """Write the three files into ``directory``, which is made. The caller makes them durable."""
        directory.mkdir(parents=True, exist_ok=True)
        with hashed(directory / INDEX_FILE) as (write, index_digest):
            faiss = _faiss()
            writer = faiss.PyCallbackIOWriter(write, READ_BYTES)
            faiss.write_index(self._index, writer)
            del writer
        manifest = IndexManifest(
            FORMAT_VERSION,
            fingerprint,
            self.commit_number,
            self.factory,
            self.search_parameters,
            len(self),
            self.dim,
            self.recall,
            index_digest(),
            write_ids(directory, self._row_ids),
            self.num_built,
        )
        manifest.write(directory)
        return manifest

    @classmethod
    def open(cls, directory: Path, fingerprint: str) -> VectorIndex:
        """Read what ``save`` wrote for the store with this fingerprint, after checking every byte of it.

        Raises DamageError for a missing or changed file, FingerprintError for an index of another store.
        """
        manifest = read_manifest(directory)
        if manifest.fingerprint != fingerprint:
            raise FingerprintError(
                f"the index {directory} was made from features with fingerprint {manifest.fingerprint}, the store has "
                f"{fingerprint}; run 'tbpipe index' to build it from this store"
            )
        check_file(directory / INDEX_FILE, manifest.index)
        row_ids = read_ids(directory, manifest)
        try:
            index = _faiss().read_index(str(directory / INDEX_FILE))
        except RuntimeError as error:  # the bytes are right, so they were written wrong or by a newer FAISS
            raise StoreError(
                f"this FAISS cannot read {directory} ({first_line(error)}); run 'tbpipe index' again"
            ) from error
        opened = cls(index, row_ids, manifest.factory, manifest.commit_number)
        if not len(row_ids) == index.ntotal or len(opened) != manifest.num_vectors or index.d != manifest.dim:
            raise DamageError(
                f"{directory}: {index.ntotal} vectors, {len(row_ids)} ids; run 'tbpipe index' to build it again"
            )
        if not _ascend(opened.ids):
            raise DamageError(f"{directory} holds a video twice; run 'tbpipe index' to build it again")
        opened.search_parameters, opened.recall = manifest.search_parameters, manifest.recall
        opened.num_built = manifest.num_built
        return opened

    # -- GPU ----------------------------------------------------------------------------------------------------------

    def copy_to_gpus(
        self, gpus: Sequence[int] | None = None, float16: bool | None = None, scratch_bytes: int = 512 << 20
    ) -> str:
        """Search on GPUs from now on, the rows split between them. Returns "" or why it is not so.

        ``gpus``: their numbers, None = all.
        The CPU form stays. ``float16`` stores half the bytes on the GPUs; None: where float32 does not fit. An exact
        index gives the same ids and scores as on the CPU either way: its results are scored again from the CPU form.
        FAISS on a GPU finds at most 2048 results; where more are needed, the CPU searches.
        """
        faiss = _faiss()
        num_gpus = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
        gpus = range(num_gpus) if gpus is None else gpus
        if num_gpus == 0 or not gpus:
            return "FAISS finds no GPU"
        if not all(0 <= gpu < num_gpus for gpu in gpus):
            return f"FAISS finds {num_gpus} GPUs, not number {max(gpus)}"
        if len(self._row_ids) == 0:
            return "there are no vectors to search on the GPU"
        reason = ""
        for halved in (False, True) if float16 is None else (float16,):
            try:
                copy, resources = self._copy(list(gpus), halved, scratch_bytes)
                # a wheel without code for this GPU fails at the first search, not before
                copy.search(np.zeros((1, self.dim), np.float32), 1)
            except RuntimeError as error:  # out of memory, an index kind with no GPU form, no kernel for this GPU
                reason = first_line(error)
                continue
            self._gpu_resources = resources  # the copy does not keep them alive
            self._fetch_from(copy, _FLOAT16_ERROR if halved else _FLOAT32_ERROR)
            return ""
        return f"FAISS cannot search a {self.factory} index of {len(self)} vectors on the GPU: {reason}"

    def _copy(self, gpus: list[int], float16: bool, scratch_bytes: int) -> tuple[Any, list[Any]]:
        """The index on these GPUs, and what must live as long as it. Raises RuntimeError."""
        faiss = _faiss()
        resources = [faiss.StandardGpuResources() for _ in gpus]
        for resource in resources:
            resource.setTempMemory(scratch_bytes)
        options = faiss.GpuMultipleClonerOptions()
        options.shard = len(gpus) > 1
        options.useFloat16 = float16
        if not self.is_exact:
            copy = faiss.index_cpu_to_gpu_multiple_py(resources, self._index, options, gpus)
            if not is_on_gpu(copy):
                raise RuntimeError(f"there is no form of it for {len(gpus)} GPUs")
            return copy, resources
        # Empty on the GPU first, then one add: the rows take their place once. Copied as a whole, the conversion to
        # float16 needs three times the memory; added bit by bit, each time the old rows and the new ones.
        parts = []
        num_rows = len(self._row_ids)
        vectors = faiss.rev_swig_ptr(self._index.get_xb(), num_rows * self.dim).reshape(num_rows, self.dim)
        for number, gpu in enumerate(gpus):
            part = faiss.index_cpu_to_gpu(resources[number], gpu, _made(self.dim, EXACT_FACTORY), options)
            part.add(vectors[num_rows * number // len(gpus) : num_rows * (number + 1) // len(gpus)])
            parts.append(part)
        return (parts[0] if len(parts) == 1 else joined(parts)), [*resources, *parts]

    def _fetch_from(self, copy: Any, error: float) -> None:
        """Let ``copy`` find the results from now on; its scores are off by at most ``error``."""
        self._gpu, self._fetch_error = copy, error

    # -- searching ----------------------------------------------------------------------------------------------------

    def search(
        self, queries: NDArray[np.float32], num_results: int, allowed: NDArray[np.bool_] | None = None
    ) -> SearchResult:
        """The rows with the largest inner product, ``min(num_results, rows that are allowed)`` for each query.

        queries float32 [T, D], finite; vectors and queries are taken to have unit length. allowed bool [n], as ``ids``:
        False = never a result. On an exact index scores and ids do not depend on the other queries of the call, nor on
        the device: what FAISS fetched is scored again row by row, and fetched wider until no other row can be in the
        top.
        """
        expect("queries", queries, (len(queries), self.dim), ("float32",))
        if not np.isfinite(queries).all():
            raise ShapeError("queries hold a number that is not finite")
        num_allowed = len(self) if allowed is None else int(np.count_nonzero(allowed))
        width = min(num_results, num_allowed)
        result = SearchResult(
            np.full((len(queries), width), -np.inf, np.float32), np.full((len(queries), width), -1, np.int64)
        )
        if width == 0:
            return result
        pending = np.arange(len(queries))
        num_rows = len(self._row_ids)
        allowed_rows = self._allowed_rows(allowed)
        num_fetched = width + _MARGIN + (width * (num_rows - num_allowed)) // num_allowed
        while len(pending):
            num_fetched = min(num_fetched, num_rows)
            per_pass = max(1, _MAX_FETCHED // num_fetched)
            parts = [pending[start : start + per_pass] for start in range(0, len(pending), per_pass)]
            unsettled = [self._search_part(queries, part, num_fetched, allowed_rows, result) for part in parts]
            pending = np.concatenate(unsettled)
            num_fetched *= _WIDEN
        return result

    def _allowed_rows(self, allowed: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """Which rows may be found, bool [rows]; None = all."""
        if self._row_of is None:
            return allowed
        rows = np.zeros(len(self._row_ids), np.bool_)
        rows[self._row_of] = True if allowed is None else allowed
        return rows

    def _search_part(
        self,
        queries: NDArray[np.float32],
        part: NDArray[np.int64],
        num_fetched: int,
        allowed: NDArray[np.bool_] | None,
        result: SearchResult,
    ) -> NDArray[np.int64]:
        """Fill the rows ``part`` of ``result``; returns those whose top may still be wrong."""
        vectors = np.ascontiguousarray(queries[part])
        fetched, rows = self._fetch(vectors, num_fetched)
        scores = self._exact_scores(vectors, rows) if self.is_exact else fetched
        usable = rows >= 0
        if allowed is not None:
            usable &= allowed[rows]
        ids = np.where(usable, self._row_ids[rows], np.iinfo(np.int64).max)
        scores = np.where(usable, scores, np.float32(-np.inf))
        width = result.ids.shape[1]
        order = np.arange(len(part))[:, None], np.lexsort((ids, -scores), axis=-1)[:, :width]
        result.scores[part] = best = scores[order]
        result.ids[part] = np.where(np.isneginf(best), -1, ids[order])
        if num_fetched == len(self._row_ids):
            return part[:0]
        error = self._fetch_error * np.linalg.norm(vectors, axis=1) if self.is_exact else 0.0
        exhausted = rows[:, -1] < 0  # an approximate index looks no further
        unsettled: NDArray[np.int64] = part[~exhausted & ~(result.scores[part, -1] > fetched[:, -1] + error)]
        return unsettled

    def _fetch(self, queries: NDArray[np.float32], num_fetched: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """What FAISS finds: scores float32 [T, m], best first, and rows int64 [T, m], -1 = none."""
        is_all = num_fetched == len(self._row_ids)
        if is_all and isinstance(self._index, _faiss().IndexHNSW):
            return self._score_all(queries)
        may_use_gpu = num_fetched <= _GPU_MAX_RESULTS and (self.is_exact or not is_all)  # there, lists stay unvisited
        index = self._gpu if self._gpu is not None and may_use_gpu else self._index
        with self._every_list() if is_all else contextlib.nullcontext(), _for_one(queries):
            scores, rows = index.search(queries, num_fetched)
        return scores, rows

    @contextlib.contextmanager
    def _every_list(self) -> Iterator[None]:
        """Visit every inverted list, where there are such: whoever asks for all videos gets all."""
        lists = _faiss().try_extract_index_ivf(self._index)
        if lists is None:
            yield
            return
        before, lists.nprobe = lists.nprobe, lists.nlist
        try:
            yield
        finally:
            lists.nprobe = before

    def _score_all(self, queries: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores of every row, in the order of the rows: a search along the edges of a graph may miss some."""
        scores = np.empty((len(queries), len(self._row_ids)), np.float32)
        step = max(1, READ_BYTES // self.dim)
        for start in range(0, len(self._row_ids), step):
            stop = min(start + step, len(self._row_ids))
            scores[:, start:stop] = queries @ self._index.reconstruct_n(start, stop - start).T
        return scores, np.broadcast_to(np.arange(len(self._row_ids)), scores.shape)

    def _exact_scores(self, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Inner products float32 [T, m] of each query with its own rows; each alone, so no other can change a bit."""
        faiss = _faiss()
        scores = np.empty(rows.shape, np.float32)
        rows = np.ascontiguousarray(rows)  # a pointer does not keep its array alive
        pointers = [faiss.swig_ptr(array) for array in (queries, scores, rows)]
        self._index.compute_distance_subset(len(queries), pointers[0], rows.shape[1], pointers[1], pointers[2])
        return scores


@contextlib.contextmanager
def _for_one(queries: NDArray[np.float32]) -> Iterator[None]:
    """Do without BLAS for one query: it reads the vectors as fast as memory gives them, in half of the time.

    From two on it costs the same or more. A search in another thread meanwhile finds the same.
    """
    if len(queries) != 1:
        yield
        return
    variables = _faiss().cvar
    variables.distance_compute_blas_threshold = queries.size + 1
    try:
        yield
    finally:
        variables.distance_compute_blas_threshold = _BLAS_THRESHOLD


def _ascend(ids: NDArray[np.int64]) -> bool:
    return not (np.diff(ids) <= 0).any()


@functools.cache
def knows_flat_files(dim: int) -> bool:
    """Whether this FAISS writes an exact index as flat_file.py does, so that one may be updated without FAISS."""
    faiss = _faiss()
    vector = np.arange(dim, dtype=np.float32)[None]
    index = faiss.IndexFlatIP(dim)
    index.add(vector)
    return bool(faiss.serialize_index(index).tobytes() == flat_header(1, dim) + vector.tobytes())


def exact_neighbours(
    blocks: Iterable[VectorBlock], queries: NDArray[np.float32], num_results: int
) -> NDArray[np.int64]:
    """Ids int64 [T, min(k, n)] of the vectors with the largest inner product, by comparing all, block by block."""
    faiss = _faiss()
    scores = np.empty((len(queries), 0), np.float32)
    ids: NDArray[np.int64] = np.empty((len(queries), 0), np.int64)
    for block_ids, vectors in blocks:
        found, rows = faiss.knn(
            queries, np.ascontiguousarray(vectors), min(num_results, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT
        )
        scores, ids = np.hstack([scores, found]), np.hstack([ids, block_ids[rows]])
        order = np.lexsort((ids, -scores), axis=-1)[:, :num_results]
        scores, ids = np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)
    return ids


# -- FAISS's own objects ----------------------------------------------------------------------------------------------


def joined(parts: Sequence[Any]) -> Any:
    """Indexes of successive rows as one, searched side by side. It does not keep them alive."""
    index = _faiss().IndexShards(parts[0].d, True, True)
    for part in parts:
        index.add_shard(part)
    return index


def is_on_gpu(index: Any) -> bool:
    """Whether FAISS made a GPU index: of kinds that it cannot split between GPUs it returns a copy on the CPU."""
    faiss = _faiss()
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return is_on_gpu(index.index)
    on_gpu = getattr(faiss, "GpuIndex", ()), faiss.IndexShards, faiss.IndexShardsIVF  # faiss-cpu lacks the first
    return isinstance(index, on_gpu)


def _made(dim: int, factory: str) -> Any:
    faiss = _faiss()
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        message = (
            f"FAISS cannot build {factory!r} for vectors of width {dim}; try Flat, IVF1024,Flat, HNSW32 or IVF4096,PQ64"
        )
        raise UsageError(f"{message} ({first_line(error)})") from error
    if index.metric_type != faiss.METRIC_INNER_PRODUCT or isinstance(index, faiss.IndexIDMap):
        raise UsageError(
            f"a {factory!r} index cannot be used: it must compare by inner product and number its rows itself"
        )
    return index


@contextlib.contextmanager
def _factory_errors(factory: str, num_vectors: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        found = f"FAISS cannot make a {factory!r} index of {num_vectors} vectors ({first_line(error)})"
        raise UsageError(f"{found}; use Flat, or fewer inverted lists or codes") from error


def _train(index: Any, blocks: Callable[[], Iterable[VectorBlock]], num_vectors: int, dim: int, factory: str) -> None:
    """Train on rows drawn with a fixed seed."""
    lists = _faiss().try_extract_index_ivf(index)
    sample_size = min(num_vectors, _TRAINING_BYTES // (4 * dim))
    if lists is not None:
        sample_size = min(sample_size, max(_TRAINING_PER_LIST * lists.nlist, 1 << 16))
    sample = sample_vectors(blocks(), num_vectors, sample_size, dim)[1]
    with _factory_errors(factory, num_vectors), _quiet():
        index.train(sample)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep FAISS's C++ code from printing hundreds of warnings about small samples: what they cost is measured."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def sample_vectors(blocks: Iterable[VectorBlock], num_vectors: int, sample_size: int, dim: int) -> VectorBlock:
    """``sample_size`` of the vectors, drawn with a fixed seed, in their order; all of them where there are fewer."""
    chosen = np.sort(np.random.default_rng(0).choice(num_vectors, min(sample_size, num_vectors), replace=False))
    ids, sample = np.empty(len(chosen), np.int64), np.empty((len(chosen), dim), np.float32)
    start = 0
    for block_ids, vectors in blocks:
        first, last = np.searchsorted(chosen, (start, start + len(block_ids)))
        rows = chosen[first:last] - start
        ids[first:last], sample[first:last] = block_ids[rows], vectors[rows]
        start += len(block_ids)
    return ids, sample


def _flat_adder(index: Any, num_vectors: int) -> Callable[[NDArray[np.float32]], None]:
    """``add`` into memory that is taken once: FAISS itself doubles and copies, up to three times the bytes."""
    faiss = _faiss()
    done = 0
    index.codes.resize(num_vectors * index.d * 4)
    index.ntotal = num_vectors
    stored = faiss.rev_swig_ptr(index.get_xb(), num_vectors * index.d).reshape(num_vectors, index.d)

    def add(vectors: NDArray[np.float32]) -> None:
        nonlocal done
        stored[done : done + len(vectors)] = vectors
        done += len(vectors)

    return add
