from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from index_store.errors import FingerprintError, InputError, UsageError
from stages.models.clip import ClipModel
from stages.rerankers.base import CandidateBatch, QueryBatch
from stages.rerankers.fusion import FusionConfig, FusionNetwork
from stages.rerankers.token_binder import FeatureKind, TokenBinderReranker, TokenBinderWeights
from tests.stages.corpus import SETTINGS, settings_with
from tests.stages.ordered import small_clip
from tests.stages.test_rerankers import draw

CONFIG = FusionConfig(width=16, num_places=6, num_candidates=7)


def reranker(config: FusionConfig = CONFIG, noise: float = 0.1) -> TokenBinderReranker:
    torch.manual_seed(0)
    network = FusionNetwork(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += noise * torch.randn(parameter.shape)
    return TokenBinderReranker(network, logit_scale=50.0)


def data(seed: int = 0, num_queries: int = 5) -> tuple[QueryBatch, CandidateBatch]:
    queries, candidates = draw(seed=seed, num_queries=num_queries)
    generator = torch.Generator().manual_seed(seed)
    indicators = torch.randn(len(queries), 4, 16, generator=generator)
    return QueryBatch(indicators[:, 0], queries.words, queries.word_mask, indicators), candidates


def weights(config: FusionConfig = CONFIG) -> TokenBinderWeights:
    network = reranker(config).network
    kind = FeatureKind.of(SETTINGS)
    return TokenBinderWeights(kind, config, 50.0, torch.randn(4, 8), {}, network.state_dict())


def test_untrained_it_scores_as_the_broad_view() -> None:
    torch.manual_seed(0)
    queries, candidates = data()
    scores = TokenBinderReranker(FusionNetwork(CONFIG), 50.0).rank(queries, candidates)
    assert torch.equal(scores, candidates.broad.masked_fill(~candidates.is_candidate, -torch.inf))


@pytest.mark.parametrize("head", ["equivariant", "positional"])
def test_a_query_is_scored_the_same_whatever_else_is_in_the_batch(head: str) -> None:
    ours = reranker(replace(CONFIG, head=head))  # type: ignore[arg-type]
    queries, candidates = data()
    scores = ours.rank(queries, candidates)
    assert scores[1, -1] == -torch.inf
    assert scores[candidates.is_candidate].isfinite().all()
    assert not torch.equal(scores, candidates.broad)
    alone = replace(candidates, index=candidates.index[2:3], broad=candidates.broad[2:3])
    assert torch.equal(ours.rank(queries[2:3], alone), scores[2:3])


def test_int8_tokens_are_scored_without_their_scales() -> None:
    ours = reranker()
    queries, candidates = data()
    largest = candidates.tokens.float().abs().amax(dim=-1)
    whole = (candidates.tokens.float() / largest.clamp_min(1e-9)[..., None] * 127).round().to(torch.int8)
    rounded = replace(candidates, tokens=whole, scales=largest / 127)
    real = candidates.is_candidate
    assert torch.allclose(ours.rank(queries, rounded)[real], ours.rank(queries, candidates)[real], atol=0.05)


def test_texts_are_ranked_for_a_video_in_any_batch_alike() -> None:
    ours = reranker()
    queries, candidates = data(num_queries=9)
    videos = candidates.tokens[:4]
    index = torch.tensor([[0, 3, 8], [1, 2, -1], [8, 7, 6], [5, 4, 3]])
    generator = torch.Generator().manual_seed(1)
    turned = CandidateBatch(videos, None, candidates.frame_mask[:4], index, torch.rand(4, 3, generator=generator))
    scores = ours.rank_texts(queries, turned)
    assert scores.shape == (4, 3)
    assert scores[1, 2] == -torch.inf
    one = CandidateBatch(videos[2:3], None, candidates.frame_mask[2:3], index[2:3], turned.broad[2:3])
    assert torch.equal(ours.rank_texts(queries, one), scores[2:3])


def test_nobody_and_nothing_are_ranked_too() -> None:
    queries, candidates = data()
    none = replace(candidates, index=candidates.index[:, :0], broad=candidates.broad[:, :0])
    assert reranker().rank(queries, none).shape == (len(queries), 0)
    nobody = replace(candidates, index=candidates.index[:0], broad=candidates.broad[:0])
    assert reranker().rank(queries[:0], nobody).shape == (0, candidates.index.shape[1])
    assert (reranker().rank(queries, replace(candidates, index=-torch.ones_like(candidates.index))) == -torch.inf).all()


def test_queries_without_indicators_are_refused() -> None:
    queries, candidates = draw()
    with pytest.raises(UsageError, match="without query indicators"):
        reranker().rank(queries, candidates)


# -- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["equivariant", "positional"])
def test_weights_come_back_as_they_were_written(head: str, tmp_path: Path) -> None:
    written = weights(replace(CONFIG, head=head, num_blocks=2))  # type: ignore[arg-type]
    written.save(tmp_path / "w.safetensors")
    found = TokenBinderWeights.load(tmp_path / "w.safetensors")
    assert (found.kind, found.config, found.logit_scale) == (written.kind, written.config, written.logit_scale)
    assert torch.equal(found.indicators, written.indicators)
    queries, candidates = data()
    first = TokenBinderReranker(written.network(tmp_path), 50.0).rank(queries, candidates)
    assert torch.equal(TokenBinderReranker(found.network(tmp_path), 50.0).rank(queries, candidates), first)
    once = (tmp_path / "w.safetensors").read_bytes()
    written.save(tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").read_bytes() == once


def test_a_store_with_other_features_is_refused(tmp_path: Path) -> None:
    kind = FeatureKind.of(SETTINGS)
    kind.require(SETTINGS, tmp_path)
    kind.require(settings_with("int8"), tmp_path)  # the same features, rounded
    other = replace(SETTINGS, model=replace(SETTINGS.model, weights_sha256="f" * 64))
    with pytest.raises(FingerprintError, match=r"weights_sha256 0000.*the store holds weights_sha256 ffff"):
        kind.require(other, tmp_path)
    with pytest.raises(FingerprintError, match="keep_tokens"):
        kind.require(settings_with(keep="3"), tmp_path)


def test_any_other_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match="cannot be read"):
        TokenBinderWeights.load(path)
    path.write_bytes(b"not weights")
    with pytest.raises(InputError, match="cannot be read"):
        TokenBinderWeights.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="no format name"):
        TokenBinderWeights.load(path)
    broken = replace(weights(), fusion={})
    broken.save(path)
    with pytest.raises(InputError, match="does not fit"):
        TokenBinderWeights.load(path).network(path)


# -- the query side ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    return small_clip()


TEXTS = ["a red circle", "a small blue square moves up in front of a red curtain", "x"]


def test_untrained_the_first_indicator_is_the_sentence(clip: ClipModel) -> None:
    before = clip.encode_texts(TEXTS)
    assert before.indicators is None
    ours = small_clip()
    tower, tokenizer = ours.query_side()
    first = tower.first_indicators(4, tokenizer.end_id, torch.Generator().manual_seed(0))
    ours.adopt_query_side(first, {}, Path("w"))
    after = ours.encode_texts(TEXTS)
    assert after.indicators is not None
    assert after.indicators.shape == (3, 4, 128)
    assert torch.equal(after.sentence, after.indicators[:, 0])
    assert torch.allclose(after.sentence, before.sentence, atol=1e-5)
    assert torch.equal(after.words, before.words)
    cosines = normalize(after.indicators[0], dim=-1) @ normalize(after.indicators[0], dim=-1).T
    assert cosines.triu(1).max() < 0.999
    alone = ours.encode_texts(TEXTS[1:2])
    assert alone.indicators is not None
    assert torch.equal(alone.indicators[0], after.indicators[1])


def test_an_indicator_sees_neither_the_others_nor_what_comes_after_the_text(clip: ClipModel) -> None:
    tower, tokenizer = clip.query_side()
    ids = tokenizer(TEXTS)
    ends = torch.tensor([int((row == tokenizer.end_id).int().argmax()) for row in ids])
    first = tower.first_indicators(3, tokenizer.end_id, torch.Generator().manual_seed(0))
    _, found = tower.features_with_indicators(ids, ends, first)
    _, fewer = tower.features_with_indicators(ids, ends, first[[0, 2]])
    assert torch.allclose(found[:, [0, 2]], fewer, atol=1e-5)
    noisy = ids.clone()
    for row, end in enumerate(ends.tolist()):
        noisy[row, end:] = 300
    _, same = tower.features_with_indicators(noisy, ends, first)
    assert torch.allclose(found, same, atol=1e-5)


def test_a_tower_that_reads_elsewhere_takes_no_indicators() -> None:
    ours = small_clip()
    ours.query_side()[0].may_be_cut = False
    with pytest.raises(UsageError, match="end-of-text token"):
        ours.adopt_query_side(torch.zeros(2, 128), {}, Path("w"))
