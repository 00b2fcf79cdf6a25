"""Focused view: bytes read and CPU seconds of rerank with what ``tbpipe prepare`` left, against the same without it.

Random features of ViT-B/32 sizes, heads of random weights with four temporal layers, and queries that share few
candidates, as in a large store.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.corpus import FRAMES, WIDTH, random_store
from benchmarks.measure import Ratio, best_of, cpu_seconds
from index_store.records import Query, Ranking
from index_store.store import Store
from stages.index import build_index
from stages.models.clip import TextFeatures
from stages.prepare import prepare
from stages.rerank import rerank
from stages.rerankers.base import Reranker
from stages.rerankers.selection import PredictorB
from stages.rerankers.ts2net import Ts2NetHead, Ts2NetReranker
from stages.rerankers.ucofia import UcofiaHead, UcofiaReranker
from stages.rerankers.xclip import XClipHead, XClipReranker
from stages.search import open_index

NUM_VIDEOS, NUM_QUERIES, TOP_K, LAYERS, WORDS = 300, 6, 50, 4, 32

METHODS: dict[str, Callable[[], Reranker]] = {
    "x-clip": lambda: XClipReranker(XClipHead(WIDTH, LAYERS, num_words=WORDS, num_frames=FRAMES).eval()),
    "ucofia": lambda: UcofiaReranker(
        UcofiaHead(WIDTH, LAYERS, num_words=WORDS, num_frames=FRAMES, predictor=PredictorB(WIDTH)).eval()
    ),
    "ts2-net": lambda: Ts2NetReranker(Ts2NetHead(WIDTH, LAYERS).eval()),
}


class RandomTexts:
    """Twelve words a text, drawn anew for each."""

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Features of these texts."""
        seeds = (torch.Generator().manual_seed(int(text)) for text in texts)
        words = torch.stack([torch.randn(WORDS, WIDTH, generator=seed) for seed in seeds])
        mask = (torch.arange(WORDS) < 12).expand(len(texts), -1)
        return TextFeatures(words[:, 11], words.masked_fill(~mask.unsqueeze(-1), 0.0), mask)


def run(num_videos: int = NUM_VIDEOS, num_queries: int = NUM_QUERIES, repetitions: int = 3) -> Iterator[Ratio]:
    """Two ratios for each method, on one thread. Raises AssertionError where the rankings differ."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            store = random_store(Path(folder) / "store", num_videos)
            build_index(store)
            for name, make in METHODS.items():
                torch.manual_seed(0)
                yield from _measure(store, name, make(), num_queries, repetitions)
    finally:
        torch.set_num_threads(before)


def _measure(store: Store, name: str, reranker: Reranker, num_queries: int, repetitions: int) -> Iterator[Ratio]:
    def answer() -> list[Ranking]:
        asked = [Query(str(number), str(number)) for number in range(num_queries)]
        with store.snapshot() as snapshot:
            return list(rerank(snapshot, open_index(snapshot), RandomTexts(), asked, reranker, top_k=TOP_K))

    prepared = store.directory / "prepared"
    aside = store.directory / ".tmp-prepared"

    def without() -> list[Ranking]:
        prepared.rename(aside)
        try:
            return answer()
        finally:
            aside.rename(prepared)

    report = prepare(store, reranker)
    assert answer() == without()
    (bytes_with,) = best_of(1, answer, clock=_bytes_read)
    (bytes_without,) = best_of(1, without, clock=_bytes_read)
    seconds, limit = best_of(repetitions, answer, without, clock=cpu_seconds)
    num_read = len({hit.video_id for ranking in answer() for hit in ranking.hits})
    detail = f"{num_queries} queries, {num_read} candidates, {report.bytes_per_video} bytes prepared a video; "
    read = f"{bytes_with / 1e6:.1f} MB and {bytes_without / 1e6:.1f} MB"
    yield Ratio(
        f"{name}, bytes read prepared / not", bytes_with / bytes_without, 0.3, at_most=True, detail=detail + read
    )
    took = f"{seconds:.3f} s and {limit:.3f} s"
    yield Ratio(f"{name}, CPU seconds prepared / not", seconds / limit, 1.0, at_most=True, detail=detail + took)


def _bytes_read() -> float:
    """Bytes that this process has asked the system for, from disk or memory (Linux)."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return float(fields["rchar"])
