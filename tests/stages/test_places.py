"""Stores that keep some patches and say which: TokenBinder looks at each in its own place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from index_store.errors import DamageError, FingerprintError
from index_store.records import Query, Ranking
from index_store.settings import TokenSettings
from index_store.store import Store
from pipeline.jobs.extract import ExtractJob, _tokens
from stages.index import build_index
from stages.rerank import rerank
from stages.rerankers import make_reranker
from stages.rerankers.base import CandidateBatch, QueryBatch, Reranker
from stages.rerankers.fusion import FusionConfig, FusionNetwork, VideoTokens
from stages.rerankers.token_binder import (
    FeatureKind,
    TokenBinderReranker,
    TokenBinderWeights,
    shipped_weights,
)
from stages.search import open_index
from stages.token_batches import candidate_batch
from stages.training.config import PRESETS
from stages.training.lists import Batch
from stages.training.objective import Setup
from stages.training.pairs import PairCorpus
from stages.training.ranks import Ranks
from stages.training.token_binder import TokenBinderObjective
from tests.stages.corpus import SETTINGS, WIDTH, make_store, outcome, queries, settings_with
from tests.stages.ordered import ordered_store, small_clip
from tests.stages.test_evaluate import Indicating

PLACED = replace(SETTINGS, tokens=TokenSettings.new("float16", "2"))
NUM_VIDEOS = 24
CONFIG = FusionConfig(WIDTH, num_places=6, num_heads=2, hidden=16)


def binder(config: FusionConfig = CONFIG) -> TokenBinderReranker:
    """Trained, as it were."""
    torch.manual_seed(0)
    network = FusionNetwork(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return TokenBinderReranker(network, logit_scale=20.0)


def ranked(store: Store, reranker: Reranker, asked: Sequence[Query], memory_videos: int = 1000) -> list[Ranking]:
    with store.snapshot() as snapshot:
        memory_bytes = 2 * snapshot.settings.bytes_per_video * memory_videos
        index = open_index(snapshot)
        return list(rerank(snapshot, index, Indicating(), asked, reranker, top_k=5, memory_bytes=memory_bytes))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """The same videos: all tokens, two patches of each frame, and the same as a store of an earlier version."""
    folder = tmp_path_factory.mktemp("places")
    kinds = {"all": SETTINGS, "placed": PLACED, "earlier": settings_with(keep="2")}
    made = {name: make_store(folder / name, NUM_VIDEOS, settings) for name, settings in kinds.items()}
    for store in made.values():
        build_index(store)
    return made


def test_the_places_are_those_of_the_patches_that_were_kept(stores: dict[str, Store]) -> None:
    ids = list(range(1, NUM_VIDEOS + 1))
    with stores["placed"].snapshot() as snapshot, stores["all"].snapshot() as of_all:
        found, every = snapshot.read_tokens(ids), of_all.read_tokens(ids)
    assert found.places is not None
    assert found.places.dtype == np.uint8
    assert found.places.shape == (NUM_VIDEOS, 4, 3)
    assert not found.places[:, :, 0].any()
    assert (np.diff(found.places[found.frame_mask].astype(int)) > 0).all()
    assert not found.places[~found.frame_mask].any()
    at_places = np.take_along_axis(every.tokens, found.places[..., None].astype(int), axis=2)
    np.testing.assert_array_equal(at_places[found.frame_mask], found.tokens[found.frame_mask])


def test_an_earlier_store_has_no_places_and_grows_without(stores: dict[str, Store], tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 3, settings_with(keep="2"))
    again = Store.open(store.directory)
    with again.writer() as writer:
        writer.commit([outcome(7, again.settings)])
    with again.snapshot() as snapshot:
        assert snapshot.read_tokens([1, 4]).places is None
    ours = binder(replace(CONFIG, num_places=0))
    asked = queries(6)
    assert ranked(stores["placed"], ours, asked) == ranked(stores["earlier"], ours, asked)


def test_other_methods_do_not_mind(stores: dict[str, Store]) -> None:
    for method in ("eercf", "late-interaction"):
        found = ranked(stores["placed"], make_reranker(method), queries(6))
        assert found == ranked(stores["earlier"], make_reranker(method), queries(6))


def test_rankings_are_those_of_the_network_whatever_the_batches(stores: dict[str, Store]) -> None:
    store, ours, asked = stores["placed"], binder(), queries(12)
    expected = ranked(store, ours, asked)
    assert ranked(store, ours, asked, memory_videos=6) == expected
    assert ranked(store, ours, asked[3:4]) == expected[3:4]
    features = QueryBatch.of(Indicating().encode_texts([asked[3].text]))
    assert features.indicators is not None
    with store.snapshot() as snapshot:
        batch = snapshot.read_tokens([hit.video_id for hit in expected[3].hits])
    broad = torch.tensor([[hit.broad_score for hit in expected[3].hits]])
    assert batch.places is not None
    videos = VideoTokens.of(*(torch.from_numpy(part)[None] for part in (batch.tokens, batch.frame_mask, batch.places)))
    with torch.no_grad():
        delta = ours.network(features.indicators[:, None, 1:], videos, 20.0 * broad, torch.ones(1, 5, dtype=torch.bool))
    found = torch.tensor([[hit.score for hit in expected[3].hits]])
    assert torch.allclose(found, broad + delta / 20.0, atol=1e-5)
    assert delta.std() > 1e-3


def test_both_roles_and_a_place_that_is_damaged(stores: dict[str, Store]) -> None:
    with stores["placed"].snapshot() as snapshot:
        batch = snapshot.read_tokens([1, 2, 3])
    index = np.array([[0, 1, 2], [2, -1, 0]])
    candidates = candidate_batch(batch, index, np.ones((2, 3), np.float32), torch.device("cpu"))
    texts = QueryBatch.of(Indicating().encode_texts(["one two", "three four", "five six"]))
    ours = binder()
    assert ours.rank(texts[:2], candidates).isfinite().tolist() == (index >= 0).tolist()
    both = candidates.part(slice(0, 2), torch.tensor([[2, 0], [0, 1]]), torch.ones(2, 2))
    alone = candidates.part(slice(1, 2), torch.tensor([[0, 1]]), torch.ones(1, 2))
    assert torch.equal(ours.rank_texts(texts, both)[1:], ours.rank_texts(texts, alone))
    large = replace(batch, places=batch.places.astype(np.uint16))  # of a tower with more than 256 tokens
    wide = candidate_batch(large, index, np.ones((2, 3), np.float32), torch.device("cpu"))
    assert torch.equal(ours.rank(texts[:2], wide), ours.rank(texts[:2], candidates))
    assert candidates.places is not None
    candidates.places[2, 0, 1] = 6
    with pytest.raises(DamageError, match=r"0 to 6, expected 0 to 5.*verify --read-data"):
        ours.rank(texts[:2], candidates)
    assert ours.rank(texts[:1], replace_index(candidates, [[0, 1]])).isfinite().all()  # nobody looks at that video


def replace_index(candidates: CandidateBatch, index: list[list[int]]) -> CandidateBatch:
    return replace(candidates, index=torch.tensor(index), broad=torch.ones(1, len(index[0])))


# -- which weights fit -------------------------------------------------------------------------------------------------


def weights(num_places: int, keep: str) -> TokenBinderWeights:
    config = replace(CONFIG, num_places=num_places)
    kind = replace(FeatureKind.of(SETTINGS), keep_tokens=keep)
    return TokenBinderWeights(kind, config, 20.0, torch.randn(4, 8), {}, {})


@pytest.mark.parametrize(
    ("num_places", "keep", "fits"),
    [
        (6, "all", {"all", "placed", "distinct"}),
        (6, "2", {"all", "placed", "distinct"}),
        (6, "distinct:2", {"all", "placed", "distinct"}),
        (0, "2", {"placed", "earlier"}),
        (0, "distinct:2", {"distinct"}),
        (0, "cls", {"cls"}),
    ],
)
def test_weights_that_know_places_fit_every_store_that_does(num_places: int, keep: str, fits: set[str]) -> None:
    kinds = {"all": SETTINGS, "placed": PLACED, "earlier": settings_with(keep="2"), "cls": settings_with(keep="cls")}
    kinds["distinct"] = replace(SETTINGS, tokens=TokenSettings.new("float16", "distinct:2"))
    ours = weights(num_places, keep)
    for name, settings in kinds.items():
        if name in fits:
            ours.require(settings, Path("w"))
        else:
            with pytest.raises(FingerprintError, match=r"keep_tokens|holds 2 patches of a frame and not which"):
                ours.require(settings, Path("w"))


@pytest.mark.slow
def test_weights_of_all_tokens_take_such_a_store_and_training_learns_the_places_in_it(tmp_path: Path) -> None:
    store, captions = ordered_store(tmp_path / "store", 8, "3", places=True)
    path = shipped_weights(store.settings)
    assert path is not None
    assert TokenBinderReranker.open(path, store.settings, small_clip()).network.config.num_places == 37
    assert shipped_weights(replace(store.settings, tokens=TokenSettings("float16", "3"))) is None

    config = replace(PRESETS["small"], num_candidates=16)
    found = []
    with store.snapshot() as snapshot:
        corpus = PairCorpus(snapshot, captions)
        everything = np.arange(len(corpus))
        seen = snapshot.read_tokens(corpus.ids.tolist()).places
        for _ in range(2):
            setup = Setup(corpus, config, torch.device("cpu"), Ranks())
            objective = TokenBinderObjective(setup, store.settings, small_clip())
            torch.manual_seed(0)
            torch.nn.init.normal_(objective.module.fusion.head.leave[-1].weight)  # zero at first: nothing would pass
            batch = Batch(everything[:8], [corpus.captions[place][0] for place in range(8)])
            objective.gradients(batch, everything)
            found.append(objective.module.fusion.blocks[0].place.grad)
    assert found[0] is not None
    assert found[0].shape == (37, 128)
    assert set(found[0].abs().sum(dim=1).nonzero().flatten().tolist()) == set(np.unique(seen).tolist())
    assert torch.equal(found[0], found[1])


def test_extract_makes_a_store_with_places_and_goes_on_as_a_store_is() -> None:
    asked = ExtractJob(sources=(), store=Path("store"), keep_tokens="2")
    assert _tokens(asked, None) == TokenSettings("float16", "2", places=True)
    earlier = settings_with("int8", "2")
    for keep in ("2", None):
        assert _tokens(replace(asked, keep_tokens=keep), earlier) == earlier.tokens
        assert _tokens(replace(asked, keep_tokens=keep), PLACED) == PLACED.tokens
    other = replace(earlier, tokens=_tokens(replace(asked, keep_tokens="3"), earlier))
    assert earlier.differences(other) == ["tokens.keep: 2 here, 3 asked"]
    other = replace(earlier, tokens=_tokens(replace(asked, keep_tokens="distinct:2"), earlier))
    assert earlier.differences(other) == ["tokens.keep: 2 here, distinct:2 asked"]
    assert _tokens(replace(asked, keep_tokens="all"), PLACED) == TokenSettings("float16", "all")
