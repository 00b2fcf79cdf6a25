from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from index_store.errors import DamageError
from index_store.records import Query, Ranking, VideoOutcome
from index_store.snapshot import Snapshot
from index_store.store import Store
from stages.index import build_index
from stages.models.clip import TextFeatures
from stages.rerank import rerank
from stages.rerankers.fusion import FusionConfig, FusionNetwork
from stages.rerankers.token_binder import TokenBinderReranker
from stages.search import open_index
from stages.token_pool import TokenPool
from tests.stages.corpus import DrawnTexts, direction, file, make_store, settings_with

NUM_VIDEOS = 30
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = make_store(tmp_path_factory.mktemp("pool") / "store", NUM_VIDEOS)
    build_index(made)
    return made


@pytest.fixture
def snapshot(store: Store) -> Iterator[Snapshot]:
    with store.snapshot() as opened:
        yield opened


def check(pool: TokenPool, snapshot: Snapshot, ids: Sequence[int]) -> list[int]:
    """That these videos are in the pool as they are in the store; their slots."""
    slots = pool.slots(ids)
    expected = snapshot.read_tokens(ids)
    np.testing.assert_array_equal(pool.tokens[slots].numpy(), expected.tokens)
    np.testing.assert_array_equal(pool.frame_mask[slots].numpy(), expected.frame_mask)
    for found, frames in zip(pool.frames(ids, slots), snapshot.read_frame_embeddings(ids), strict=True):
        np.testing.assert_array_equal(found, frames)
    found_slots: list[int] = slots.tolist()
    return found_slots


def test_what_was_read_stays_as_long_as_there_is_room(snapshot: Snapshot) -> None:
    pool = TokenPool(snapshot, 6, CPU)
    first = check(pool, snapshot, [5, 25, 1])
    assert check(pool, snapshot, [25, 9]) == [first[1], 3]
    assert pool.num_read == 4
    check(pool, snapshot, [11, 12])
    assert check(pool, snapshot, [1, 5]) == [first[2], first[0]]
    assert pool.num_read == 6
    check(pool, snapshot, [20])  # 25 and 9 were not asked for longest
    assert check(pool, snapshot, [1, 5, 11, 12]) == [first[2], first[0], 4, 5]
    assert pool.num_read == 7


def test_videos_of_the_batch_before_are_not_written_over(snapshot: Snapshot) -> None:
    pool, rng = TokenPool(snapshot, 12, CPU), np.random.default_rng(0)
    before: list[int] = []
    slots: list[int] = []
    for _ in range(40):
        ids = (1 + rng.permutation(NUM_VIDEOS)[: rng.integers(1, 7)]).tolist()
        now = check(pool, snapshot, ids)
        if before:
            np.testing.assert_array_equal(pool.tokens[slots].numpy(), snapshot.read_tokens(before).tokens)
        before, slots = ids, now


def test_int8_tokens_keep_their_scales_and_copies_share_a_slot(tmp_path: Path) -> None:
    made = make_store(tmp_path / "store", 9, settings_with("int8"))
    with made.writer() as writer:
        writer.commit([VideoOutcome(file(100), "ok", same_content_as=f"{4:064x}")])
    with made.snapshot() as snapshot:
        pool = TokenPool(snapshot, 4, CPU)
        slots = check(pool, snapshot, [5, 10, 2])
        assert slots[0] == slots[1]
        assert pool.num_read == 2
        assert pool.scales is not None
        np.testing.assert_array_equal(pool.scales[slots].numpy(), snapshot.read_tokens([5, 10, 2]).scales)


def test_after_an_error_nothing_false_is_in_the_pool(tmp_path: Path) -> None:
    made = make_store(tmp_path / "store", 12)
    (hidden,) = [path for path in (tmp_path / "store" / "shards").iterdir() if path.name == "00000002.h5"]
    with made.snapshot() as snapshot:
        pool = TokenPool(snapshot, 4, CPU)
        check(pool, snapshot, [1, 2])
        hidden.rename(tmp_path / "hidden")
        with pytest.raises(DamageError, match=r"00000002\.h5 is missing"):
            pool.slots([3, 10])
        (tmp_path / "hidden").rename(hidden)
        check(pool, snapshot, [2, 10])
        check(pool, snapshot, [3, 4])


class Indicating(DrawnTexts):
    """Each text's words take turns as its indicators."""

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        found = super().encode_texts(texts)
        asked = [
            [found.sentence[row], *(direction(word) for word in text.split()[:3])] for row, text in enumerate(texts)
        ]
        indicators = torch.stack([torch.stack(row) for row in asked])
        return TextFeatures(found.sentence, found.words, found.word_mask, indicators)


def ranked(store: Store, asked: Sequence[Query], memory_videos: int) -> list[Ranking]:
    torch.manual_seed(0)
    network = FusionNetwork(FusionConfig(width=32, num_places=6))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    reranker = TokenBinderReranker(network, 20.0)
    with store.snapshot() as snapshot:
        found = rerank(
            snapshot, open_index(snapshot), Indicating(), asked, reranker, top_k=5, memory_bytes=memory_videos * 1536
        )
        return list(found)


def test_rankings_do_not_depend_on_what_is_in_the_pool(store: Store) -> None:
    asked = [Query(f"q{number}", f"video{number % 7} and video{number}") for number in range(24)]
    expected = ranked(store, asked, 2 * NUM_VIDEOS)
    assert any(hit.score != hit.broad_score for hit in expected[0].hits)
    assert ranked(store, asked, 20) == expected  # 2 x 2 x 5 candidates of 4 x 6 x 32 float16
    assert ranked(store, asked, 28) == expected
    assert [one for query in asked[:5] for one in ranked(store, [query], 2 * NUM_VIDEOS)] == expected[:5]
