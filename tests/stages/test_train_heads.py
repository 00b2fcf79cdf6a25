from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from index_store.errors import FingerprintError, InputError, UsageError
from index_store.settings import TokenSettings
from index_store.store import Store
from stages.rerankers.base import CandidateBatch, QueryBatch
from stages.rerankers.eercf import EercfHead
from stages.rerankers.fusion import FusionConfig
from stages.rerankers.head_weights import HeadWeights, open_reranker
from stages.rerankers.token_binder import FeatureKind, TokenBinderWeights
from stages.training.config import PRESETS, TrainConfig, choose
from stages.training.eercf_loss import EercfLossWeights, eercf_terms
from stages.training.heads import MAX_LOG_SCALE
from stages.training.journal import Journal
from stages.training.lists import Batch
from stages.training.losses import contrast
from stages.training.objective import Setup
from stages.training.pairs import PairCorpus
from stages.training.pairwise import HeadObjective
from stages.training.ranks import Ranks
from stages.training.trainer import Trainer
from tests.stages.ordered import FRAMES, ordered_store, small_clip

Data = tuple[Store, PairCorpus]
FORMS: dict[str, dict[str, Any]] = {
    "clip4clip": {"method": "clip4clip"},
    "clip4clip-meanP": {"method": "clip4clip", "temporal": "none"},
    "clip4clip-seqLSTM": {"method": "clip4clip", "temporal": "lstm"},
    "clip4clip-tight": {"method": "clip4clip-tight"},
    "x-clip": {"method": "x-clip"},
    "ts2-net": {"method": "ts2-net"},
    "ucofia": {"method": "ucofia"},
    "eercf": {"method": "eercf"},
}
TINY = replace(
    PRESETS["small"],
    batch_size=6,
    num_layers=1,
    num_words=8,
    num_draws=4,
    micro_videos=4,
    neighbours=0,
    warmup=0.0,
    validation=0.2,
)


@contextmanager
def opened(folder: Path, num_pairs: int, keep: str) -> Iterator[Data]:
    store, captions = ordered_store(folder / "store", num_pairs, keep)
    with store.snapshot() as snapshot:
        yield store, PairCorpus(snapshot, captions)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Data]:
    with opened(tmp_path_factory.mktemp("pairs"), 8, "5") as found:
        yield found


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Data]:
    with opened(tmp_path_factory.mktemp("ordered"), 60, "2") as found:
        yield found


def setup(data: Data, config: TrainConfig, ranks: Ranks | None = None) -> Setup:
    return Setup(data[1], config, torch.device("cpu"), ranks or Ranks())


def trainer(data: Data, config: TrainConfig, start: Path | None = None) -> Trainer:
    shared = setup(data, config)
    return Trainer(shared, HeadObjective(shared, data[0].settings, small_clip(), start))


def fixed_batch(corpus: PairCorpus, size: int = 6) -> Batch:
    positions = np.arange(size)
    return Batch(positions, [corpus.captions[position][0] for position in positions])


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_every_method_lowers_its_loss_on_a_fixed_batch(form: str, data: Data) -> None:
    config = replace(TINY, **FORMS[form])
    found = trainer(data, config)
    before = {name: value.clone() for name, value in found.module.state_dict().items()}
    batch = fixed_batch(found.corpus)
    losses = []
    for _ in range(4):
        found.optimiser.zero_grad()
        for group in found.optimiser.param_groups:
            group["lr"] = group["peak"]
        found.module.train()
        losses.append(found.objective.gradients(batch, found.train_on)["loss"])
        found.optimiser.step()
        found.objective.after_step()
    assert losses[-1] < losses[0]
    after = found.module.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not {"text.token_embedding.weight", "text.positional_embedding"} & changed
    assert "text.text_projection" in changed
    matrices = [name for name in before if "mat_weight" in name or "logit_weight" in name]
    assert changed >= set(matrices)
    assert changed >= {name for name in before if name.endswith(("out_proj.weight", "out_conv.0.weight"))}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_ranks_as_what_was_trained(form: str, data: Data, tmp_path: Path) -> None:
    store, path = data[0], tmp_path / "head.safetensors"
    found = trainer(data, replace(TINY, **FORMS[form]))
    with torch.no_grad():
        for parameter in found.module.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    found.weights().save(path)
    model = small_clip()
    assert HeadWeights.load(path).text
    reranker = open_reranker(path, found.config.method, store.settings, model)
    batch = fixed_batch(found.corpus)
    videos = found.corpus.raw_tokens(batch.positions)
    index = torch.arange(6).repeat(6, 1)
    candidates = CandidateBatch(videos.tokens, None, videos.frame_mask, index, torch.zeros(6, 6))
    scores = reranker.rank(QueryBatch.of(model.encode_texts(batch.texts)), candidates)
    head = found.module.eval().head
    with torch.no_grad():
        prepared = head.videos(videos.tokens if head.sees_patches else videos.tokens[:, :, :1], videos.frame_mask)
        expected = head.score(head.texts(found.module.encode(batch.texts))[None], prepared).T
    frames = found.corpus.raw_tokens(batch.positions, with_patches=False)
    assert torch.equal(frames.tokens, videos.tokens[:, :, :1])
    assert torch.equal(frames.frame_mask, videos.frame_mask)
    assert scores == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert len(set(scores.flatten().tolist())) > 1


@pytest.mark.slow
def test_the_size_of_the_blocks_changes_no_gradient(data: Data) -> None:
    gradients = []
    for size in (1, 4, 6):
        found = trainer(data, replace(TINY, method="x-clip", micro_videos=size))
        batch = fixed_batch(found.corpus)
        found.objective.gradients(batch, found.train_on)
        gradients.append({name: value.grad for name, value in found.module.named_parameters()})
    videos, head = found.corpus.raw_tokens(batch.positions), found.module.head
    found.module.zero_grad()
    texts = head.texts(found.module.encode(batch.texts))
    contrast("mean", head.score(texts[None], head.videos(videos.tokens[:, :, :1], videos.frame_mask)).T).backward()
    plain = {name: value.grad for name, value in found.module.named_parameters()}
    for other in gradients:
        assert {name for name in plain if plain[name] is None} == {name for name in other if other[name] is None}
        for name, value in plain.items():
            assert value is None or torch.allclose(value, other[name], atol=1e-5)


def test_both_passes_over_a_block_draw_the_same_noise(data: Data) -> None:
    found = trainer(data, replace(TINY, method="ts2-net"))
    objective = found.objective.module.train() and found.objective
    queries = objective.module.encode(fixed_batch(found.corpus).texts)
    ((block, seed), (_, other), *_) = objective._blocks(np.arange(6))
    assert torch.equal(objective._scores(queries, block, seed), objective._scores(queries, block, seed))
    assert not torch.equal(objective._scores(queries, block, seed), objective._scores(queries, block, other))


def test_eercf_is_trained_with_its_own_loss(data: Data) -> None:
    found = trainer(data, replace(TINY, method="eercf"))
    batch = fixed_batch(found.corpus)
    videos, head = found.corpus.raw_tokens(batch.positions), found.module.head
    assert isinstance(head, EercfHead)
    terms = eercf_terms(head, found.module.encode(batch.texts), videos.tokens, videos.frame_mask)
    expected = terms.loss(EercfLossWeights()).item()
    assert found.objective.gradients(batch, found.train_on)["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sum", "dual-softmax", "mil-nce", "max-margin", "triplet"])
def test_a_head_can_be_trained_with_any_contrast(name: str, data: Data) -> None:
    found = trainer(data, replace(TINY, method="clip4clip", temporal="none", contrast=name))
    captions = [*found.corpus.captions[0], *found.corpus.captions[1], *found.corpus.captions[0]]
    measured = found.objective.gradients(Batch(np.arange(3), captions), found.train_on)
    assert math.isfinite(measured["loss"])
    gradients = [value.grad for value in found.module.parameters() if value.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_heads_start_as_the_papers_do(data: Data) -> None:
    clip = small_clip()
    config = replace(TINY, method="ucofia", num_layers=5)
    head = HeadObjective(setup(data, config), data[0].settings, clip).module.head
    text = clip.query_side()[0].module
    for block, layer in zip(head.transformerClip.resblocks[:3], text.transformer.resblocks, strict=True):
        assert all(torch.equal(value, layer.state_dict()[name]) for name, value in block.state_dict().items())
    assert head.transformerClip.resblocks[0].attn.num_heads == text.transformer.resblocks[0].attn.num_heads
    assert head.transformerClip.resblocks[4].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(head.frame_position_embeddings.weight, text.positional_embedding)
    assert torch.equal(head.pixel_mat_weight, torch.eye(4 * FRAMES))
    assert head.logit_scale.exp().item() == pytest.approx(min(clip.logit_scale, 100.0))


def test_the_temperature_is_not_let_below_a_hundredth(data: Data) -> None:
    found = trainer(data, replace(TINY, method="clip4clip"))
    found.module.head.logit_scale.data.fill_(9.0)
    assert found.objective.after_step() == {"scale": pytest.approx(100.0)}
    assert found.module.head.logit_scale.item() == pytest.approx(MAX_LOG_SCALE)


def test_a_text_tower_that_never_learned_is_not_written(data: Data, tmp_path: Path) -> None:
    found = trainer(data, replace(TINY, method="x-clip", text_learning_rate=0.0))
    found.objective.gradients(fixed_batch(found.corpus), found.train_on)
    path = tmp_path / "head.safetensors"
    found.weights().save(path)
    assert not HeadWeights.load(path).text
    trainer(data, replace(TINY, method="x-clip")).weights().save(path)
    frozen = trainer(data, replace(TINY, method="x-clip", text_learning_rate=0.0), path)
    assert set(frozen.weights().text) == set(HeadWeights.load(path).text)
    with pytest.raises(UsageError, match="nothing would learn"):
        trainer(data, replace(TINY, method="clip4clip", temporal="none", text_learning_rate=0.0))


@pytest.mark.slow
def test_earlier_weights_are_gone_on_with(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    first = trainer(data, replace(TINY, method="x-clip"))
    with torch.no_grad():
        for parameter in first.module.parameters():
            parameter.add_(0.01)
    first.weights().save(path)
    second = trainer(data, replace(TINY, method="x-clip", num_layers=3, num_words=5), path)
    assert all(
        torch.equal(value, second.module.state_dict()[name]) for name, value in first.module.state_dict().items()
    )
    assert second.weights().sizes == first.weights().sizes
    with pytest.raises(UsageError, match="has weights of x-clip, the method to train is eercf"):
        trainer(data, replace(TINY, method="eercf"), path)
    other = replace(data[0].settings, tokens=TokenSettings("float16", "1"))
    config = setup(data, replace(TINY, method="ts2-net"))
    Trainer(config, HeadObjective(config, data[0].settings, small_clip())).weights().save(path)
    with pytest.raises(FingerprintError, match="keep_tokens"):
        HeadObjective(config, other, small_clip(), path)
    path.write_bytes(b"x")
    with pytest.raises(InputError, match="cannot be read"):
        HeadObjective(config, other, small_clip(), path)


def test_a_head_starts_from_the_text_tower_of_token_binder(data: Data, tmp_path: Path) -> None:
    settings, path = data[0].settings, tmp_path / "binder.safetensors"
    tower = small_clip().query_side()[0].module.state_dict()
    text = {name: value + 0.01 for name, value in tower.items()}
    config = FusionConfig(settings.embed_dim, settings.token_shape[1])
    indicators = torch.zeros(config.num_indicators, 1)
    binder = TokenBinderWeights(FeatureKind.of(settings), config, 10.0, indicators, text, {})
    binder.save(path)
    found = trainer(data, replace(TINY, method="x-clip", text_learning_rate=0.0), path).weights()
    assert found.method == "x-clip"
    assert all(torch.equal(found.text[name], value) for name, value in text.items())
    replace(binder, kind=replace(binder.kind, weights_sha256="0" * 64)).save(path)
    with pytest.raises(FingerprintError, match="weights_sha256"):
        trainer(data, replace(TINY, method="x-clip"), path)


def test_what_heads_cannot_do_is_refused(data: Data) -> None:
    for config, ranks, message in (
        (replace(TINY, method="x-clip"), Ranks(0, 2), "several processes train token-binder only"),
        (replace(TINY, method="eercf", contrast="sum"), None, "EERCF has a loss of its own"),
        (replace(TINY, method="clip4clip-tight", temporal="none"), None, "is a transformer"),
    ):
        with pytest.raises(UsageError, match=message):
            HeadObjective(setup(data, config, ranks), data[0].settings, small_clip())
    with pytest.raises(UsageError, match="'lstm' is clip4clip's"):
        replace(TINY, method="x-clip", temporal="lstm")
    with pytest.raises(UsageError, match="num_draws = 0"):
        replace(TINY, num_draws=0)
    with pytest.raises(UsageError, match="method = 'clip5clip', expected one of token-binder"):
        replace(TINY, method="clip5clip")  # type: ignore[arg-type]


def test_a_method_brings_its_papers_recipe(tmp_path: Path) -> None:
    assert choose(None, None, {}) == PRESETS["tokenbinder"]
    assert choose(None, None, {"method": "x-clip"}) == PRESETS["x-clip"]
    assert choose("small", None, {"method": "x-clip"}) == replace(PRESETS["small"], method="x-clip")
    path = tmp_path / "r.toml"
    path.write_text('[train]\nmethod = "eercf"\nepochs = 2\n')
    assert choose(None, path, {"batch_size": 7}) == replace(PRESETS["eercf"], epochs=2, batch_size=7)
    assert choose(None, path, {"method": "ucofia"}).batch_size == 128
    ours = PRESETS["x-clip"]
    assert (ours.batch_size, ours.epochs, ours.learning_rate, ours.text_learning_rate) == (300, 5, 1e-4, 1e-7)
    assert {name: PRESETS[name].epochs for name in ("ts2-net", "ucofia")} == {"ts2-net": 5, "ucofia": 15}
    with pytest.raises(UsageError, match="method = 'clip5clip'"):
        choose(None, None, {"method": "clip5clip"})


class Stop(BaseException):
    """As a kill: nothing is saved on the way out."""


def run(found: Trainer, folder: Path, kill_at: int = -1) -> Trainer:
    def on_step(count: int) -> None:
        if found.step == kill_at:
            raise Stop

    folder.mkdir(exist_ok=True)
    found.run(Journal(folder / "log.jsonl"), folder / "state", on_step)
    return found


@pytest.mark.slow
def test_x_clip_learns_to_tell_held_out_videos_apart_that_the_broad_view_cannot(many: Data, tmp_path: Path) -> None:
    config = replace(
        PRESETS["small"], method="x-clip", batch_size=24, epochs=12, validation=0.2, evaluate_every=12, num_words=16
    )
    found = run(trainer(many, config), tmp_path / "run")
    first, best = found.first_validation, found.best_validation
    assert first is not None
    assert best is not None
    assert best.focused["R@1"] >= max(first.focused["R@1"], first.broad["R@1"], best.broad["R@1"]) + 15
    assert best.reciprocal_rank >= first.reciprocal_rank + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ts2-net", "eercf"])
def test_a_stopped_run_of_a_head_goes_on_to_the_same_weights(method: Any, data: Data, tmp_path: Path) -> None:
    config = replace(TINY, method=method, epochs=4.0, evaluate_every=4, optimiser="bertadam", schedule="bert-cosine")
    whole = run(trainer(data, config), tmp_path / "whole")
    with pytest.raises(Stop):
        run(trainer(data, config), tmp_path / "cut", kill_at=6)
    cut = run(trainer(data, config), tmp_path / "cut")
    assert all(torch.equal(value, cut.module.state_dict()[name]) for name, value in whole.module.state_dict().items())
    assert all(torch.equal(value, cut.best[name]) for name, value in whole.best.items())
    lines = [Journal(tmp_path / name / "log.jsonl").read() for name in ("whole", "cut")]
    for line in lines[0] + lines[1]:
        line.pop("seconds", None)
    assert lines[0] == lines[1]
