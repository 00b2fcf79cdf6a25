"""Two stages against scoring every pair: a method over the K that the broad view recalls, and over all N videos.

Both sides run the same code from the same files: the stored tokens, or what was prepared of them. Queries come in two
ways. All at once: scoring everything then reads a video once for all of them, while in two stages each has candidates
of its own. One at a time, as somebody sends them: then both sides read what they score, N videos or K, and what was
opened for the first query stays open.

Videos are planted: a text and its words lie near the frames of one video, so that scoring everything has a right
answer.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.corpus import settings
from benchmarks.measure import Ratio, best_of, cpu_seconds
from index_store.records import SEARCHABLE, Query, Ranking, VideoFeatures, VideoFile, VideoOutcome
from index_store.settings import StoreSettings
from index_store.store import Store
from stages.index import build_index
from stages.models.clip import TextFeatures
from stages.prepare import prepare
from stages.rerank import FocusedView, rerank
from stages.rerankers import QueryBatch, Reranker, make_reranker
from stages.rerankers.video_sides import video_side_of
from stages.search import BroadView, open_index
from stages.token_batches import DEFAULT_MEMORY_BYTES
from stages.video_source import VideoSource, open_source

METHODS = ("ucofia", "eercf")
NUM_QUERIES, TOP_K, WORDS, REPETITIONS = 100, 50, 12, 3
FRAMES, TOKENS = 12, 5
"""Of each frame [CLS] and four patches, as ``--keep-tokens 4`` stores them; UCoFiA selects three."""
WIDTH, NUM_VIDEOS = 512, 10_000
GROWTH_WIDTH, GROWTH = 128, (1_000, 10_000, 100_000)
"""Narrower, so that 100,000 videos take 5 GB of disk."""
SCORED = 10_000
"""Videos that scoring everything is timed on; more take as many times longer."""
ALONE = 3
"""Queries that all videos are scored with one after the other."""
_BEST = 10
_BLOCK = 500
_PER_COMMIT = 500
_TEXT_NOISE = 0.21
"""Of a text around its video's direction, of length 0.21 sqrt(D) to its 1: so far that both sides err now and then."""


@dataclass(frozen=True, slots=True)
class Alone:
    """CPU seconds of one query by itself, on one thread."""

    exhaustive: float
    """Every video read and scored."""
    broad: float
    """The first stage."""
    two_stages: float
    """Both, to the finished ranking."""
    is_same: bool
    """Whether every ranking is the one that the query has among the others."""

    @property
    def ratio(self) -> float:
        """How many times faster two stages are."""
        return self.exhaustive / self.two_stages

    def bound(self, num_videos: int) -> float:
        """The ratio if a candidate cost what a video costs when everything is scored, and nothing else were to do."""
        return self.exhaustive / (self.broad + TOP_K / num_videos * self.exhaustive)


@dataclass(frozen=True, slots=True)
class Found:
    """CPU seconds for all queries on one thread, and what they found."""

    exhaustive: float
    """Every video scored."""
    broad: float
    """The first stage."""
    two_stages: float
    """Both, to finished rankings."""
    reading: float
    """Reading, and checking where that is done, the candidates of one query after the other: what no scoring avoids."""
    row_bytes: int
    """Read of a candidate."""
    right: float
    """Share of the queries whose planted video comes first when everything is scored, in percent."""
    kept: float
    """Of those, the share whose first stays first in two stages, in percent."""
    same_best: float
    """Share of the queries whose ten best of the K are those of all scores, in the same order, in percent."""
    alone: Alone

    @property
    def focused(self) -> float:
        """CPU seconds of all but the first stage."""
        return self.two_stages - self.broad


def run(
    num_videos: int = NUM_VIDEOS,
    growth: Sequence[int] = GROWTH,
    num_queries: int = NUM_QUERIES,
    methods: Sequence[str] = METHODS,
) -> Iterator[Ratio]:
    """For each method the ratio at ViT-B/32's width, what is kept, twice as many videos, and how both sides grow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = measure(num_videos, WIDTH, num_queries, methods)
        yield from _ratios(found, num_videos, num_queries)
        yield from _one_query(found, num_videos)
        yield from _one_query(measure(2 * num_videos, WIDTH, num_queries, methods), 2 * num_videos)
        grown = {number: measure(number, GROWTH_WIDTH, num_queries, methods) for number in growth}
        for name in methods:
            yield from _growth(name, {number: of_methods[name] for number, of_methods in grown.items()})
    finally:
        torch.set_num_threads(before)


def _ratios(found: dict[str, Found], num_videos: int, num_queries: int) -> Iterator[Ratio]:
    where = f"{num_queries} queries, {num_videos} videos, K = {TOP_K}, {FRAMES} frames, D = {WIDTH}"
    wanted = _wanted(num_videos)
    for name, times in found.items():
        most = times.exhaustive / (times.broad + times.reading)
        said = (
            f"{where}; {_said(times, num_queries)}; with scoring for nothing, only reading {times.row_bytes} bytes a "
            f"candidate, it would be {most:.0f}"
        )
        ratio = times.exhaustive / times.two_stages
        yield Ratio(f"{name}, all scored / two stages", ratio, wanted, at_most=False, detail=said)
        yield Ratio(f"{name}, same ten best of K, percent", times.same_best, 100.0, at_most=False)
        detail = f"of the {times.right:.0f} % that are right when all are scored"
        yield Ratio(f"{name}, first places kept, percent", times.kept, 95.0, at_most=False, detail=detail)
    if {"ucofia", "eercf"} <= found.keys():
        ratio = found["ucofia"].exhaustive / found["eercf"].two_stages
        yield Ratio("ucofia, all scored / eercf, two stages", ratio, wanted, at_most=False, detail=where)


def _one_query(found: dict[str, Found], num_videos: int) -> Iterator[Ratio]:
    """The same three for a query by itself."""
    for name, times in found.items():
        yield _alone(name, times, num_videos)
    if {"ucofia", "eercf"} <= found.keys():
        ratio = found["ucofia"].alone.exhaustive / found["eercf"].alone.two_stages
        name = f"one query, ucofia, all scored / eercf, two stages, {num_videos} videos"
        yield Ratio(name, ratio, _wanted(num_videos), at_most=False)


def _alone(name: str, times: Found, num_videos: int) -> Ratio:
    """What a query by itself gains, and why not more."""
    alone = times.alone
    all_bytes, index_bytes = num_videos * times.row_bytes, 4 * num_videos * WIDTH
    said = (
        f"all {1e3 * alone.exhaustive:.0f} ms ({1e6 * alone.exhaustive / num_videos:.0f} us a pair), two stages "
        f"{1e3 * alone.two_stages:.1f} ms, of which the broad view {1e3 * alone.broad:.1f}; with that and K such pairs "
        f"only it would be {alone.bound(num_videos):.0f}; {all_bytes / 1e6:.0f} MB are read of all, "
        f"{times.row_bytes * TOP_K / 1e6:.1f} MB of K, {index_bytes / 1e6:.0f} MB of the index; rankings "
        f"{'as' if alone.is_same else 'NOT as'} among the others"
    )
    name = f"one query, {name}, all scored / two stages, {num_videos} videos"
    return Ratio(name, alone.ratio, _wanted(num_videos), at_most=False, detail=said)


def _wanted(num_videos: int) -> float:
    """100 times, or half of what N / K allows."""
    return min(100.0, num_videos / TOP_K / 2)


def _growth(name: str, grown: dict[int, Found]) -> Iterator[Ratio]:
    smallest, largest = grown[min(grown)], grown[max(grown)]
    times = max(grown) / min(grown)
    detail = f"D = {GROWTH_WIDTH}; " + "; ".join(
        f"N = {number}: all {found.exhaustive:.1f} s, broad {found.broad:.3f} s, focused {found.focused:.2f} s, "
        f"{found.exhaustive / found.two_stages:.0f} x, kept {found.kept:.0f} %; one query: all "
        f"{1e3 * found.alone.exhaustive:.0f} ms, two stages {1e3 * found.alone.two_stages:.1f} ms, "
        f"{found.alone.ratio:.0f} x"
        for number, found in grown.items()
    )
    focused = largest.focused / smallest.focused
    limit = max(2.0, times / 20)  # among few videos, queries share their candidates
    yield Ratio(f"{name}, focused view, N x {times:.0f}", focused, limit, at_most=True, detail=detail)
    exhaustive = largest.exhaustive / smallest.exhaustive
    yield Ratio(f"{name}, all scored, N x {times:.0f}", exhaustive, times / 2, at_most=False)
    name = f"one query, {name}, all scored / two stages, {max(grown)} videos, D = {GROWTH_WIDTH}"
    yield Ratio(name, largest.alone.ratio, _wanted(max(grown)), at_most=False)


def _said(found: Found, num_queries: int) -> str:
    each = 1e6 / (num_queries * TOP_K)
    return (
        f"all {found.exhaustive:.1f} s, two stages {found.two_stages:.2f} s ({each * found.two_stages:.0f} us a "
        f"candidate: broad view {each * found.broad:.0f}, reading {each * found.reading:.0f})"
    )


def measure(num_videos: int, width: int, num_queries: int, methods: Sequence[str]) -> dict[str, Found]:
    """Both sides of each method over one planted store."""
    with tempfile.TemporaryDirectory() as folder:
        store = planted_store(Path(folder) / "store", num_videos, width)
        build_index(store)
        return {
            name: _measure(store, make_reranker(name), PlantedTexts(num_videos, width), num_queries) for name in methods
        }


def _measure(store: Store, reranker: Reranker, texts: PlantedTexts, num_queries: int) -> Found:
    frames, tokens, width = store.settings.token_shape
    row_bytes = 2 * frames * tokens * width
    if video_side_of(reranker) is not None:
        row_bytes = prepare(store, reranker).bytes_per_video
    queries = [Query(f"q{place}", str(place)) for place in range(num_queries)]
    encoded = texts.encode_texts([query.text for query in queries])
    sentences = encoded.sentence.numpy()
    with store.snapshot() as snapshot:
        index = open_index(snapshot)
        view = BroadView(snapshot, index)
        source = open_source(snapshot, reranker, TOP_K, DEFAULT_MEMORY_BYTES, torch.device("cpu"))
        recalled = view.candidates(sentences, TOP_K).ids.tolist()
        broad, two_stages, reading = best_of(
            REPETITIONS,
            lambda: view.candidates(sentences, TOP_K),
            lambda: list(rerank(snapshot, index, Encoded(encoded), queries, reranker, top_k=TOP_K)),
            lambda: [source.read(ids) for ids in recalled],
            clock=cpu_seconds,
        )
        ranked = list(rerank(snapshot, index, Encoded(encoded), queries, reranker, top_k=TOP_K))
        ids = [record.id for record in sorted(snapshot.videos(SEARCHABLE), key=lambda record: record.key)]
        some = ids[:SCORED]
        started = cpu_seconds()
        scores = score_everything(source, some, QueryBatch.of(encoded), reranker)
        exhaustive = (cpu_seconds() - started) * len(ids) / len(some)
        focus = FocusedView(snapshot, index, reranker, top_k=TOP_K)
        alone = _measure_alone(view, focus, source, reranker, texts, queries, ranked, some, len(ids))
    best = [some[place] for place in scores.argmax(axis=1).tolist()]
    right = [video == ids[texts.video_of(row)] for row, video in enumerate(best)]
    stays = [ranking.hits[0].video_id == video for ranking, video in zip(ranked, best, strict=True)]
    kept = [stay for stay, is_right in zip(stays, right, strict=True) if is_right]
    same = [_same_best(ranking, some, row) for ranking, row in zip(ranked, scores, strict=True)]
    shares = _percent(right), _percent(kept), _percent(same)
    return Found(exhaustive, broad, two_stages, reading, row_bytes, *shares, alone)


def _percent(values: Sequence[bool]) -> float:
    return 100 * float(np.mean(values)) if values else 0.0


def _measure_alone(
    view: BroadView,
    focus: FocusedView,
    source: VideoSource,
    reranker: Reranker,
    texts: PlantedTexts,
    queries: Sequence[Query],
    expected: Sequence[Ranking],
    some: Sequence[int],
    num_videos: int,
) -> Alone:
    """One query after the other; scoring everything is timed with a few of them, on the videos ``some``."""
    encoded = [texts.encode_texts([query.text]) for query in queries]
    sentences = [features.sentence.numpy() for features in encoded]

    def rank_each() -> list[Ranking]:
        asked = zip(encoded, queries, strict=True)
        return [ranking for features, query in asked for ranking in focus.rankings(Encoded(features), [query])]

    def score_some() -> None:
        for features in encoded[:ALONE]:
            score_everything(source, some, QueryBatch.of(features), reranker)

    is_same = rank_each() == list(expected)  # and now everything is in memory
    exhaustive, two_stages, broad = best_of(
        REPETITIONS,
        score_some,
        rank_each,
        lambda: [view.candidates(sentence, TOP_K) for sentence in sentences],
        clock=cpu_seconds,
    )
    exhaustive *= num_videos / len(some) / len(encoded[:ALONE])
    return Alone(exhaustive, broad / len(queries), two_stages / len(queries), is_same)


def _same_best(ranking: Ranking, ids: Sequence[int], scores: NDArray[np.float32]) -> bool:
    """Whether the best of the candidates, with their scores, are what all scores [N] of the videos ``ids`` say."""
    score_of = dict(zip(ids, scores.tolist(), strict=True))
    found = [(hit.video_id, hit.focused_score) for hit in ranking.hits if hit.video_id in score_of]
    expected = sorted(((video, score_of[video]) for video, _ in found), key=lambda pair: (-pair[1], pair[0]))
    return found[:_BEST] == expected[:_BEST]


@torch.inference_mode()
def score_everything(
    source: VideoSource, ids: Sequence[int], queries: QueryBatch, reranker: Reranker
) -> NDArray[np.float32]:
    """Scores float32 [Q, N] of every query with every video, by the same code and from the same files."""
    scores = np.empty((len(queries), len(ids)), np.float32)
    for start in range(0, len(ids), _BLOCK):
        part = ids[start : start + _BLOCK]
        index = np.tile(np.arange(len(part)), (len(queries), 1))
        found = source.read(part).rank(reranker, queries, index, np.zeros(index.shape, np.float32))
        scores[:, start : start + len(part)] = found.numpy()
    return scores


# -- planted features -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text encoder that has encoded its only texts before."""

    features: TextFeatures

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """The features."""
        assert len(texts) == len(self.features.sentence)
        return self.features


def direction(number: int, width: int) -> NDArray[np.float32]:
    """What a video shows, float32 [D], unit length."""
    drawn = np.random.default_rng([1, number]).standard_normal(width, np.float32)
    unit: NDArray[np.float32] = drawn / np.linalg.norm(drawn)
    return unit


@dataclass(frozen=True, slots=True)
class PlantedTexts:
    """A text encoder whose texts are numbers; each lies near a video of its own."""

    num_videos: int
    width: int

    def video_of(self, text: int) -> int:
        """The place of a text's video among all videos; within the first SCORED."""
        return text * 97 % min(self.num_videos, SCORED)

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Features of WORDS words each."""
        words = np.stack([self._words(int(text)) for text in texts])
        mask = torch.ones(len(texts), WORDS, dtype=torch.bool)
        return TextFeatures(torch.from_numpy(words[:, -1].copy()), torch.from_numpy(words), mask)

    def _words(self, text: int) -> NDArray[np.float32]:
        """float32 [W, D]; the last one is the sentence."""
        noise = np.random.default_rng([2, text]).standard_normal((WORDS, self.width), np.float32)
        words: NDArray[np.float32] = direction(self.video_of(text), self.width) + np.float32(_TEXT_NOISE) * noise
        return words


def planted_store(directory: Path, num_videos: int, width: int) -> Store:
    """A store whose videos show ``direction``, with the noise of tokens drawn once and shifted for each video."""
    store = Store.create(directory, settings(FRAMES, TOKENS, width))
    with store.writer() as writer:
        for start in range(0, num_videos, _PER_COMMIT):
            numbers = range(start, min(start + _PER_COMMIT, num_videos))
            writer.commit([_outcome(store.settings, directory, number) for number in numbers])
    return store


def _outcome(shape: StoreSettings, directory: Path, number: int) -> VideoOutcome:
    rng = np.random.default_rng([3, number])
    frames, _, width = shape.token_shape
    noise = np.roll(_noise(shape.token_shape), int(rng.integers(frames * width)))
    tokens = direction(number, width) + noise
    embeddings = tokens[:, 0] / np.linalg.norm(tokens[:, 0], axis=1, keepdims=True)
    pooled = embeddings.mean(axis=0)
    features = VideoFeatures(
        tokens=tokens.astype(np.float16),
        token_scales=None,
        frame_mask=np.ones(frames, np.bool_),
        timestamps_seconds=np.arange(frames, dtype=np.float64),
        frame_embeddings=tokens[:, 0].astype(np.float16),
        pooled=pooled / np.linalg.norm(pooled),
    )
    file = VideoFile(f"{number:07d}.mp4", directory / f"{number:07d}.mp4", 1, 1, 1)
    return VideoOutcome(file, "ok", f"{number:064x}", 10.0, "none", features=features)


@functools.cache
def _noise(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """As long as what it is added to."""
    drawn = np.random.default_rng(0).standard_normal(shape, np.float32)
    noise: NDArray[np.float32] = drawn / np.float32(np.sqrt(shape[-1]))
    return noise
