from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from index_store.errors import InputError, UsageError
from index_store.store import Store
from stages.training.config import PRESETS, TrainConfig, read_recipe, with_options
from stages.training.journal import Journal
from stages.training.lists import draw_batch, draw_pool, top_lists
from stages.training.objective import Setup
from stages.training.pairs import CaptionedId, PairCorpus, nearest
from stages.training.ranks import Ranks, join_ranks
from stages.training.token_binder import TokenBinderObjective
from stages.training.trainer import Trainer
from tests.stages.ordered import ordered_store, small_clip

Data = tuple[Store, list[CaptionedId]]
QUICK = replace(
    PRESETS["small"], epochs=1.0, batch_size=16, num_candidates=4, micro_lists=8, evaluate_every=4, validation=0.2
)

LOSSES = ("broad_loss", "focused_loss", "focused_loss_v2t")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return ordered_store(tmp_path_factory.mktemp("ordered") / "store", 60)


class Stop(BaseException):
    """As a kill: nothing is saved on the way out."""


def run(data: Data, folder: Path, config: TrainConfig, kill_at: int = -1, stop_at: int = -1) -> Trainer:
    store, captions = data
    with store.snapshot() as snapshot:
        trainer = token_binder(store, PairCorpus(snapshot, captions), config)
        done = 0

        def on_step(count: int) -> None:
            nonlocal done
            done += count
            if done == kill_at:
                raise Stop

        report = trainer.run(Journal(folder / "log.jsonl"), folder / "state", on_step, lambda: done == stop_at)
        assert report.interrupted == (stop_at > 0)
    return trainer


def token_binder(store: Store, corpus: PairCorpus, config: TrainConfig, ranks: Ranks | None = None) -> Trainer:
    setup = Setup(corpus, config, torch.device("cpu"), ranks or Ranks())
    return Trainer(setup, TokenBinderObjective(setup, store.settings, small_clip()))


def equal_weights(one: Trainer, other: Trainer) -> bool:
    first, second = one.module.state_dict(), other.module.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_training_finds_held_out_videos_that_the_broad_view_cannot_tell_apart(data: Data, tmp_path: Path) -> None:
    config = replace(QUICK, epochs=30, batch_size=24, evaluate_every=24, v2t=False)
    trainer = run(data, tmp_path, config)
    first, best = trainer.first_validation, trainer.best_validation
    assert first is not None
    assert best is not None
    assert first.focused == first.broad
    assert best.focused["R@1"] >= best.broad["R@1"] + 10
    assert trainer.objective.indicator_cosine(trainer.validate_on) < 0.99


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kill_at", "stop_at", "changes"),
    [
        (5, -1, {}),
        (-1, 5, {}),
        (5, -1, {"precision": "bfloat16"}),
        (5, -1, {"optimiser": "bertadam", "schedule": "bert-cosine"}),
        (5, -1, {"optimiser": "clip-vip-adamw", "schedule": "clip-vip-invsqrt", "contrast": "dual-softmax"}),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_weights(
    data: Data, tmp_path: Path, kill_at: int, stop_at: int, changes: dict[str, Any]
) -> None:
    config = replace(QUICK, gumbel=0.5, evaluate_every=3, **{"precision": "float32", **changes})
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = run(data, tmp_path / "whole", config)
    assert whole.step == 6
    with contextlib.suppress(Stop):
        assert run(data, tmp_path / "cut", config, kill_at, stop_at).step == stop_at
    cut = run(data, tmp_path / "cut", config)
    assert equal_weights(whole, cut)
    lines = [Journal(tmp_path / name / "log.jsonl").read() for name in ("whole", "cut")]
    for line in lines[0] + lines[1]:
        line.pop("seconds", None)
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_the_size_of_the_parts_changes_no_gradient(data: Data, tmp_path: Path) -> None:
    found = []
    for size in (3, 16):
        (tmp_path / str(size)).mkdir()
        found.append(run(data, tmp_path / str(size), replace(QUICK, micro_lists=size, epochs=0.1)))
    for one, other in zip(found[0].module.parameters(), found[1].module.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-3)


@pytest.mark.slow
def test_bfloat16_learns_as_float32_does_around_float32_weights(data: Data, tmp_path: Path) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        folder = tmp_path / precision
        folder.mkdir()
        trainer = run(data, folder, replace(QUICK, epochs=2.0, precision=precision, evaluate_every=100))
        assert all(value.dtype == torch.float32 and value.isfinite().all() for value in trainer.module.parameters())
        steps = [line for line in Journal(folder / "log.jsonl").read() if line["event"] == "step"]
        losses.append(np.array([[line[name] for name in LOSSES] for line in steps]))
    assert len(losses[0]) == 12
    assert losses[1] == pytest.approx(losses[0], abs=0.01)
    assert (losses[1] != losses[0]).all()


@pytest.mark.slow
def test_another_run_is_not_gone_on_with(data: Data, tmp_path: Path) -> None:
    config = replace(QUICK, epochs=0.5)
    run(data, tmp_path, config)
    with pytest.raises(UsageError, match="another learning_rate"):
        run(data, tmp_path, replace(config, learning_rate=0.1))
    (tmp_path / "state").write_bytes(b"x")
    with pytest.raises(InputError, match="cannot be read"):
        run(data, tmp_path, config)


@pytest.mark.slow
def test_a_frozen_text_tower_stays_and_is_not_written(data: Data, tmp_path: Path) -> None:
    trainer = run(data, tmp_path, replace(QUICK, text_learning_rate=0.0, epochs=0.3))
    before = small_clip().query_side()[0].module.state_dict()
    after = trainer.module.text.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not trainer.weights().text
    earlier = replace(trainer.weights(), text=after)
    setup = Setup(trainer.corpus, trainer.config, torch.device("cpu"))
    gone_on = TokenBinderObjective(setup, data[0].settings, small_clip(), earlier)
    assert set(gone_on.weights(gone_on.module.state_dict()).text) == set(after)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"head": "positional"}, {"num_blocks": 2}, {"is_listwise": False}, {"v2t": False}])
def test_every_form_can_be_trained(data: Data, tmp_path: Path, changes: dict[str, object]) -> None:
    trainer = run(data, tmp_path, replace(QUICK, epochs=0.2, **changes))  # type: ignore[arg-type]
    assert all(parameter.isfinite().all() for parameter in trainer.module.parameters())
    path = tmp_path / "w.safetensors"
    trainer.weights().save(path)
    trainer.weights().network(path)


@pytest.mark.slow
def test_the_broad_view_can_learn_alone(data: Data, tmp_path: Path) -> None:
    trainer = run(data, tmp_path, replace(QUICK, epochs=0.3, focused=False, gumbel=1.0))
    untrained = token_binder(data[0], trainer.corpus, trainer.config)
    before, after = untrained.module.state_dict(), trainer.module.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"text", "indicators", "log_scale"}
    lines = [line for line in Journal(tmp_path / "log.jsonl").read() if line["event"] == "validation"]
    assert [line["step"] for line in lines] == [0, trainer.num_steps]
    assert all(line["focused"] == line["broad"] for line in lines)


def test_ranks_part_everything_and_nothing_twice() -> None:
    parts = [list(range(11))[Ranks(rank, 4).part(11)] for rank in range(4)]
    assert [number for part in parts for number in part] == list(range(11))
    assert {len(part) for part in parts} == {2, 3}


def test_a_batch_smaller_than_the_number_of_processes_is_refused(data: Data) -> None:
    store, captions = data
    config = replace(QUICK, batch_size=2)
    with store.snapshot() as snapshot:
        corpus = PairCorpus(snapshot, captions)
    with pytest.raises(UsageError, match="a batch of 2 captions cannot be parted among 3 processes"):
        token_binder(store, corpus, config, Ranks(0, 3))


def test_half_of_what_torchrun_says_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UsageError, match="RANK is '' in the environment"), join_ranks("cpu"):
        pass


def test_an_epoch_goes_through_the_videos_or_through_the_captions(data: Data) -> None:
    store, captions = data
    several = [caption for caption in captions for _ in range(1 + caption.video_id % 3)]
    config = replace(QUICK, epochs=2.0, batch_size=8, validation=0.0)
    with store.snapshot() as snapshot:
        corpus = PairCorpus(snapshot, several)
        for epoch_of, number in (("videos", len(corpus)), ("captions", len(several))):
            chosen = with_options(config, {"epoch_of": epoch_of}, "a test")
            assert token_binder(store, corpus, chosen).num_steps == -(-2 * number // 8)


def test_captions_of_a_handful_of_videos_are_refused(data: Data) -> None:
    store, captions = data
    with store.snapshot() as snapshot, pytest.raises(InputError, match="3 videos have captions"):
        PairCorpus(snapshot, captions[:3])


# -- batches and lists ------------------------------------------------------------------------------------------------


def test_batches_go_through_all_videos_and_bring_their_neighbours(data: Data) -> None:
    store, captions = data
    with store.snapshot() as snapshot:
        corpus = PairCorpus(snapshot, captions)
        train_on, held = corpus.split(0.2, seed=0)
        assert sorted([*train_on, *held]) == list(range(len(corpus)))
        whole, apart = corpus.split(0.2, seed=0, run=4)
        assert sorted([*whole, *apart]) == list(range(len(corpus)))
        assert len(apart) == len(held)
        assert not set(whole // 4) & set(apart // 4)
        batches = [draw_batch(corpus, train_on, 16, 3, seed=0, step=step) for step in range(24)]
        assert all(len(set(batch.positions.tolist())) == 16 for batch in batches)
        assert not set(np.concatenate([batch.positions for batch in batches]).tolist()) & set(held.tolist())
        seeds = np.concatenate([batch.positions[:4] for batch in batches])
        assert set(seeds[: len(train_on)].tolist()) == set(train_on.tolist())
        again = draw_batch(corpus, train_on, 16, 3, seed=0, step=5)
        assert (again.positions == batches[5].positions).all()
        assert again.texts == batches[5].texts
        assert again.texts == [corpus.captions[position][0] for position in again.positions]


def test_a_pool_holds_the_batch_and_its_neighbours(data: Data) -> None:
    store, captions = data
    with store.snapshot() as snapshot:
        corpus = PairCorpus(snapshot, captions)
        allowed, _ = corpus.split(0.2, seed=0)
        batch = draw_batch(corpus, allowed, 4, 1, seed=0, step=5)
        pool = draw_pool(corpus, allowed, batch, 12, run=1, seed=0, step=5)
        assert pool.tolist() == sorted(set(pool.tolist()))
        assert len(pool) == 12
        closest = nearest(corpus.pooled, batch.positions, allowed, 1)
        assert {*batch.positions.tolist(), *closest.ravel().tolist()} <= set(pool.tolist()) <= set(allowed.tolist())
        assert (pool == draw_pool(corpus, allowed, batch, 12, run=1, seed=0, step=5)).all()
        assert (allowed == draw_pool(corpus, allowed, batch, 0, run=1, seed=0, step=5)).all()
        assert draw_pool(corpus, allowed, batch, 2, run=1, seed=0, step=5).tolist() == sorted(batch.positions.tolist())


def test_what_a_caption_compares_enters_the_pool_together(data: Data) -> None:
    store, captions = data
    with store.snapshot() as snapshot:
        corpus = PairCorpus(snapshot, captions)
        allowed, _ = corpus.split(0.2, seed=0, run=4)
        batch = draw_batch(corpus, allowed, 4, 0, seed=0, step=5)
        alone = draw_pool(corpus, allowed, batch, 20, run=1, seed=0, step=5)
        together = draw_pool(corpus, allowed, batch, 20, run=4, seed=0, step=5)
        for pool, is_whole in ((alone, False), (together, True)):
            of_runs = np.isin(allowed // 4, pool // 4)
            assert (sorted(pool.tolist()) == allowed[of_runs].tolist()) is is_whole
            assert set(batch.positions.tolist()) <= set(pool.tolist())
        assert 20 <= len(together) < 24
        needed = draw_pool(corpus, allowed, batch, 2, run=4, seed=0, step=5)
        assert needed.tolist() == allowed[np.isin(allowed // 4, batch.positions // 4)].tolist()


def test_lists_are_the_best_by_broad_score_and_hold_the_right_one() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.5], [0.9, 0.8, 0.1, 0.2]])
    lists = top_lists(scores, torch.tensor([2, 2]), 2)
    assert lists.candidates.tolist() == [[1, 2], [3, 2]]
    assert lists.target.tolist() == [1, 1]
    assert top_lists(scores, torch.tensor([3, 0]), 9).candidates.tolist() == [[1, 2, 3, 0], [0, 1, 3, 2]]


def test_the_right_one_that_was_not_recalled_is_not_told_by_its_place() -> None:
    scores = torch.arange(30.0).flip(0).repeat(12, 1)
    right = torch.arange(8, 20)
    lists = top_lists(scores, right, 4)
    assert lists.target.tolist() == [0, 1, 2, 3] * 3
    assert lists.candidates[np.arange(12), lists.target].tolist() == right.tolist()
    assert (np.diff(lists.candidates, axis=1) == 1).all()
    assert top_lists(scores, torch.full((12,), 29), 4).candidates.tolist() == [[26, 27, 28, 29]] * 12
    assert top_lists(scores, torch.full((12,), 3), 4).candidates.tolist() == [[0, 1, 2, 3]] * 12


# -- settings ---------------------------------------------------------------------------------------------------------


def test_the_paper_is_the_default() -> None:
    paper = PRESETS["tokenbinder"]
    assert (paper.num_indicators, paper.num_candidates, paper.num_blocks, paper.batch_size) == (4, 10, 1, 128)
    assert (paper.learning_rate, paper.text_learning_rate, paper.weight_decay, paper.epochs) == (1e-4, 1e-6, 0.2, 5)


def test_a_recipe_overrides_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("[train]\nepochs = 20\nhead = 'positional'\n")
    recipe = read_recipe(path, PRESETS["tokenbinder"])
    assert (recipe.epochs, recipe.head, recipe.batch_size) == (20, "positional", 128)
    assert with_options(recipe, {"epochs": 0.5}, "a test").epochs == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nepoch = 3\n", "sets 'epoch', which no recipe has"),
        ("[train]\nepochs = 'many'\n", "expected float"),
        ("[train]\nv2t = 1\n", "expected bool"),
        ("[train\n", "cannot be read as a TOML recipe"),
    ],
)
def test_a_broken_recipe_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_recipe(path, PRESETS["tokenbinder"])


@pytest.mark.parametrize(
    "options",
    [
        {"num_candidates": 1},
        {"epochs": 0.0},
        {"validation": 1.0},
        {"validation_run": 0},
        {"pool": -1},
        {"num_indicators": 1},
        {"precision": "half"},
    ],
)
def test_what_cannot_be_trained_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        with_options(PRESETS["tokenbinder"], options, "a test")


def test_a_journal_that_was_cut_by_a_kill_is_read_up_to_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.jsonl")
    for step in range(4):
        journal.add("step", step, loss=1.0)
    with journal.path.open("a") as file:
        file.write('{"event": "st')
    assert [line["step"] for line in journal.read()] == [0, 1, 2, 3]
    journal.cut(1)
    assert [json.loads(line)["step"] for line in journal.path.read_text().splitlines()] == [0, 1]
