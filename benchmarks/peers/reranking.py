"""Reranking: the tokens of each query's candidates, read from disk -> sums of maximal similarities; CPU seconds.

PyLate's score is the sum over a query's words of the largest cosine with any token. That is what tbpipe's
``late-interaction`` gives, times the number of words, for a store whose "frames" are the tokens.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from benchmarks.corpus import random_store, settings
from benchmarks.peers import job
from benchmarks.peers.environment import python_of
from benchmarks.peers.plan import Peer, RerankingScale
from benchmarks.peers.processes import run_program
from benchmarks.peers.searching import nearest
from index_store.store import Store
from stages.index import build_index

SAME_ERROR = 1e-3
"""Of a word's share of the score."""
_REPETITIONS = 3


class Reranking:
    """Peers that score the same candidates of the same queries, from the same tokens."""

    def __init__(self, work: Path, scale: RerankingScale) -> None:
        self._work = work.resolve()
        self._scale = scale
        self.scale: Mapping[str, Any] = asdict(scale)
        self._folder = self._work / "reranking"

    def measure(self, peer: Peer) -> tuple[dict[str, float], dict[str, float], bool]:
        """CPU seconds "reading" alone and "all"; the largest "error" of a score, by word; whether that is the same.

        Raises NotInstallableError, CommandFailedError, InputError.
        """
        expected, folder = self._expected, self._work / "runs" / peer.name
        shutil.rmtree(folder, ignore_errors=True)
        names = ("candidates", "words", "sentences")
        fields: dict[str, Any] = {name: self._folder / f"{name}.npy" for name in names} | {
            "store": self._folder / "store",
            "features": self._folder / "features.h5",
            "threads": self._scale.threads,
            "repetitions": _REPETITIONS,
            "output": folder,
        }
        path = job.write(folder, fields | dict(peer.options))
        run_program(python_of(peer, self._work), peer.program, path, self._scale.threads)
        found = job.array(folder, "scores", expected.shape)
        error = float(np.abs(found - expected).max()) / self._scale.words
        return job.seconds(folder), {"error": error}, error <= SAME_ERROR

    @functools.cached_property
    def _expected(self) -> NDArray[np.float32]:
        """Write a store, the same tokens in groups, and queries; the scores [Q, K] by the plain formula."""
        scale, rng = self._scale, np.random.default_rng(0)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        shape = settings(frames=scale.tokens, tokens=1, width=scale.width)
        store = random_store(self._folder / "store", scale.videos, shape)
        build_index(store)
        words = rng.standard_normal((scale.queries, scale.words, scale.width), np.float32)
        words /= np.linalg.norm(words, axis=-1, keepdims=True)
        sentences = rng.standard_normal((scale.queries, scale.width), np.float32)
        pooled = self._copy(store)
        candidates = nearest(sentences @ pooled.T, scale.candidates)
        for name, array in (("candidates", candidates), ("words", words), ("sentences", sentences)):
            np.save(self._folder / f"{name}.npy", array)
        return self._scores(words, candidates)

    def _copy(self, store: Store) -> NDArray[np.float32]:
        """Write the tokens a group a video, by number; the pooled embeddings [N, D]."""
        with store.snapshot() as snapshot, h5py.File(self._folder / "features.h5", "w", libver="latest") as file:
            ids = {int(Path(record.key).stem): record.id for record in snapshot.videos()}
            for number, video in sorted(ids.items()):
                group = file.create_group(f"{number:07d}")
                group.create_dataset("tokens", data=snapshot.read_tokens([video]).tokens[0, :, 0])
            blocks = snapshot.read_pooled([ids[number] for number in sorted(ids)])
            return np.concatenate([pooled for _, pooled in blocks])

    def _scores(self, words: NDArray[np.float32], candidates: NDArray[np.int64]) -> NDArray[np.float32]:
        scores = np.empty(candidates.shape, np.float32)
        with h5py.File(self._folder / "features.h5", "r") as file:
            for place, row in enumerate(candidates.tolist()):
                for column, video in enumerate(row):
                    tokens = file[f"{video:07d}"]["tokens"][()].astype(np.float32)
                    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
                    scores[place, column] = (words[place] @ tokens.T).max(axis=1).sum()
        return scores
