from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index_store.errors import FingerprintError, StoreMissingError, UsageError
from index_store.records import Query, VideoOutcome
from stages.index import build_index
from stages.search import QUERIES_PER_BATCH, BroadView, open_index, search
from tests.stages.corpus import DrawnTexts, file, make_store, outcome, queries, settings_with


def test_the_video_that_shows_the_words_is_found_first(tmp_path: Path) -> None:
    store = make_store(tmp_path, 50)
    build_index(store)
    with store.snapshot() as snapshot:
        rankings = list(
            search(snapshot, open_index(snapshot), DrawnTexts(), [Query("a", "video7"), Query("b", "video31")], 3)
        )
    assert [(ranking.query_id, ranking.hits[0].key) for ranking in rankings] == [("a", "v7.mp4"), ("b", "v31.mp4")]
    assert all(len(ranking.hits) == 3 for ranking in rankings)
    assert all(hit.focused_score is None and hit.score == hit.broad_score for hit in rankings[0].hits)


def test_scores_are_cosines_and_moments_are_times_of_the_best_frame(tmp_path: Path) -> None:
    store = make_store(tmp_path, 30)
    build_index(store)
    texts = DrawnTexts()
    with store.snapshot() as snapshot:
        (ranking,) = search(snapshot, open_index(snapshot), texts, [Query("a", "video3 video11")], 30)
        sentence = texts.encode_texts(["video3 video11"]).sentence[0].numpy().astype(np.float64)
        sentence /= np.linalg.norm(sentence)
        for hit in ranking.hits:
            frames, mask, times = (array[0] for array in snapshot.read_frame_embeddings([hit.video_id]))
            unit = frames[mask].astype(np.float64)
            unit /= np.linalg.norm(unit, axis=1, keepdims=True)
            pooled = unit.mean(0)
            assert hit.broad_score == pytest.approx(
                pooled @ sentence / np.linalg.norm(pooled), abs=1e-3
            )  # float16 frames
            assert hit.moment_seconds == times[mask][(unit @ sentence).argmax()]


def test_k_larger_than_the_corpus_ranks_every_video(tmp_path: Path) -> None:
    store = make_store(tmp_path, 12)
    build_index(store)
    with store.snapshot() as snapshot:
        for ranking in search(snapshot, open_index(snapshot), DrawnTexts(), queries(3), 1000):
            assert sorted(hit.video_id for hit in ranking.hits) == list(range(1, 13))


def test_many_queries_are_encoded_in_batches_and_ranked_in_their_order(tmp_path: Path) -> None:
    store = make_store(tmp_path, 12)
    build_index(store)
    texts = DrawnTexts()
    asked = queries(2 * QUERIES_PER_BATCH + 1)
    with store.snapshot() as snapshot:
        found = list(search(snapshot, open_index(snapshot), texts, iter(asked), 2))
    assert [ranking.query_id for ranking in found] == [query.id for query in asked]
    assert texts.asked == [QUERIES_PER_BATCH, QUERIES_PER_BATCH, 1]


def test_videos_that_lost_their_features_are_not_returned_and_the_index_is_called_old(tmp_path: Path) -> None:
    store = make_store(tmp_path, 40)
    build_index(store)
    with store.snapshot() as snapshot:
        assert BroadView(snapshot, open_index(snapshot)).staleness == ""
    gone = [*range(0, 30, 2)]
    with store.writer() as writer:
        writer.commit([VideoOutcome(file(number), "removed") for number in gone] + [outcome(40), outcome(41)])
    with store.snapshot() as snapshot:
        index = open_index(snapshot)
        view = BroadView(snapshot, index)
        assert "holds 40 videos" in view.staleness
        assert "the store 27" in view.staleness
        assert "tbpipe index" in view.staleness
        for top_k in (1, 10, 25, 100):
            for ranking in search(snapshot, index, DrawnTexts(), queries(5), top_k):
                ids = [hit.video_id for hit in ranking.hits]
                assert len(ids) == min(top_k, 25)
                assert not set(ids) & {number + 1 for number in gone}
    build_index(store)
    with store.snapshot() as snapshot:
        assert BroadView(snapshot, open_index(snapshot)).staleness == ""


def test_a_store_without_index_says_what_to_run(tmp_path: Path) -> None:
    with make_store(tmp_path, 3).snapshot() as snapshot, pytest.raises(StoreMissingError, match="tbpipe index"):
        open_index(snapshot)


def test_an_index_of_another_store_is_refused(tmp_path: Path) -> None:
    ours, other = make_store(tmp_path / "a", 3), make_store(tmp_path / "b", 3, settings_with("int8"))
    generation = build_index(other).generation
    build_index(ours)
    (tmp_path / "a" / "index" / "00000001").rename(tmp_path / "away")
    (tmp_path / "b" / "index" / generation).rename(tmp_path / "a" / "index" / "00000001")
    with ours.snapshot() as snapshot, pytest.raises(FingerprintError, match="tbpipe index"):
        open_index(snapshot)


def test_no_candidates_at_all_is_a_usage_error(tmp_path: Path) -> None:
    store = make_store(tmp_path, 3)
    build_index(store)
    with store.snapshot() as snapshot, pytest.raises(UsageError, match="at least 1"):
        list(search(snapshot, open_index(snapshot), DrawnTexts(), queries(1), 0))
