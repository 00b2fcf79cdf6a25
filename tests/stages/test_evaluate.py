from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from index_store.errors import InputError, StoreError, UsageError
from index_store.records import Query, VideoOutcome
from index_store.settings import SamplingSettings
from index_store.snapshot import Snapshot
from index_store.store import Store
from stages.evaluate import CaptionedText, DirectionResult, Evaluation
from stages.index import build_index
from stages.metrics import Metrics, metrics, ranks_of_best
from stages.models.clip import TextFeatures
from stages.normalise import DenseBlock, Method, make_normaliser
from stages.normalised import Normalisation
from stages.rerankers import CandidateBatch, QueryBatch, make_reranker
from stages.rerankers.eercf import EercfReranker
from stages.rerankers.fusion import FusionConfig, FusionNetwork
from stages.rerankers.token_binder import TokenBinderReranker
from stages.search import open_index, search, unit_length
from tests.forked import peak_memory
from tests.stages.corpus import SETTINGS, WIDTH, DrawnTexts, file, make_store, outcome, queries, settings_with
from tests.stages.test_rerankers import transcribed

VIDEO_BYTES = 4 * 6 * 32 * 2
NUM_VIDEOS = 40


def captions(num_videos: int = NUM_VIDEOS) -> list[CaptionedText]:
    """None to three captions a video, some of them said of two videos, some misleading, not in the order of videos."""
    texts = []
    for number in range(num_videos):
        for place in range(number % 4):
            about = (number + 1, number + 2) if number % 7 == 3 and number + 2 <= num_videos else (number + 1,)
            other = (number * 5 + place) % num_videos
            words = f"video{number} w{place}" if number % 3 else f"video{other} w{place} x{number}"
            texts.append(CaptionedText(f"c{number}-{place}", words, about))
    return texts[::-1]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """40 videos, of which number 20 to 23 have a copy each (ids 41 to 44)."""
    made = make_store(tmp_path_factory.mktemp("evaluate") / "store", NUM_VIDEOS)
    with made.writer() as writer:
        writer.commit(
            [VideoOutcome(file(100 + number), "ok", same_content_as=f"{number:064x}") for number in range(20, 24)]
        )
    build_index(made)
    return made


def both(
    store: Store, texts: Sequence[CaptionedText], method: str = "eercf", **options: Any
) -> tuple[DirectionResult, DirectionResult]:
    with store.snapshot() as snapshot:
        evaluation = Evaluation(snapshot, open_index(snapshot), DrawnTexts(), texts, make_reranker(method), **options)
        return evaluation.text_to_video(), evaluation.video_to_text()


def broad_scores(snapshot: Snapshot, texts: Sequence[CaptionedText]) -> NDArray[np.float32]:
    """[T, V], columns by id."""
    ((_, pooled),) = snapshot.read_pooled()
    unit = unit_length(DrawnTexts().encode_texts([text.text for text in texts]).sentence.numpy())
    return np.stack([(unit.astype(np.float64) * row).sum(axis=1).astype(np.float32) for row in pooled], axis=1)


def focused_scores(snapshot: Snapshot, texts: Sequence[CaptionedText]) -> NDArray[np.float64]:
    """EERCF's scores [T, V] as its formulas read."""
    read = snapshot.read_tokens([record.id for record in snapshot.videos()])
    tokens, mask = torch.from_numpy(read.tokens).float(), torch.from_numpy(read.frame_mask)
    sentences = DrawnTexts().encode_texts([text.text for text in texts]).sentence
    return np.array([[transcribed(text, tokens[row], mask[row]) for row in range(len(mask))] for text in sentences])


def judged(texts: Sequence[CaptionedText], num_videos: int) -> NDArray[np.bool_]:
    """[T, V], True = this text is about this video."""
    return np.array([[column + 1 in text.video_ids for column in range(num_videos)] for text in texts])


def reordered(
    broad: NDArray[np.floating], focused: NDArray[np.floating], is_right: NDArray[np.bool_], top_k: int
) -> tuple[Metrics, Metrics, float]:
    """What must come out: rows are queries, columns answers by id. Sorted the long way, with Python's sort."""
    broad_ranks, focused_ranks, num_found = [], [], 0
    for row in range(len(broad)):
        order = sorted(range(broad.shape[1]), key=lambda column: (-broad[row, column], column))
        broad_ranks.append(1 + next(place for place, column in enumerate(order) if is_right[row, column]))
        top = sorted(order[:top_k], key=lambda column: (-round(focused[row, column], 5), column))
        order = top + order[top_k:]
        focused_ranks.append(1 + next(place for place, column in enumerate(order) if is_right[row, column]))
        num_found += any(is_right[row, column] for column in top)
    return metrics(np.array(broad_ranks)), metrics(np.array(focused_ranks)), 100 * num_found / len(broad)


@pytest.fixture(scope="module")
def scores(store: Store) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    with store.snapshot() as snapshot:
        return broad_scores(snapshot, captions()), focused_scores(snapshot, captions())


@pytest.mark.slow
@pytest.mark.parametrize("top_k", [1, 3, 12, 1000])
def test_both_directions_equal_brute_force(
    store: Store, scores: tuple[NDArray[np.float32], NDArray[np.float64]], top_k: int
) -> None:
    texts = captions()
    to_video, to_text = both(store, texts, top_k=top_k)
    broad, focused = scores
    is_right = judged(texts, 44)
    expected = reordered(broad, focused, is_right, top_k)
    assert (to_video.broad, to_video.focused, to_video.ceiling) == expected
    assert (to_video.num_answers, to_video.top_k) == (44, min(top_k, 44))
    asked = is_right.any(axis=0)
    expected = reordered(broad.T[asked], focused.T[asked], is_right.T[asked], top_k)
    assert (to_text.broad, to_text.focused, to_text.ceiling) == expected
    assert (to_text.num_answers, to_text.top_k) == (len(texts), min(top_k, len(texts)))
    assert to_video.broad.num_queries == len(texts)
    assert to_text.broad.num_queries == asked.sum() < 44


@pytest.mark.parametrize("top_k", [3, 12, 1000])
def test_a_corpus_is_all_that_is_searched_and_groups_of_texts_are_ranked_by_their_best(
    store: Store, scores: tuple[NDArray[np.float32], NDArray[np.float64]], top_k: int
) -> None:
    corpus = sorted(set(range(1, 45, 2)) | {20})  # 20 and its copy 41 among them
    rows = [row for row, text in enumerate(captions()) if len(text.video_ids) == 1 and text.video_ids[0] in corpus]
    texts = [captions()[row] for row in rows]
    columns = np.array(corpus) - 1
    broad, focused = (found[np.ix_(rows, columns)] for found in scores)
    to_video, to_text = both(store, texts, top_k=top_k, corpus=corpus[::-1], is_grouped=True)
    expected = reordered(broad, focused, judged(texts, 44)[:, columns], top_k)
    assert (to_video.broad, to_video.focused, to_video.ceiling) == expected
    assert (to_video.num_answers, to_video.top_k) == (len(corpus), min(top_k, len(corpus)))

    owners = np.array([corpus.index(text.video_ids[0]) for text in texts])
    ranks: list[tuple[int, int]] = []
    for video in np.unique(owners):
        order = sorted(range(len(texts)), key=lambda text: (-broad[text, video], text))
        top = sorted(order[:top_k], key=lambda text: (-round(focused[text, video], 5), text))
        first, again = (list(dict.fromkeys(owners[found].tolist())) for found in (order, top))
        place = first.index(video) + 1
        ranks.append((place, again.index(video) + 1 if video in again else max(place, len(again) + 1)))
    assert (to_text.broad, to_text.focused) == tuple(metrics(np.array(found)) for found in zip(*ranks, strict=True))
    assert to_text.num_answers == len(ranks) < len(texts)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sinkhorn", "dual-softmax", "qb-norm"])
def test_normalised_scores_equal_brute_force(
    store: Store, scores: tuple[NDArray[np.float32], NDArray[np.float64]], method: Method
) -> None:
    """Every answer is a candidate, so the bank of either direction is a whole matrix: the texts, or the videos."""
    texts = captions()
    asked = Normalisation(method, (), 20.0)
    found = both(store, texts, top_k=1000, normalisation=asked)
    right = np.zeros(scores[1].shape, np.bool_)
    for row, text in enumerate(texts):
        right[row, np.array(text.video_ids) - 1] = True
    captioned = right.any(axis=0)
    for result, answers, is_right in (
        (found[0], scores[1], right),
        (found[1], scores[1].T[captioned], right.T[captioned]),
    ):
        bank = DenseBlock(answers.astype(np.float32))
        normaliser = make_normaliser(method, lambda bank=bank: [bank], answers.shape[1], 20.0)  # type: ignore[misc]
        expected = normaliser(answers, np.broadcast_to(np.arange(answers.shape[1]), answers.shape))
        assert result.focused == metrics(ranks_of_best(expected, is_right))
    assert (found[0].broad, found[1].broad) == tuple(result.broad for result in both(store, texts, top_k=1000))


def test_the_corpus_is_not_trivial(store: Store) -> None:
    """What the brute force is compared with has something to get wrong."""
    for result in both(store, captions(), top_k=12):
        assert 20 < result.broad.recall_at[1] < 95
        assert result.broad != result.focused
        assert result.broad.recall_at[10] <= result.ceiling < 100


def test_dense_ranks_are_the_exact_ranks(store: Store, scores: tuple[NDArray[np.float32], NDArray[np.float64]]) -> None:
    assert both(store, captions())[0].broad == metrics(ranks_of_best(scores[0], judged(captions(), 44)))


def test_without_a_reranker_focused_is_broad(store: Store) -> None:
    for top_k in (1, 7, 50):
        for result in both(store, captions(), "broad", top_k=top_k):
            assert result.focused == result.broad


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_memory_changes_no_rank(tmp_path: Path, dtype: str) -> None:
    store = make_store(tmp_path, 30, settings_with(dtype))
    build_index(store)
    texts = captions(30)
    expected = both(store, texts, top_k=6)
    for memory_bytes in (2 * VIDEO_BYTES * 6, 2 * VIDEO_BYTES * 7 + 1, 1 << 30):
        assert both(store, texts, top_k=6, memory_bytes=memory_bytes) == expected


def test_a_copy_with_a_smaller_id_comes_first(tmp_path: Path) -> None:
    store = make_store(tmp_path, 5)
    with store.writer() as writer:
        writer.commit([VideoOutcome(file(100), "ok", same_content_as=f"{2:064x}")])
        writer.commit([replace(outcome(2, content="f" * 64), file=file(101))])  # the same features, extracted again
    build_index(store)
    for video_id, rank in ((3, 1), (6, 2), (7, 3)):
        for top_k in (1, 2, 3, 50):
            to_video, to_text = both(store, [CaptionedText("a", "video2", (video_id,))], top_k=top_k)
            assert to_video.broad.mean_rank == to_video.focused.mean_rank == rank
            assert to_text.broad.mean_rank == 1
    to_video, _ = both(store, [CaptionedText("a", "video2", (7, 6))])
    assert to_video.broad.mean_rank == 2


def test_equal_texts_tie_in_the_order_of_the_file(tmp_path: Path) -> None:
    store = make_store(tmp_path, 3)
    build_index(store)
    texts = [CaptionedText(name, "video0", (video_id,)) for name, video_id in (("a", 1), ("b", 1), ("c", 2))]
    for top_k in (1, 2, 3):
        _, to_text = both(store, texts, top_k=top_k)
        assert to_text.broad.mean_rank == to_text.focused.mean_rank == (1 + 3) / 2


def test_what_an_approximate_index_misses_comes_after_the_candidates(tmp_path: Path) -> None:
    store = make_store(tmp_path, 60)
    build_index(store, factory="IVF12,Flat", search_parameters="nprobe=1")
    texts = [
        CaptionedText(f"{number}", f"video{number} video{(7 * number) % 60}", (number + 1,)) for number in range(60)
    ]
    to_video, _ = both(store, texts, "broad", top_k=4)
    with store.snapshot() as snapshot:
        exact = ranks_of_best(broad_scores(snapshot, texts), judged(texts, 60))
        found = list(search(snapshot, open_index(snapshot), DrawnTexts(), [Query(t.id, t.text) for t in texts], 4))
    places = [
        next((place for place, hit in enumerate(ranking.hits, start=1) if hit.video_id == row + 1), 0)
        for row, ranking in enumerate(found)
    ]
    assert to_video.broad == metrics(exact)
    num_found = sum(place > 0 for place in places)
    assert num_found < (exact <= 4).sum()  # the index does miss some
    assert to_video.ceiling == 100 * num_found / 60
    widths = [len(ranking.hits) for ranking in found]
    expected = [
        place or max(rank, width + 1) for place, rank, width in zip(places, exact.tolist(), widths, strict=True)
    ]
    assert to_video.focused == metrics(np.array(expected))


def test_videos_newer_than_the_index_are_never_found_but_count(tmp_path: Path) -> None:
    store = make_store(tmp_path, 10)
    build_index(store)
    with store.writer() as writer:
        writer.commit([outcome(50)])
    texts = [CaptionedText("new", "video50", (11,)), CaptionedText("old", "video3", (4,))]
    to_video, _ = both(store, texts)
    assert (to_video.broad.recall_at[1], to_video.ceiling) == (100, 50)
    assert to_video.focused.mean_rank == (11 + 1) / 2


def test_progress_counts_every_query(store: Store) -> None:
    texts = captions()
    with store.snapshot() as snapshot:
        evaluation = Evaluation(snapshot, open_index(snapshot), DrawnTexts(), texts, make_reranker("eercf"))
        steps: list[int] = []
        evaluation.text_to_video(steps.append)
        assert sum(steps) == len(texts)
        evaluation.video_to_text(steps.append)
        assert sum(steps) == len(texts) + evaluation.num_captioned


def test_no_caption_and_too_little_memory_are_said(store: Store) -> None:
    with store.snapshot() as snapshot, pytest.raises(InputError, match="no caption"):
        Evaluation(snapshot, open_index(snapshot), DrawnTexts(), [], make_reranker("eercf"))
    with pytest.raises(UsageError, match="--top-k"):
        both(store, captions(), top_k=10, memory_bytes=2 * VIDEO_BYTES * 9)


class Broken(EercfReranker):
    """Loses a score."""

    def rank_texts(self, queries: QueryBatch, candidates: CandidateBatch) -> torch.Tensor:
        scores = super().rank_texts(queries, candidates).clone()
        scores[1, 0] = torch.nan
        return scores


def test_a_score_that_is_no_number_names_video_and_text(store: Store) -> None:
    with store.snapshot() as snapshot:
        evaluation = Evaluation(snapshot, open_index(snapshot), DrawnTexts(), captions(), Broken())
        with pytest.raises(StoreError, match=r"eercf gives video 'v2.mp4' and text 'c2-\d' the score nan"):
            evaluation.video_to_text()


# -- a listwise reranker ----------------------------------------------------------------------------------------------


class Indicating(DrawnTexts):
    """Gives query indicators as well: the sentence, and three mixtures of its words."""

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        plain = super().encode_texts(texts)
        mixed = [plain.words.roll(shift, dims=-1).sum(dim=1) for shift in (1, 2, 3)]
        return replace(plain, indicators=torch.stack([plain.sentence, *mixed], dim=1))


def token_binder(is_trained: bool) -> TokenBinderReranker:
    """One that says nothing, or one that says something at random."""
    torch.manual_seed(0)
    network = FusionNetwork(FusionConfig(WIDTH, num_places=6, num_heads=2, hidden=16))
    if is_trained:
        torch.nn.init.normal_(network.head.leave[-1].weight)
    return TokenBinderReranker(network, logit_scale=20.0)


@pytest.mark.slow
@pytest.mark.parametrize("is_trained", [False, True])
def test_a_listwise_reranker_is_measured_the_same_at_any_memory(store: Store, is_trained: bool) -> None:
    texts = captions()
    results = []
    for memory_bytes in (2 * VIDEO_BYTES * 6, 1 << 30):
        with store.snapshot() as snapshot:
            evaluation = Evaluation(
                snapshot,
                open_index(snapshot),
                Indicating(),
                texts,
                token_binder(is_trained),
                top_k=6,
                memory_bytes=memory_bytes,
            )
            results.append((evaluation.text_to_video(), evaluation.video_to_text()))
    assert results[0] == results[1]
    for result in results[0]:
        assert (result.focused != result.broad) == is_trained
        assert result.focused.recall_at[10] == result.broad.recall_at[10]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_tokens_of_the_corpus_nor_with_pairs(tmp_path: Path) -> None:
    settings = replace(SETTINGS, sampling=SamplingSettings("uniform", 64))
    few, many = (make_store(tmp_path / str(number), number, settings) for number in (120, 1200))
    build_index(few)
    build_index(many)
    asked = ((few, 256), (many, 256), (few, 600))  # whole batches of queries: a part of one takes 6 MB less
    peaks = [peak_memory(both_ways, store.directory, num_texts) for store, num_texts in asked]
    assert max(peaks) < min(peaks) + (10 << 20), peaks  # of the many videos the tokens alone are 29 MB


def both_ways(directory: Path, num_texts: int) -> None:
    memory = {"top_k": 50, "memory_bytes": 2 * 64 * 6 * 32 * 2 * 100}
    with Store.open(directory).snapshot() as snapshot:
        num_videos = snapshot.num_searchable
        asked = enumerate(queries(num_texts))
        texts = [CaptionedText(query.id, query.text, (1 + number % num_videos,)) for number, query in asked]
        found = Evaluation(snapshot, open_index(snapshot), DrawnTexts(), texts, make_reranker("eercf"), **memory)
        assert found.text_to_video().broad.num_queries == num_texts
        assert found.video_to_text().broad.num_queries == min(num_texts, num_videos)
