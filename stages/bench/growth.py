"""How cost grows with one size while the others stay: the corpus, K, frames, tokens."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from index_store.store import Store
from stages.bench.data import DrawnTexts, drawn_store, drawn_vectors, first_videos, store_settings
from stages.bench.measure import Stage, Watch, Yardstick, measure_stage
from stages.bench.methods import Reranking
from stages.bench.recall import broad_view, built
from stages.bench.records import Growth, GrowthPoint
from stages.bench.scale import GrowthSizes
from stages.rerankers import TOKEN_BINDER

MEMORY_BYTES = 512 << 20
USUAL_METHODS = ("eercf", TOKEN_BINDER)
"""One that scores pairs, and the one that compares candidates."""


Step = tuple[str, Callable[[], Growth]]


def growth_steps(
    sizes: GrowthSizes,
    methods: Sequence[str],
    folder: Path,
    device: torch.device,
    yardsticks: Mapping[str, Yardstick],
    repetitions: int,
    watch: Watch,
) -> Iterator[Step]:
    """What is to be measured, by name."""
    measure = _Measure(folder, device, yardsticks, repetitions, watch)
    yield "growth of the broad view", functools.partial(measure.broad, sizes)
    for method in methods:
        yield f"growth of {method} with the corpus", functools.partial(measure.corpus, sizes, method)
        yield f"growth of {method} with K", functools.partial(measure.candidates, sizes, method)
        yield f"growth of {method} with frames", functools.partial(measure.frames, sizes, method)
        yield f"growth of {method} with tokens", functools.partial(measure.tokens, sizes, method)


@dataclass(frozen=True, slots=True, eq=False)
class _Measure:
    """Everything that does not change."""

    folder: Path
    device: torch.device
    yardsticks: Mapping[str, Yardstick]
    repetitions: int
    watch: Watch

    def broad(self, sizes: GrowthSizes) -> Growth:
        """One batch of queries over more and more vectors."""
        vectors = drawn_vectors(max(sizes.vectors), sizes.width)
        queries = vectors[: sizes.num_queries].copy()
        stages = ((number, broad_view(built(vectors[:number]), queries, 50, self.device)) for number in sizes.vectors)
        return self._grown("broad view", "videos", stages, f"{len(queries)} queries at once, width {sizes.width}")

    def corpus(self, sizes: GrowthSizes, method: str) -> Growth:
        """The same K candidates of more and more videos, small ones."""
        shape = (min(4, sizes.frames), min(5, sizes.tokens), min(128, sizes.width))
        stages = self._over_stores(sizes, method, ((number, number, shape) for number in sizes.corpora))
        return self._grown(f"rerank, {method}", "videos", stages, f"K = {sizes.top_k}, videos of {_of(shape)}")

    def candidates(self, sizes: GrowthSizes, method: str) -> Growth:
        """More and more candidates."""
        shape = (sizes.frames, sizes.tokens, sizes.width)
        with self._store(sizes.num_videos, shape) as store:
            stages = self._with_each(store, sizes, method)
            return self._grown(f"rerank, {method}", "K", stages, f"{sizes.num_videos} videos of {_of(shape)}")

    def frames(self, sizes: GrowthSizes, method: str) -> Growth:
        """More and more frames."""
        shapes = ((number, sizes.num_videos, (number, sizes.tokens, sizes.width)) for number in sizes.frame_counts)
        stages = self._over_stores(sizes, method, shapes)
        return self._grown(f"rerank, {method}", "frames", stages, f"K = {sizes.top_k}, {sizes.tokens} tokens a frame")

    def tokens(self, sizes: GrowthSizes, method: str) -> Growth:
        """More and more tokens of a frame."""
        shapes = ((number, sizes.num_videos, (sizes.frames, number, sizes.width)) for number in sizes.token_counts)
        stages = self._over_stores(sizes, method, shapes)
        return self._grown(f"rerank, {method}", "tokens a frame", stages, f"K = {sizes.top_k}, {sizes.frames} frames")

    def _over_stores(
        self, sizes: GrowthSizes, method: str, shapes: Iterator[tuple[int, int, tuple[int, int, int]]]
    ) -> Iterator[tuple[int, Stage]]:
        """A stage over a store of each shape; the store is gone when the next one is asked for."""
        for size, num_videos, shape in shapes:
            with self._store(num_videos, shape) as store, _opened(store, sizes, sizes.top_k, self.device) as reranking:
                yield size, reranking.stage(method)

    def _with_each(self, store: Store, sizes: GrowthSizes, method: str) -> Iterator[tuple[int, Stage]]:
        for top_k in sizes.candidates:
            with _opened(store, sizes, top_k, self.device) as reranking:
                yield top_k, reranking.stage(method)

    @contextmanager
    def _store(self, num_videos: int, shape: tuple[int, int, int]) -> Iterator[Store]:
        directory = self.folder / "growth"
        try:
            yield drawn_store(directory, num_videos, store_settings(*shape))
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _grown(self, name: str, variable: str, stages: Iterator[tuple[int, Stage]], detail: str) -> Growth:
        points = []
        for size, stage in stages:
            row = measure_stage(stage, self.yardsticks, self.repetitions, self.watch)
            points.append(GrowthPoint(size, 1 / row.rate, 1 / row.limit))
            unit, clock = row.unit, row.clock
        sizes = [point.size for point in points]
        found, counted = (
            exponent(sizes, seconds)
            for seconds in ([point.seconds for point in points], [point.limit_seconds for point in points])
        )
        return Growth(name, variable, unit, clock, tuple(points), found, counted, detail)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of log cost over log size, by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((place - mean_x) ** 2 for place in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread


@contextmanager
def _opened(store: Store, sizes: GrowthSizes, top_k: int, device: torch.device) -> Iterator[Reranking]:
    """Queries over all videos of a store."""
    with ExitStack() as stack:
        snapshot = stack.enter_context(store.snapshot())
        ids, pooled = first_videos(snapshot)
        texts = DrawnTexts(pooled, sizes.num_queries, device)
        yield Reranking(snapshot, built(pooled, ids, snapshot.commit_number), texts, top_k, MEMORY_BYTES, device)


def _of(shape: tuple[int, int, int]) -> str:
    return " x ".join(map(str, shape))
