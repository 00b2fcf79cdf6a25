"""How cost grows with one size while the others stay: the corpus, K, frames, tokens."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

USUAL_METHODS = ("eercf", TOKEN_BINDER)
"""One that scores pairs, and the one that compares candidates."""


Shape = tuple[int, int, int]
"""F x P x D."""
Step = tuple[str, Callable[[], Growth]]


@dataclass(frozen=True, slots=True)
class Setting:
    """What does not change."""

    shape: Shape
    """Of a video."""
    top_k: int
    memory_bytes: int


def growth_steps(
    sizes: GrowthSizes,
    setting: Setting,
    methods: Sequence[str],
    folder: Path,
    device: torch.device,
    yardsticks: Mapping[str, Yardstick],
    repetitions: int,
    watch: Watch,
) -> Iterator[Step]:
    """What is to be measured, by name."""
    measure = _Measure(setting, folder, device, yardsticks, repetitions, watch)
    yield "growth of the broad view", functools.partial(measure.broad, sizes)
    for method in methods:
        yield f"growth of {method} with the corpus", functools.partial(measure.corpus, sizes, method)
        yield f"growth of {method} with K", functools.partial(measure.candidates, sizes, method)
        yield f"growth of {method} with frames", functools.partial(measure.frames, sizes, method)
        yield f"growth of {method} with tokens", functools.partial(measure.tokens, sizes, method)


@dataclass(frozen=True, slots=True, eq=False)
class _Measure:
    """How to measure."""

    setting: Setting
    folder: Path
    device: torch.device
    yardsticks: Mapping[str, Yardstick]
    repetitions: int
    watch: Watch

    def broad(self, sizes: GrowthSizes) -> Growth:
        """One batch of queries over more and more vectors."""
        width = self.setting.shape[2]
        vectors = drawn_vectors(max(sizes.vectors), width)
        queries = vectors[: sizes.num_queries].copy()
        stages = ((number, broad_view(built(vectors[:number]), queries, 50, self.device)) for number in sizes.vectors)
        return self._grown("broad view", "videos", stages, f"{len(queries)} queries at once, width {width}")

    def corpus(self, sizes: GrowthSizes, method: str) -> Growth:
        """The same K candidates of more and more videos, small ones."""
        frames, tokens, width = self.setting.shape
        shape = (min(4, frames), min(5, tokens), min(128, width))
        stages = self._over_stores(sizes, method, ((number, number, shape) for number in sizes.corpora))
        return self._grown(f"rerank, {method}", "videos", stages, f"K = {self.setting.top_k}, videos of {_of(shape)}")

    def candidates(self, sizes: GrowthSizes, method: str) -> Growth:
        """More and more candidates."""
        shape = self.setting.shape
        with self._store(sizes.num_videos, shape) as store:
            stages = self._with_each(store, sizes, method)
            return self._grown(f"rerank, {method}", "K", stages, f"{sizes.num_videos} videos of {_of(shape)}")

    def frames(self, sizes: GrowthSizes, method: str) -> Growth:
        """More and more frames."""
        frames, tokens, width = self.setting.shape
        numbers = _distinct(frames, sizes.frames)
        shapes = ((number, sizes.num_videos, (number, tokens, width)) for number in numbers)
        stages = self._over_stores(sizes, method, shapes)
        return self._grown(f"rerank, {method}", "frames", stages, f"K = {self.setting.top_k}, {tokens} tokens a frame")

    def tokens(self, sizes: GrowthSizes, method: str) -> Growth:
        """More and more tokens of a frame."""
        frames, tokens, width = self.setting.shape
        numbers = _distinct(tokens, sizes.tokens)
        shapes = ((number, sizes.num_videos, (frames, number, width)) for number in numbers)
        stages = self._over_stores(sizes, method, shapes)
        return self._grown(f"rerank, {method}", "tokens a frame", stages, f"K = {self.setting.top_k}, {frames} frames")

    def _over_stores(
        self, sizes: GrowthSizes, method: str, shapes: Iterator[tuple[int, int, Shape]]
    ) -> Iterator[tuple[int, Stage]]:
        """A stage over a store of each shape; the store is gone when the next one is asked for."""
        for size, num_videos, shape in shapes:
            with self._store(num_videos, shape) as store, self._opened(store, sizes, self.setting.top_k) as reranking:
                yield size, reranking.stage(method)

    def _with_each(self, store: Store, sizes: GrowthSizes, method: str) -> Iterator[tuple[int, Stage]]:
        for top_k in sizes.candidates:
            with self._opened(store, sizes, top_k) as reranking:
                yield top_k, reranking.stage(method)

    @contextmanager
    def _opened(self, store: Store, sizes: GrowthSizes, top_k: int) -> Iterator[Reranking]:
        """Queries over all videos of a store."""
        with store.snapshot() as snapshot:
            ids, pooled = first_videos(snapshot)
            texts = DrawnTexts(pooled, sizes.num_queries, self.device)
            index = built(pooled, ids, snapshot.commit_number)
            yield Reranking(snapshot, index, texts, top_k, self.setting.memory_bytes, self.device)

    @contextmanager
    def _store(self, num_videos: int, shape: Shape) -> Iterator[Store]:
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
            exponent(sizes[-2:], seconds[-2:])
            for seconds in ([point.seconds for point in points], [point.limit_seconds for point in points])
        )
        return Growth(name, variable, unit, clock, tuple(points), found, counted, detail)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of log cost over log size, by least squares where there are more than two; one alone has none, 0."""
    if len(sizes) < 2:
        return 0.0
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((place - mean_x) ** 2 for place in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread


def _distinct(size: int, shares: Sequence[float]) -> list[int]:
    """These shares of a size, at least 1 each, ascending."""
    return sorted({max(1, round(size * share)) for share in shares})


def _of(shape: Shape) -> str:
    return " x ".join(map(str, shape))
