"""Two processes, as torchrun starts them, against one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from index_store.store import Store
from stages.models import MODELS
from stages.synthetic.render import render_families
from stages.training.config import PRESETS, read_recipe
from stages.training.objective import Setup
from stages.training.pairs import CaptionedId, PairCorpus
from stages.training.token_binder import TokenBinderObjective
from tests.forked import Forked, start_command
from tests.pipeline.conftest import SMALL, Run
from tests.stages.ordered import ordered_store, small_clip

RECIPE = """
[train]
epochs = 3.0
batch_size = 15  # two processes cannot part it evenly
num_candidates = 4
micro_lists = 8
validation = 0.2
evaluate_every = 5
"""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pipeline")
UNTRAINED = "untrained.safetensors"
MEASURED = ("broad_loss", "focused_loss", "focused_loss_v2t", "focused_first", "broad_first", "scale", "norm")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, its captions and a recipe."""
    folder = tmp_path_factory.mktemp("ranks")
    store, captions = ordered_store(folder / "store", 30)
    with store.snapshot() as snapshot:
        keys = {record.id: record.key for record in snapshot.videos()}
    lines = [json.dumps({"key": keys[caption.video_id], "caption": caption.text}) for caption in captions]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


def arguments(folder: Path, output: Path, *more: str) -> list[str]:
    """Of tbpipe, to train on the store in ``folder``."""
    data = ("--store", str(folder / "store"), "--captions", str(folder / "captions.jsonl"))
    settings = ("--preset", "small", "--recipe", str(folder / "recipe.toml"), "--device", "cpu")
    return ["train", *data, *settings, "--output", str(output), "--json", *more]


def start_two(command: list[str]) -> list[Forked]:
    """Two ranks with what torchrun tells them, without its own process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    among = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start_command(*command, RANK=rank, LOCAL_RANK=rank, TBPIPE_DEBUG="1", **among) for rank in ("0", "1")]


def run_two(command: list[str]) -> str:
    """Run two ranks to their end; gives what the first printed."""
    ranks = start_two(command)
    printed = [rank.communicate() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], printed
    return printed[0][0]


def steps(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


def difference(one: Path, other: Path, untrained: Path) -> float:
    """How far the weights are apart, of the way that training went."""
    first, second, start = (load_file(path) for path in (one, other, untrained))
    apart = sum(float((first[name] - second[name]).square().sum()) for name in start if name in first)
    way = sum(float((first[name] - start[name]).square().sum()) for name in start if name in first)
    return float((apart / way) ** 0.5)


@pytest.fixture(scope="module")
def alone(folder: Path, run: Run) -> Path:
    """Weights that one process made; untrained ones are beside them."""
    store = Store.open(folder / "store")
    config = read_recipe(folder / "recipe.toml", PRESETS["small"])
    with store.snapshot() as snapshot:
        captions = [CaptionedId("a dog", record.id) for record in snapshot.videos()]
        corpus = PairCorpus(snapshot, captions)
        setup = Setup(corpus, config, torch.device("cpu"))
        objective = TokenBinderObjective(setup, store.settings, small_clip())
        objective.weights(objective.module.state_dict()).save(folder / UNTRAINED)
    done = run(*arguments(folder, folder / "alone.safetensors"))
    assert done.code == 0, done.err
    return folder / "alone.safetensors"


def test_two_processes_make_the_weights_of_one(folder: Path, alone: Path, tmp_path: Path) -> None:
    output = tmp_path / "two.safetensors"
    assert json.loads(run_two(arguments(folder, output)))["steps"] == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two.jsonl", "two.safetensors"]
    for one, other in zip(steps(alone), steps(output), strict=True):
        assert [other[name] for name in MEASURED] == pytest.approx([one[name] for name in MEASURED], rel=1e-3)
    assert difference(alone, output, folder / UNTRAINED) < 0.01


def test_torchruns_run_of_two_goes_on_alone_after_ctrl_c(folder: Path, alone: Path, run: Run, tmp_path: Path) -> None:
    output = tmp_path / "w.safetensors"
    process = subprocess.Popen(
        (sys.executable, *TORCHRUN, *arguments(folder, output)),
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TBPIPE_DEBUG": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_a_step(output, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0, errors
    assert "run the same command to go on" in errors
    assert not output.exists()
    assert len(steps(output)) < len(steps(alone))
    done = run(*arguments(folder, output))
    assert done.code == 0, done.err
    assert difference(alone, output, folder / UNTRAINED) < 0.01


def test_the_end_of_one_process_ends_the_other(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "w.safetensors"
    first, second = start_two(arguments(folder, output, "--set", "epochs=500"))
    wait_for_a_step(output, first)
    second.kill()
    _, errors = first.communicate()
    assert first.returncode != 0
    assert "another process of this training ended" in errors
    assert not output.exists()


def wait_for_a_step(output: Path, process: subprocess.Popen[str] | Forked) -> None:
    log = output.with_suffix(".jsonl")
    while not (log.exists() and steps(output)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_two_processes_finetune_as_one_does(tmp_path: Path, run: Run) -> None:
    render_families(tmp_path, seed=5, num_videos=12)
    done = run("extract", tmp_path / "videos", "--store", tmp_path / "store", *SMALL, "--frames", 4)
    assert done.code == 0, done.err
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("15", "7").replace("0.2", "0"))
    sorted((tmp_path / "videos").iterdir())[3].unlink()
    how = ("--finetune", "--set", "epochs=1.5")
    done = run(*arguments(tmp_path, tmp_path / "one.safetensors", *how))
    assert done.code == 0, done.err
    run_two(arguments(tmp_path, tmp_path / "two.safetensors", *how))
    for one, other in zip(*(steps(tmp_path / f"{name}.safetensors") for name in ("one", "two")), strict=True):
        assert [other[name] for name in MEASURED] == pytest.approx([one[name] for name in MEASURED], rel=1e-3)
    small = MODELS["tbpipe-small"] / "open_clip_model.safetensors"
    assert difference(tmp_path / "one.clip.safetensors", tmp_path / "two.clip.safetensors", small) < 0.01
