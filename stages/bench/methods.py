"""Rerank: what each method needs of a video and of a (query, video) pair by count, beside what it takes.

Counted is what the formulas need, not what is computed: each candidate read once for all queries of the run, products
of texts with those tokens that the method looks at, the length of each token.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from index_store.errors import UsageError
from index_store.settings import StoreSettings
from index_store.snapshot import Snapshot
from index_store.vectors import VectorIndex
from stages.bench.data import DrawnTexts
from stages.bench.machine import CACHED, GIGA, MEMORY, UPLOAD, clock_of, matmul
from stages.bench.measure import Need, Stage
from stages.rerank import rerank
from stages.rerankers import TOKEN_BINDER, make_reranker
from stages.rerankers.base import Reranker
from stages.rerankers.fusion import FusionConfig, FusionNetwork
from stages.rerankers.selection import NUM_PATCHES
from stages.rerankers.token_binder import TokenBinderReranker
from stages.search import BroadView

LOGIT_SCALE = 100.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a run: F frames, P tokens a frame, width D, W words of a text on average."""

    frames: int
    tokens: int
    width: int
    words: float

    @property
    def cells(self) -> int:
        """F x P x D."""
        return self.frames * self.tokens * self.width


@dataclass(frozen=True, slots=True)
class Count:
    """What a method needs."""

    video: Callable[[Sizes], float]
    """Operations for each distinct video."""
    pair: Callable[[Sizes], float]
    """Operations for each candidate of each query."""
    sees_patches: bool = True
    """False: the frame embeddings are all that it reads."""


_CONFIG = FusionConfig(width=1, num_places=0)
_ROWS = (_CONFIG.num_indicators - 1) * _CONFIG.num_heads
"""Rows that one query of TokenBinder puts to the tokens."""

COUNTS: Mapping[str, Count] = {
    "broad": Count(lambda s: 0.0, lambda s: 0.0, sees_patches=False),
    "clip4clip": Count(lambda s: 3 * s.frames * s.width, lambda s: 2 * s.width, sees_patches=False),
    "ts2-net": Count(lambda s: 2 * s.frames * s.width, lambda s: 2 * s.frames * s.width, sees_patches=False),
    "x-clip": Count(
        lambda s: 3 * s.frames * s.width, lambda s: 2 * (s.words + 1) * (s.frames + 1) * s.width, sees_patches=False
    ),
    "wti": Count(lambda s: 2 * s.frames * s.width, lambda s: 2 * s.words * s.frames * s.width, sees_patches=False),
    "ucofia": Count(
        lambda s: 4 * s.cells,
        lambda s: 2 * (s.words * (1 + NUM_PATCHES) * s.frames + s.frames + 1) * s.width,
    ),
    "eercf": Count(lambda s: 2 * s.cells, lambda s: 2 * s.cells + 4 * s.frames * s.width),
    "late-interaction": Count(lambda s: 2 * s.cells, lambda s: 2 * s.words * s.cells),
    TOKEN_BINDER: Count(lambda s: 2 * s.cells, lambda s: 4 * _ROWS * s.cells),
}
"""Name -> what it needs; one line adds a method. TokenBinder: similarities and weighted sums, projections folded."""


def reranker_to_measure(name: str, settings: StoreSettings, device: torch.device) -> Reranker:
    """The method without weights; TokenBinder with drawn ones. Raises UsageError for a name that does not exist."""
    if name != TOKEN_BINDER:
        return make_reranker(name)
    places = settings.token_shape[1] if settings.tokens.keep == "all" else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = FusionNetwork(FusionConfig(width=settings.embed_dim, num_places=places))
    return TokenBinderReranker(network, LOGIT_SCALE, device)


@dataclass(frozen=True, slots=True, eq=False)
class Reranking:
    """Queries over the videos of a snapshot, whose text features are there."""

    snapshot: Snapshot
    index: VectorIndex
    texts: DrawnTexts
    top_k: int
    memory_bytes: int
    device: torch.device

    def run(self, reranker: Reranker) -> None:
        """Recall and rank the candidates of every query."""
        rankings = rerank(
            self.snapshot,
            self.index,
            self.texts,
            self.texts.queries,
            reranker,
            top_k=self.top_k,
            memory_bytes=self.memory_bytes,
            device=self.device,
        )
        for _ in rankings:
            pass

    def stage(self, name: str) -> Stage:
        """The whole focused view but the text tower, from the page cache."""
        settings = self.snapshot.settings
        reranker = reranker_to_measure(name, settings, self.device)
        count, distinct = COUNTS[name], self._num_distinct()
        queries = len(self.texts.queries)
        read = distinct / queries * self._bytes_needed(count.sees_patches) / GIGA
        sizes = Sizes(*settings.token_shape, self.texts.mean_words)
        candidates = min(self.top_k, len(self.index))
        computed = (distinct / queries * count.video(sizes) + candidates * count.pair(sizes)) / GIGA
        compute = (Need(matmul(torch.float32), computed), Need(MEMORY, read))
        on_gpu = self.device.type == "cuda"
        needs = ((*compute, Need(CACHED, read), Need(UPLOAD, read)),) if on_gpu else ((Need(CACHED, read),), compute)
        return Stage(
            f"rerank, {name}",
            "queries",
            queries,
            lambda: self.run(reranker),
            needs,
            clock_of(self.device),
            detail=f"K = {candidates}, {distinct} distinct of {queries * candidates} candidates{self._note(count)}",
        )

    def _note(self, count: Count) -> str:
        """That more is read than what a method looks at; ``tbpipe prepare`` would keep that apart."""
        needed, stored = (self._bytes_needed(sees_patches) / 1e3 for sees_patches in (count.sees_patches, True))
        return "" if needed >= stored else f"; {stored:.0f} KB of each are stored, {needed:.0f} KB looked at"

    def _bytes_needed(self, sees_patches: bool) -> int:
        """Of one video."""
        frames, tokens, width = self.snapshot.settings.token_shape
        if not sees_patches:
            return 2 * frames * width
        return frames * tokens * (2 * width if self.snapshot.settings.tokens.dtype == "float16" else width + 4)

    def _num_distinct(self) -> int:
        """Videos that are a candidate of some query."""
        features = self.texts.encode_texts([query.text for query in self.texts.queries])
        found: NDArray[np.int64] = (
            BroadView(self.snapshot, self.index).candidates(features.sentence.cpu().numpy(), self.top_k).ids
        )
        return len(np.unique(found[found >= 0]))


def choose_methods(names: str | None) -> tuple[str, ...]:
    """What ``--method a,b`` names; all for None. Raises UsageError for one that cannot be measured."""
    if names is None:
        return tuple(COUNTS)
    chosen = tuple(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in chosen:
        if name not in COUNTS:
            near = difflib.get_close_matches(name, COUNTS, n=1, cutoff=0.0)[0]
            raise UsageError(f"there is no method {name!r} to measure; did you mean {near!r}? {', '.join(COUNTS)}")
    return chosen
