"""TokenBinder's focused view against a plain one, and against the two limits: reading, and products of matrices.

The plain one reads each candidate with h5py and projects every token of it to a key and a value
(``benchmarks.plain_binder``). Both rank the same queries from the same files, in memory; texts are encoded before. Then
tokens are read from the disk, and scored in memory, each beside the machine's own rate.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.corpus import random_store, settings
from benchmarks.measure import Ratio, best_of, cpu_seconds
from benchmarks.plain_binder import HEADS, H5Reader, PlainBinder
from index_store.records import SEARCHABLE, Query
from index_store.settings import StoreSettings
from index_store.snapshot import Snapshot
from index_store.store import Store
from stages.index import build_index
from stages.models.clip import TextFeatures
from stages.rerank import rerank
from stages.rerankers.base import CandidateBatch, QueryBatch
from stages.rerankers.token_binder import TokenBinderReranker
from stages.search import BroadView, open_index

NUM_VIDEOS, NUM_QUERIES, TOP_K = 10_000, 1_000, 10
NUM_PLAIN = 40
"""Queries that the plain form ranks; more take as many times longer."""
INDICATORS = 4
SCALE = 100.0
NUM_READ = 400
"""Videos that are read from the disk at a time."""
REPETITIONS = 3
_VALUES = 8
"""As in ``stages.rerankers.fusion``."""
_READERS, _BLOCK, _SQUARE = 4, 4, 1024


@dataclass(frozen=True, slots=True)
class Work:
    """What one (query, candidate) pair takes, counted."""

    read_bytes: int
    """The candidate's tokens, as stored."""
    operations: int
    """Of the product of its tokens with 2 R + 8 columns, and of 8 sums of what that gives with R rows of weights."""
    plain_operations: int
    """Of projecting its tokens, and of logits and sums for R rows."""

    @staticmethod
    def of(shape: StoreSettings, plain: PlainBinder) -> Work:
        """At these sizes."""
        frames, tokens, width = shape.token_shape
        number, rows = frames * tokens, (INDICATORS - 1) * HEADS
        ours = 2 * number * (width * (2 * rows + _VALUES) + _VALUES * rows)
        return Work(2 * number * width, ours, plain.operations(number) + 2 * 2 * number * rows * width // HEADS)


def run(
    num_videos: int = NUM_VIDEOS,
    num_queries: int = NUM_QUERIES,
    num_plain: int = NUM_PLAIN,
    num_read: int = NUM_READ,
    shape: StoreSettings | None = None,
) -> Iterator[Ratio]:
    """All claims, over one store of random features; on one thread but where tokens are read."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            store = random_store(Path(folder) / "store", num_videos, shape or settings())
            build_index(store)
            _, num_tokens, width = store.settings.token_shape
            plain = PlainBinder.drawn(width, num_tokens)
            work = Work.of(store.settings, plain)
            with store.snapshot() as snapshot:
                yield from _against_plain(store, snapshot, plain, work, num_queries, min(num_plain, num_queries))
                yield _computing(snapshot, plain, work)
                yield _reading(store, snapshot, num_read)
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """A text encoder whose texts are numbers: rows of features that were drawn before."""

    features: TextFeatures

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Features of these rows."""
        rows = torch.tensor([int(text) for text in texts])
        all_of = self.features
        assert all_of.indicators is not None
        return TextFeatures(all_of.sentence[rows], all_of.words[rows], all_of.word_mask[rows], all_of.indicators[rows])


def _texts(number: int, width: int) -> TextFeatures:
    drawn = torch.randn(number, INDICATORS, width, generator=torch.Generator().manual_seed(5))
    words = torch.zeros(number, 1, width)
    return TextFeatures(drawn[:, 0], words, torch.ones(number, 1, dtype=torch.bool), drawn)


def _against_plain(
    store: Store, snapshot: Snapshot, plain: PlainBinder, work: Work, num_queries: int, num_plain: int
) -> Iterator[Ratio]:
    texts = _texts(num_queries, store.settings.embed_dim)
    queries = [Query(f"q{row}", str(row)) for row in range(num_queries)]
    index = open_index(snapshot)
    reader = H5Reader(snapshot, store.directory)
    reranker = TokenBinderReranker(plain.network, SCALE)
    recalled = BroadView(snapshot, index).candidates(texts.sentence[:num_plain].numpy(), TOP_K)
    assert texts.indicators is not None
    asked = texts.indicators[:num_plain, 1:]

    def plainly() -> list[dict[int, float]]:
        found = []
        for row, ids in enumerate(recalled.ids.tolist()):
            broad = torch.from_numpy(recalled.scores[row])
            delta = plain.delta(asked[row], *reader.read(ids), SCALE * broad)
            found.append(dict(zip(ids, (broad + delta / SCALE).tolist(), strict=True)))
        return found

    def ours() -> list[dict[int, float]]:
        ranked = rerank(snapshot, index, _Drawn(texts), queries, reranker, top_k=TOP_K)
        return [{hit.video_id: hit.score for hit in ranking.hits} for ranking in ranked]

    expected, found = plainly(), ours()
    seconds, plain_seconds = best_of(REPETITIONS, ours, plainly, clock=cpu_seconds)
    reader.close()
    each, plain_each = seconds / (num_queries * TOP_K), plain_seconds / (num_plain * TOP_K)
    frames, tokens, width = store.settings.token_shape
    detail = (
        f"{num_queries} queries, {len(index)} videos, K = {TOP_K}, M = {INDICATORS}, {frames} x {tokens} x {width} "
        f"float16: {1e6 * each:.0f} us a pair, plain {1e6 * plain_each:.0f} (of {num_plain} queries); "
        f"{work.operations / 1e6:.1f} million operations, plain {work.plain_operations / 1e6:.0f}, and "
        f"{work.read_bytes / 1e3:.0f} KB read"
    )
    yield Ratio("token-binder, plain / ours, CPU seconds", plain_each / each, 10.0, at_most=False, detail=detail)
    both = zip(expected, found[:num_plain], strict=True)
    apart = max(abs(score - other[video]) for scores, other in both for video, score in scores.items())
    moved = float(np.std([score for scores in expected for score in scores.values()] - recalled.scores.ravel()))
    detail = f"the focused view moves them by {moved:.3f}"
    yield Ratio("token-binder, largest difference of scores", apart, 1e-3, at_most=True, detail=detail)


def _computing(snapshot: Snapshot, plain: PlainBinder, work: Work) -> Ratio:
    """Scoring of loaded candidates, each of one query, against float32 of them, their lengths, and the product.

    The product counts as the machine's own rate would have it: that of square matrices.
    """
    num_queries = max(1, min(20, snapshot.num_searchable // TOP_K))
    tokens = snapshot.read_tokens(
        [record.id for record in itertools.islice(snapshot.videos(SEARCHABLE), num_queries * TOP_K)]
    )
    texts = _texts(num_queries, snapshot.settings.embed_dim)
    stored = torch.from_numpy(tokens.tokens)
    index = torch.arange(len(stored)).view(num_queries, -1)
    mask = torch.from_numpy(tokens.frame_mask)
    candidates = CandidateBatch(stored, None, mask, index, torch.rand(index.shape))
    reranker = TokenBinderReranker(plain.network, SCALE)
    frames, places, width = stored.shape[1:]
    rows = (INDICATORS - 1) * HEADS
    columns = 2 * rows + _VALUES
    block, asked = torch.randn(_BLOCK, frames * places, width), torch.randn(_BLOCK, width, columns)
    square = torch.randn(_SQUARE, _SQUARE)
    num_blocks = -(-index.numel() // _BLOCK)

    def converted() -> None:
        for start in range(0, len(stored), _BLOCK):
            part = stored[start : start + _BLOCK].flatten(1, 2)
            block[: len(part)].copy_(part)

    def lengths() -> None:
        for _ in range(num_blocks):
            torch.linalg.vector_norm(block, dim=-1)

    def products() -> None:
        for _ in range(num_blocks):
            torch.bmm(block, asked)

    seconds, *limits, of_square = best_of(
        3 * REPETITIONS,
        lambda: reranker.rank(QueryBatch.of(texts), candidates),
        converted,
        lengths,
        products,
        lambda: square @ square,
        clock=time.process_time,
    )
    each, conversion, length, of_shape = (1e6 * spent / index.numel() for spent in (seconds, *limits))
    full_rate = 2 * _SQUARE**3 / of_square / 1e9
    product = work.operations / full_rate / 1e3
    detail = (
        f"{each:.0f} us a pair in memory; {conversion:.0f} us to make float32 of {work.read_bytes / 1e3:.0f} KB of "
        f"float16, {length:.0f} us for lengths, and {product:.0f} us for "
        f"{work.operations / 1e6:.1f} million operations at {full_rate:.0f} billion a second, as square matrices of "
        f"{_SQUARE} have it ([{frames * places}, {width}] x [{width}, {columns}] by itself: {of_shape:.0f} us). The "
        f"product alone is {product / each:.2f} of all, and would be {product / (conversion + length + product):.2f} "
        f"if the rest cost nothing"
    )
    name = "token-binder in memory, (conversion + lengths + product at full rate) / all"
    return Ratio(name, (conversion + length + product) / each, 0.5, at_most=False, detail=detail)


def _reading(store: Store, snapshot: Snapshot, num_read: int) -> Ratio:
    """Tokens from the disk, nothing of which is in memory, against plain ``pread`` of the same places."""
    ids = [record.id for record in snapshot.videos(SEARCHABLE)]
    chosen = np.random.default_rng(6).permutation(ids)[:num_read].tolist()
    files = {shard.id: store.directory / "shards" / shard.name for shard in snapshot.shards()}
    tokens_of = {shard.id: next(one for one in shard.datasets if one.name == "tokens") for shard in snapshot.shards()}
    out = np.empty((len(chosen), *store.settings.token_shape), np.float16)
    places = [(place, row) for row, place in enumerate(snapshot.locations(chosen))]
    plain_out = np.empty_like(out)

    def pread(num_threads: int) -> None:
        opened = {shard: os.open(path, os.O_RDONLY) for shard, path in files.items()}

        def read_one(item: tuple[tuple[int, int], int]) -> None:
            (shard, row), into = item
            dataset = tokens_of[shard]
            os.preadv(opened[shard], [plain_out[into]], dataset.offset + row * dataset.row_bytes)

        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(read_one, sorted(places)))
        for descriptor in opened.values():
            os.close(descriptor)

    def cold(action: Callable[[], object]) -> float:
        for path in files.values():
            _forget(path)
        started = time.perf_counter()
        action()
        return time.perf_counter() - started

    ours, one, several = (
        min(times)
        for times in zip(
            *(
                (cold(lambda: snapshot.read_tokens(chosen, out)), cold(lambda: pread(1)), cold(lambda: pread(_READERS)))
                for _ in range(REPETITIONS)
            ),
            strict=True,
        )
    )
    np.testing.assert_array_equal(out, plain_out)
    rate = out.nbytes / 1e9
    detail = (
        f"{rate / ours:.2f} GB/s, pread {rate / one:.2f} on one thread and {rate / several:.2f} on {_READERS}, "
        f"{len(chosen)} random videos of {len(ids)}, in the order of the disk, none of them in memory"
    )
    return Ratio("token-binder, reading from disk / pread", min(one, several) / ours, 0.8, at_most=False, detail=detail)


def _forget(path: Path) -> None:
    """Take a file out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
