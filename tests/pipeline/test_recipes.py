"""The recipes of the benchmarks: the paper's settings, and commands that run on real clips with their captions."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest

from pipeline.cli import main
from stages.datasets import DATASETS
from stages.training.config import PRESETS, read_recipe
from tests.pipeline.conftest import SMALL, Run
from tests.stages.dataset_files import Texts, write_benchmark

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "recipes" / "README.md").read_text("utf-8")
EPOCHS = {"msrvtt": 5, "didemo": 20, "activitynet": 20, "vatex": 20, "msvd": 20, "lsmdc": 10}
COMMANDS = [shlex.split(line.strip()[2:]) for line in README.splitlines() if line.startswith("    $ tbpipe ")]

NAMES = {
    "msrvtt-1ka": ("video{}", "video999{}"),
    "didemo": ("12@N0_{}_ab.mov", "34@N0_{}_cd."),
    "activitynet": ("v_train{}abc", "v_-test_{}"),
    "vatex": ("-train_{0}_00000{0}_000010", "t-{0}_00000{0}_000010"),
    "msvd": ("-train{0}_{0}_20", "_test{0}_{0}_30"),
    "lsmdc": ("0001_A_Film_00.00.1{0}.000-00.00.2{0}.500", "0002_B_00.00.1{0}.000-00.00.2{0}.500"),
}
"""Names as the benchmark makes them, of clips that stand in for its videos."""
REAL = {
    "msrvtt-1ka": ([f"video70{number}" for number in (10, 12, 14, 15, 17, 18, 19)], ["video7500"]),
    "activitynet": ([], ["v_GGSY1Qvo990"]),
    "vatex": ([], ["Bfyp0C02sko_000248_000258"]),
}
"""Clips of the training and of the test part that are the benchmark's own."""
STANDING_IN = (
    "potted_plant_window.mp4",
    "asl_milk.mkv",
    "pedestrian_street.mp4",
    "cat_sofa.mp4",
    "stream_rocks.mp4",
    "night_crossing.mp4",
    "lego_machine.mp4",
    "flipping_pancake.mkv",
    "paraglider_valley.mp4",
    "office_film_scene.mp4",
    "newtons_cradle.gif",
    "carphone.mp4",
)
"""Short ones, so that they are decoded quickly."""
QUICK = ("--set", "epochs=0.5", "--set", "batch_size=4", "--set", "num_candidates=3", "--set", "validation=0.2")


# -- what the recipes say ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EPOCHS)
def test_a_recipe_has_the_settings_of_the_paper(name: str) -> None:
    found = read_recipe(ROOT / "recipes" / f"{name}.toml", PRESETS["small"])
    assert (found.num_indicators, found.num_candidates, found.num_blocks, found.batch_size) == (4, 10, 1, 128)
    assert (found.learning_rate, found.text_learning_rate, found.image_learning_rate) == (1e-4, 1e-6, 1e-6)
    assert (found.optimiser, found.weight_decay, found.epochs) == ("adamw", 0.2, EPOCHS[name])
    takes_all = {"msrvtt": "msrvtt-1ka"}.get(name, name)
    counts_captions = DATASETS[takes_all].splits["train"].protocol == "all captions"
    assert (found.epoch_of == "captions") == counts_captions


def test_there_is_a_recipe_for_every_benchmark_and_every_file_is_explained() -> None:
    assert {path.stem for path in (ROOT / "recipes").glob("*.toml")} == set(EPOCHS)
    for name in DATASETS:
        assert f"`{name}`" in README


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_command_parses(command: list[str]) -> None:
    _, name, *arguments = command
    with main.commands[name].make_context(name, arguments, parent=click.Context(main)) as context:
        assert context.command.name == name
    for path in re.findall(r"recipes/\w+\.toml", " ".join(arguments)):
        assert (ROOT / path).is_file()


# -- the commands on real clips ---------------------------------------------------------------------------------------


def captions_of_clips(assets: Path) -> Texts:
    """Stem of a clip -> its captions: the benchmark's own where it has them, else those that were written for it."""
    found: Texts = {}
    for queries, qrels in (("queries_official.jsonl", "qrels_official.tsv"), ("queries.jsonl", "qrels.tsv")):
        lines = (assets / queries).read_text("utf-8").splitlines()
        texts = {query["_id"]: query["text"].replace('"', "'") for query in map(json.loads, lines)}
        said: Texts = {}
        for line in (assets / qrels).read_text("utf-8").splitlines()[1:]:
            query, clip, _ = line.split("\t")
            said.setdefault(clip, []).append(texts[query])
        found = {**said, **found}
    return found


def lay_out(assets: Path, dataset: str, videos: Path, annotations: Path) -> tuple[Texts, Texts]:
    """Nine training and three test videos with the benchmark's names, and its files; returns their captions."""
    said, standing_in = captions_of_clips(assets), iter(STANDING_IN)
    videos.mkdir(parents=True)
    parts: list[Texts] = []
    for part, number in ((0, 9), (1, 3)):
        texts: Texts = {}
        for at in range(number):
            real = REAL.get(dataset, ([], []))[part]
            clip = assets / "videos" / (f"{real[at]}.mp4" if at < len(real) else next(standing_in))
            name = real[at] if at < len(real) else NAMES[dataset][part].format(at)
            stem = name.rpartition(".")[0] if dataset == "didemo" else name
            (videos / f"{stem}{clip.suffix}").symlink_to(clip)
            texts[name] = said[clip.stem]
        parts.append(texts)
    write_benchmark(annotations / dataset.split("-")[0], dataset, *parts)
    return parts[0], parts[1]


@pytest.mark.slow
@pytest.mark.parametrize("dataset", NAMES)
def test_the_commands_run_on_real_clips(assets: Path, run: Run, tmp_path: Path, dataset: str) -> None:
    """As README.md has them, but with the small model, few steps and folders of this test."""
    short = dataset.split("-")[0]
    train, test = lay_out(assets, dataset, tmp_path / "videos" / short, tmp_path / "annotations")
    (tmp_path / "weights").mkdir()
    commands = [words for words in COMMANDS if f"stores/{short}" in words and "--finetune" not in words]
    assert [words[1] for words in commands] == ["extract", "index", "train", "evaluate"]
    more = {"extract": [*SMALL, "--frames", "4"], "index": [], "train": QUICK, "evaluate": []}
    for _, name, *words in commands:
        ours = [
            str(tmp_path / word)
            if re.fullmatch(r"(videos|stores|weights)/\S+|annotations", word)
            else str(ROOT / word) if word.startswith("recipes/") else word
            for word in words
        ]  # fmt: skip
        on_cpu = ["--device", "cpu"] if name in ("train", "evaluate") else []
        done = run(name, *ours, *more[name], *on_cpu, "--json")
        assert done.code == 0, done.err
        if name == "train":
            assert "left out" not in done.err
            assert done.json["num_videos"] == len(train)
    found = done.json
    assert (found["dataset"], found["missing_videos"], found["captioned_videos"]) == (dataset, [], len(test))
    assert found["method"] == "token-binder"
    num_queries = sum(map(len, test.values())) if found["protocol"] == "all captions" else len(test)
    assert (found["text_to_video"]["queries"], found["text_to_video"]["answers"]) == (num_queries, len(test))
    assert (found["video_to_text"]["queries"], found["video_to_text"]["answers"]) == (len(test), len(test))
    assert found["text_to_video"]["focused"]["R@5"] == 100


@pytest.mark.slow
def test_real_clips_are_found_by_the_real_annotation_files(assets: Path, run: Run, tmp_path: Path) -> None:
    own = [*REAL["msrvtt-1ka"][0], *(name for _, test in REAL.values() for name in test)]
    for name in own:
        (tmp_path / "videos").mkdir(exist_ok=True)
        (tmp_path / "videos" / f"{name}.mp4").symlink_to(assets / "videos" / f"{name}.mp4")
    store = tmp_path / "store"
    assert run("extract", tmp_path / "videos", "--store", store, *SMALL, "--frames", 4).code == 0
    assert run("index", "--store", store).code == 0
    for dataset, split, num_videos, num_queries, num_missing in (
        ("msrvtt-1ka", "test", 1, 1, 999),
        ("msrvtt-1ka", "train", 7, 140, 203),
        ("msrvtt-full", "test", 8, 160, 202),
        ("activitynet", "val_1", 1, 1, 4916),
        ("vatex", "val", 1, 10, 775),
    ):
        asked = ("--dataset", dataset, "--split", split, "--annotations", assets / "annotations", "--top-k", 8)
        done = run("evaluate", "--store", store, *asked, "--json", "--device", "cpu")
        assert done.code == 0, done.err
        assert (done.json["captioned_videos"], done.json["text_to_video"]["queries"]) == (num_videos, num_queries)
        assert len(done.json["missing_videos"]) == num_missing
        assert f"{num_missing} of the {num_missing + num_videos} videos of {dataset} {split}" in done.err
        assert "cannot be compared" in done.err


@pytest.mark.slow
def test_the_towers_can_be_trained_on_a_benchmark_too(assets: Path, run: Run, tmp_path: Path) -> None:
    """The last commands of README.md, with the small model: the printed ``extract`` makes the store of the new one."""
    videos, annotations, weights = tmp_path / "videos", tmp_path / "annotations", tmp_path / "tuned.safetensors"
    lay_out(assets, "msrvtt-1ka", videos, annotations)
    store, tuned = tmp_path / "store", tmp_path / "tuned"
    assert run("extract", videos, "--store", store, *SMALL, "--frames", 2).code == 0
    asked = ("--dataset", "msrvtt-1ka", "--annotations", annotations, "--device", "cpu", "--json")
    recipe = ("--recipe", ROOT / "recipes" / "msrvtt.toml", *QUICK, "--set", "epochs=0.1")
    done = run("train", "--store", store, *asked, *recipe, "--output", weights, "--finetune")
    assert done.code == 0, done.err
    words = shlex.split(done.json["next_command"])
    assert words[:5] == ["tbpipe", "extract", "SOURCE", "--store", "NEW_STORE"]
    assert run("extract", videos, "--store", tuned, *words[5:], "--device", "cpu").code == 0
    for made in (store, tuned):
        assert run("index", "--store", made).code == 0
    done = run("evaluate", "--store", tuned, *asked, "--weights", weights)
    assert done.code == 0, done.err
    assert (done.json["method"], done.json["missing_videos"]) == ("token-binder", [])
    assert run("evaluate", "--store", store, *asked, "--weights", weights).code == 12  # features of the old model
