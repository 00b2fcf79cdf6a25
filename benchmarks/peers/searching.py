"""Search: the same vectors and queries -> the nearest neighbours by inner product; CPU seconds inside the process."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import job
from benchmarks.peers.environment import python_of
from benchmarks.peers.plan import Peer, SearchScale
from benchmarks.peers.processes import run_program

SAME_RECALL = 0.9999
"""Two exact searches may order vectors differently whose scores differ in the last bit."""
_REPETITIONS = 5
_BLOCK = 50_000
_NOISE = 0.02


class Search:
    """Peers that find neighbours among random vectors of unit length; each query lies near one of them."""

    def __init__(self, work: Path, scale: SearchScale) -> None:
        self._work = work.resolve()
        self._scale = scale
        self.scale: Mapping[str, Any] = asdict(scale)
        self._folder = self._work / "search"

    def measure(self, peer: Peer) -> tuple[dict[str, float], dict[str, float], bool]:
        """CPU seconds "build" and "search"; "recall" against all products; whether that is an exact search.

        Raises NotInstallableError, CommandFailedError, InputError.
        """
        expected, folder = self._expected, self._work / "runs" / peer.name
        shutil.rmtree(folder, ignore_errors=True)
        fields: dict[str, Any] = {
            "vectors": self._folder / "vectors.npy",
            "queries": self._folder / "queries.npy",
            "neighbours": self._scale.neighbours,
            "threads": self._scale.threads,
            "repetitions": _REPETITIONS,
            "output": folder,
        }
        path = job.write(folder, fields | dict(peer.options))
        run_program(python_of(peer, self._work), peer.program, path, self._scale.threads)
        recall = recall_of(job.array(folder, "ids", expected.shape), expected)
        return job.seconds(folder), {"recall": recall}, recall >= SAME_RECALL

    @functools.cached_property
    def _expected(self) -> NDArray[np.int64]:
        """Draw vectors and queries; the exact neighbours of each query [Q, K]."""
        scale, rng = self._scale, np.random.default_rng(0)
        self._folder.mkdir(parents=True, exist_ok=True)
        vectors = _unit(rng.standard_normal((scale.vectors, scale.width), np.float32))
        noise = rng.standard_normal((scale.queries, scale.width), np.float32)
        queries = _unit(vectors[rng.choice(scale.vectors, scale.queries)] + np.float32(_NOISE) * noise)
        np.save(self._folder / "vectors.npy", vectors)
        np.save(self._folder / "queries.npy", queries)
        blocks = [queries @ vectors[start : start + _BLOCK].T for start in range(0, scale.vectors, _BLOCK)]
        return nearest(np.concatenate(blocks, axis=1), scale.neighbours)


def nearest(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Columns of the ``count`` largest of each row, in no order."""
    return np.argpartition(-scores, count - 1, axis=1)[:, :count].astype(np.int64)


def recall_of(found: NDArray[np.int64], expected: NDArray[np.int64]) -> float:
    """Share of the expected neighbours [Q, K] that were found."""
    hits = [len(np.intersect1d(row, right)) for row, right in zip(found, expected, strict=True)]
    return sum(hits) / expected.size


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
