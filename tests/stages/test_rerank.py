from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from index_store.errors import StoreError, UsageError
from index_store.records import Query, Ranking, VideoOutcome
from index_store.settings import SamplingSettings
from index_store.store import Store
from stages.index import build_index
from stages.rerank import FocusedView, rerank
from stages.rerankers import CandidateBatch, QueryBatch, make_reranker
from stages.rerankers.eercf import EercfReranker
from stages.search import open_index, search
from tests.forked import peak_memory
from tests.stages.corpus import SETTINGS, DrawnTexts, file, make_store, outcome, queries, settings_with
from tests.stages.test_rerankers import transcribed

VIDEO_BYTES = 4 * 6 * 32 * 2
"""Of the tokens of one video of the corpus, float16."""


def ranked(store: Store, asked: list[Query], method: str = "eercf", **options: int) -> list[Ranking]:
    with store.snapshot() as snapshot:
        return list(rerank(snapshot, open_index(snapshot), DrawnTexts(), asked, make_reranker(method), **options))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = make_store(tmp_path_factory.mktemp("rerank") / "store", 60)
    build_index(made)
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [settings_with(), settings_with("int8"), settings_with(keep="2"), settings_with(keep="cls")]
)
def test_the_whole_way_equals_a_plain_transcription(tmp_path: Path, settings: object) -> None:
    store = make_store(tmp_path, 40, settings)  # type: ignore[arg-type]
    build_index(store)
    asked = queries(20)
    found = ranked(store, asked, top_k=15)
    assert [ranking.query_id for ranking in found] == [query.id for query in asked]
    with store.snapshot() as snapshot:
        recalled = list(search(snapshot, open_index(snapshot), DrawnTexts(), asked, 15))
        everything = snapshot.read_tokens(range(1, 41))
    tokens = torch.from_numpy(everything.tokens).float()
    if everything.scales is not None:
        tokens *= torch.from_numpy(everything.scales)[..., None]
    for query, ranking, broad in zip(asked, found, recalled, strict=True):
        assert {hit.video_id: hit.broad_score for hit in ranking.hits} == {
            hit.video_id: hit.score for hit in broad.hits
        }
        scores = [hit.score for hit in ranking.hits]
        assert scores == sorted(scores, reverse=True)
        sentence = DrawnTexts().encode_texts([query.text]).sentence[0]
        for hit in ranking.hits:
            row = hit.video_id - 1
            mask = torch.from_numpy(everything.frame_mask[row])
            assert hit.focused_score == pytest.approx(transcribed(sentence, tokens[row], mask), abs=1e-5)
            frames = torch.nn.functional.normalize(tokens[row, :, 0][mask], dim=-1)
            assert hit.moment_seconds == everything.timestamps_seconds[row][int((frames @ sentence).argmax())]


@pytest.mark.slow
@pytest.mark.parametrize("videos_in_memory", [10, 11, 25, 60])
def test_rankings_do_not_depend_on_the_batches(store: Store, videos_in_memory: int) -> None:
    asked = queries(40)
    expected = ranked(store, asked, top_k=10)
    assert ranked(store, asked, top_k=10, memory_bytes=2 * VIDEO_BYTES * videos_in_memory) == expected
    assert ranked(store, asked[::-1], top_k=10) == expected[::-1]
    assert [ranking for query in asked[:12] for ranking in ranked(store, [query], top_k=10)] == expected[:12]


@pytest.mark.parametrize("method", ["eercf", "ucofia"])
def test_what_is_opened_once_ranks_call_after_call(store: Store, method: str) -> None:
    """Queries alone, then several at once, in one call each, by the same buffers."""
    expected = ranked(store, queries(6), method, top_k=10)
    with store.snapshot() as snapshot:
        view = FocusedView(snapshot, open_index(snapshot), make_reranker(method), top_k=10)
        parts = queries(6)[:1], queries(6)[1:2], queries(6)[2:]
        found = [ranking for part in parts for ranking in view.rankings(DrawnTexts(), part)]
    assert found == expected


def test_k_larger_than_the_corpus_ranks_every_video(store: Store) -> None:
    for ranking in ranked(store, queries(3), top_k=10_000):
        assert sorted(hit.video_id for hit in ranking.hits) == list(range(1, 61))


def test_the_broad_method_keeps_the_broad_order(store: Store) -> None:
    with store.snapshot() as snapshot:
        recalled = list(search(snapshot, open_index(snapshot), DrawnTexts(), queries(10), 20))
    expected = [
        replace(ranking, hits=tuple(replace(hit, focused_score=hit.broad_score) for hit in ranking.hits))
        for ranking in recalled
    ]
    assert ranked(store, queries(10), "broad", top_k=20) == expected


def test_copies_tie_exactly_and_are_ordered_by_id(tmp_path: Path) -> None:
    store = make_store(tmp_path, 30)
    with store.writer() as writer:
        writer.commit([VideoOutcome(file(100 + number), "ok", same_content_as=f"{7:064x}") for number in range(9)])
        writer.commit([outcome(7, content=f"{number:064x}") for number in (200,)])  # replaces 7 itself
        twins = [replace(outcome(7, content=f"{number:064x}"), file=file(number)) for number in (300, 301)]
        writer.commit(twins)  # the same features, extracted three times
    build_index(store)
    (ranking,) = ranked(store, [Query("a", "video7 thing")], top_k=12)
    twelve = [hit.video_id for hit in ranking.hits]
    assert twelve == [8, *range(31, 42)]
    assert len({hit.focused_score for hit in ranking.hits}) == 1
    for top_k in (1, 5, 11):
        (ranking,) = ranked(store, [Query("a", "video7 thing")], top_k=top_k)
        assert [hit.video_id for hit in ranking.hits] == twelve[:top_k]


class Watching:
    """Scores as EERCF does and remembers what it was given."""

    name = "watching"

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, int]] = []

    def rank(self, given: QueryBatch, candidates: CandidateBatch) -> torch.Tensor:
        distinct = np.unique(candidates.index[candidates.index >= 0].numpy())
        np.testing.assert_array_equal(distinct, np.arange(len(candidates.tokens)))
        flat = candidates.tokens.flatten(1).numpy()
        assert len(np.unique(flat, axis=0)) == len(flat)
        self.batches.append((len(given), len(flat), candidates.index.shape[1]))
        return EercfReranker().rank(given, candidates)


def test_a_batch_holds_each_candidate_once_and_fits_the_memory(tmp_path: Path) -> None:
    store = make_store(tmp_path, 40)
    with store.writer() as writer:
        writer.commit(
            [VideoOutcome(file(100 + number), "ok", same_content_as=f"{number:064x}") for number in range(20)]
        )
    build_index(store)
    watching = Watching()
    with store.snapshot() as snapshot:
        found = list(
            rerank(
                snapshot,
                open_index(snapshot),
                DrawnTexts(),
                queries(30),
                watching,
                top_k=10,
                memory_bytes=2 * VIDEO_BYTES * 25,
            )
        )
    assert len(found) == sum(size for size, _, _ in watching.batches) == 30
    assert len(watching.batches) > 1
    assert all(num_videos <= 25 for _, num_videos, _ in watching.batches)
    assert {width for _, _, width in watching.batches} == {10}


def test_too_little_memory_for_one_query_says_how_much_is_needed(store: Store) -> None:
    with pytest.raises(UsageError, match="--top-k"):
        ranked(store, queries(1), top_k=50, memory_bytes=2 * VIDEO_BYTES * 49)
    assert len(ranked(store, queries(1), top_k=50, memory_bytes=2 * VIDEO_BYTES * 50)) == 1


def test_rankings_come_while_the_queries_are_still_read(store: Store) -> None:
    """The queries may be a stream: the first answers come before the last question."""
    read = []

    def stream() -> object:
        for query in queries(1000):
            read.append(query.id)
            yield query

    with store.snapshot() as snapshot:
        answers = rerank(snapshot, open_index(snapshot), DrawnTexts(), stream(), make_reranker("eercf"), top_k=3)  # type: ignore[arg-type]
        next(answers)
        assert len(read) < 1000
        answers.close()  # type: ignore[attr-defined]


def test_an_error_while_reading_reaches_the_caller(tmp_path: Path) -> None:
    store = make_store(tmp_path, 10)
    build_index(store)
    (shard,) = [path for path in (tmp_path / "shards").iterdir() if path.name == "00000002.h5"]
    shard.unlink()
    with pytest.raises(StoreError, match=r"00000002\.h5"):
        ranked(store, queries(2), top_k=10)


def test_a_score_that_is_no_number_names_query_and_video(store: Store) -> None:
    class Broken(Watching):
        def rank(self, given: QueryBatch, candidates: CandidateBatch) -> torch.Tensor:
            return torch.full(candidates.index.shape, torch.nan)

    with store.snapshot() as snapshot, pytest.raises(StoreError, match=r"'q0'.*'v\d+\.mp4'.*nan"):
        list(rerank(snapshot, open_index(snapshot), DrawnTexts(), queries(2), Broken(), top_k=3))


def test_no_queries_give_no_rankings(store: Store) -> None:
    assert ranked(store, []) == []


@pytest.mark.slow
def test_memory_does_not_grow_with_corpus_or_queries(tmp_path: Path) -> None:
    settings = replace(SETTINGS, sampling=SamplingSettings("uniform", 64))
    few, many = (make_store(tmp_path / str(number), number, settings) for number in (120, 1200))
    build_index(few)
    build_index(many)
    asked = ((few, 30), (many, 30), (few, 300))
    peaks = [peak_memory(rerank_all, store.directory, num_queries) for store, num_queries in asked]
    assert max(peaks) < min(peaks) + (10 << 20), peaks  # of the many videos the tokens alone are 29 MB


def rerank_all(directory: Path, num_queries: int) -> None:
    memory = {"top_k": 50, "memory_bytes": 2 * 64 * 6 * 32 * 2 * 100}
    with Store.open(directory).snapshot() as snapshot:
        asked = (snapshot, open_index(snapshot), DrawnTexts(), queries(num_queries), make_reranker("eercf"))
        assert all(len(ranking.hits) == 50 for ranking in rerank(*asked, **memory))
