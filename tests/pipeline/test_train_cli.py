from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import pytest

from pipeline.cli import train as train_command
from stages.synthetic.render import render_families
from stages.training.config import PRESETS, Method
from tests.pipeline.conftest import SMALL, Outcome, Run
from tests.pipeline.test_cli import one_line_error
from tests.stages.dataset_files import write

QUICK = ("--preset", "small", "--set", "epochs=2", "--set", "batch_size=4", "--set", "num_candidates=3")
KEPT = ("--set", "validation=0.4", "--set", "evaluate_every=1")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve near-duplicates in three groups."""
    folder = tmp_path_factory.mktemp("families")
    render_families(folder, seed=5, num_videos=12)
    return folder / "videos"


@pytest.fixture(scope="module")
def captions(clips: Path) -> Path:
    return clips.parent / "captions.jsonl"


@pytest.fixture(scope="module")
def store(clips: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their store, with an index. Tests only read it."""
    folder = tmp_path_factory.mktemp("trained") / "store"
    assert run("extract", clips, "--store", folder, *SMALL, "--frames", 4).code == 0
    assert run("index", "--store", folder).code == 0
    return folder


def train(run: Run, store: Path, captions: Path, output: Path, *arguments: object) -> Outcome:
    return run("train", "--store", store, "--captions", captions, "--output", output, "--device", "cpu", *arguments)


@pytest.mark.slow
def test_train_writes_weights_log_and_plot_that_rerank_evaluate_and_search_take(
    clips: Path, captions: Path, store: Path, run: Run, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="--plot needs matplotlib")
    weights = tmp_path / "binder.safetensors"
    done = train(run, store, captions, weights, *QUICK, *KEPT, "--plot", "--json")
    assert done.code == 0, done.err
    assert (done.json["num_videos"], done.json["num_captions"]) == (12, 12)
    assert done.json["before"]["focused"] == done.json["before"]["broad"]
    events = {json.loads(line)["event"] for line in (tmp_path / "binder.jsonl").read_text().splitlines()}
    assert events == {"step", "validation"}
    assert (tmp_path / "binder.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "binder.state").exists()

    table = train(run, store, captions, tmp_path / "again.safetensors", *QUICK, *KEPT)
    assert table.code == 0, table.err
    for part in ("validation", "before", "after", "broad", "focused", "again.safetensors"):
        assert part in table.out
    assert (tmp_path / "again.safetensors").read_bytes() == weights.read_bytes()

    output = tmp_path / "run.trec"
    asked = ("--store", store, "--weights", weights)
    done = run("rerank", *asked, "--queries", clips.parent / "queries.jsonl", "--output", output, "--json")
    assert done.code == 0, done.err
    assert done.json["method"] == "token-binder"
    assert output.read_text().splitlines()[0].endswith(" token-binder")
    done = run("evaluate", *asked, "--captions", captions, "--json")
    assert done.code == 0, done.err
    assert done.json["method"] == "token-binder"
    assert run("search", *asked, "a red star").code == 0


@pytest.mark.slow
def test_the_shipped_weights_are_there_for_the_shipped_model(
    clips: Path, captions: Path, store: Path, run: Run, tmp_path: Path
) -> None:
    done = run(
        "evaluate", "--store", store, "--captions", captions, "--method", "token-binder", "--json"
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["method"] == "token-binder"
    other = tmp_path / "store"
    assert run("extract", clips, "--store", other, *SMALL, "--frames", 4, "--keep-tokens", "cls").code == 0
    assert run("index", "--store", other).code == 0
    asked = ("evaluate", "--store", other, "--captions", captions, "--method", "token-binder")
    one_line_error(run(*asked), 2, "none of the weights", "--weights")
    weights = tmp_path / "w.safetensors"
    assert train(run, store, captions, weights, *QUICK).code == 0
    one_line_error(run(*asked, "--weights", weights), 12, "keep_tokens cls", "keep_tokens all", "tbpipe train")


def test_what_cannot_be_trained_is_said_before_any_work(captions: Path, store: Path, run: Run, tmp_path: Path) -> None:
    output = tmp_path / "w.safetensors"

    def asked(*arguments: object, captions: Path = captions, output: Path = output) -> Outcome:
        return train(run, store, captions, output, *arguments)

    one_line_error(asked(output=tmp_path / "w.pt"), 2, ".safetensors")
    one_line_error(asked(output=tmp_path / "none" / "w.safetensors"), 17, "does not exist")
    one_line_error(asked(captions=tmp_path / "none.jsonl"), 17, "cannot read")
    one_line_error(asked("--set", "epochs"), 2, "NAME=VALUE")
    one_line_error(asked("--set", "epoch=3"), 17, "'epoch'", "epochs")
    one_line_error(asked("--set", "epochs=many"), 17, "float")
    one_line_error(asked("--set", "num_indicators=1"), 2, "at least 2")
    one_line_error(asked("--split", "test"), 17, "'test'")
    one_line_error(asked("--start", captions), 17, "cannot be read as TokenBinder weights")
    one_line_error(asked("--start", captions, "--method", "x-clip"), 17, "cannot be read as the weights of a reranker")
    one_line_error(asked("--finetune", "--method", "x-clip"), 2, "--finetune", "x-clip")
    one_line_error(asked("--set", "temporal=lstm", "--method", "eercf"), 2, "clip4clip")
    other = tmp_path / "captions.jsonl"
    other.write_text('{"key": "elsewhere.mp4", "caption": "a dog"}\n')
    one_line_error(asked(captions=other), 17, "none of the 1 captions", "elsewhere.mp4")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[train]\nepochs = 'x'\n")
    one_line_error(asked("--recipe", recipe), 17, "recipe.toml", "epochs")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.jsonl", "recipe.toml"]


def test_train_offers_every_method_and_every_preset() -> None:
    choices = {option.name: option.type for option in train_command.params}
    assert tuple(choices["method"].choices) == get_args(Method)
    assert set(choices["preset"].choices) == set(PRESETS)


@pytest.mark.slow
def test_a_trained_head_and_its_text_tower_answer_in_rerank_evaluate_and_search(
    clips: Path, captions: Path, store: Path, run: Run, tmp_path: Path
) -> None:
    weights = tmp_path / "head.safetensors"
    small = (*QUICK[:4], "--set", "batch_size=6", "--set", "num_candidates=12", "--set", "text_learning_rate=0.01")
    done = train(run, store, captions, weights, "--method", "x-clip", *small, *KEPT, "--json")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in (tmp_path / "head.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    assert all(line["loss"] > 0 and line["scale"] > 1 for line in steps)

    asked = ("--store", store, "--weights", weights)
    output = tmp_path / "run.trec"
    done = run("rerank", *asked, "--method", "x-clip", "--queries", clips.parent / "queries.jsonl", "--output", output)
    assert done.code == 0, done.err
    assert output.read_text().splitlines()[0].endswith(" x-clip")
    found = run("evaluate", *asked, "--captions", captions, "--json")
    assert found.code == 0, found.err
    assert found.json["method"] == "x-clip"
    plain = run("evaluate", "--store", store, "--method", "x-clip", "--captions", captions, "--json")
    broad = [one.json["text_to_video"]["broad"] for one in (found, plain)]
    assert broad[0] != broad[1]  # the text tower has learned, and recalls
    assert run("search", *asked, "a red star").code == 0
    one_line_error(run("search", *asked, "a red star", "--method", "eercf"), 2, "has weights of x-clip")


@pytest.mark.slow
def test_a_recipe_and_earlier_weights_are_used(captions: Path, store: Path, run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[train]\nepochs = 2\nbatch_size = 4\nnum_candidates = 3\nhead = "positional"\nvalidation = 0\n')
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    done = train(run, store, captions, first, "--recipe", recipe, "--json")
    assert done.code == 0, done.err
    assert done.json["before"] is None
    done = train(run, store, captions, second, "--recipe", recipe, "--start", first, "--set", "epochs=1")
    assert done.code == 0, done.err
    assert second.read_bytes() != first.read_bytes()
    left = tmp_path / "folder"
    left.mkdir()
    shutil.copy(first, left)
    found = run("evaluate", "--store", store, "--captions", captions, "--weights", left / first.name, "--json")
    assert found.code == 0, found.err


@pytest.mark.slow
def test_the_training_split_of_a_benchmark_trains_as_its_captions_do(
    captions: Path, store: Path, run: Run, tmp_path: Path
) -> None:
    texts: dict[str, list[str]] = {}
    for line in captions.read_text().splitlines():
        texts.setdefault(json.loads(line)["key"].removesuffix(".mp4"), []).append(json.loads(line)["caption"])
    held = sorted(texts)[:2]
    trained = {name: said for name, said in texts.items() if name not in held}
    write(tmp_path / "msvd" / "train_list.txt", "\n".join([*trained, "gone_1_2"]))
    write(tmp_path / "msvd" / "captions_msvd.json", {**texts, "gone_1_2": ["x"]})
    write(tmp_path / "captions.json", trained)
    assert train(run, store, tmp_path / "captions.json", tmp_path / "a.safetensors", *QUICK).code == 0
    asked = ("--dataset", "msvd", "--annotations", tmp_path, "--output", tmp_path / "b.safetensors")
    done = run("train", "--store", store, *asked, "--device", "cpu", *QUICK, "--json")
    assert done.code == 0, done.err
    assert "1 of the 11 videos of msvd train lack features in the store and were left out: gone_1_2" in done.err
    assert (done.json["num_videos"], done.json["num_captions"]) == (10, 10)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    one_line_error(run("train", "--store", store, "--output", tmp_path / "c.safetensors"), 2, "found no captions")
