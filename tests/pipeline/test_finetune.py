"""``tbpipe train --finetune``, from rendered files to a store that is extracted with the new weights."""

from __future__ import annotations

import shlex
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.models import MODELS
from stages.synthetic.render import render_families
from tests.forked import start_command
from tests.pipeline.conftest import SMALL, Outcome, Run
from tests.pipeline.test_cli import one_line_error

QUICK = ("--preset", "small", "--set", "epochs=3", "--set", "batch_size=6", "--set", "num_candidates=3")
LAST = ("--set", "validation=0", "--set", "micro_frames=10")
"""The last weights are kept."""
BEST = ("--set", "validation=0.25", "--set", "evaluate_every=2")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve videos, their captions and a store of the shipped model."""
    folder = tmp_path_factory.mktemp("finetune")
    render_families(folder, seed=5, num_videos=12)
    done = run("extract", folder / "videos", "--store", folder / "store", *SMALL, "--frames", 4)
    assert done.code == 0, done.err
    return folder


def finetune(run: Run, folder: Path, output: Path, *arguments: object) -> Outcome:
    data = ("--store", folder / "store", "--captions", folder / "captions.jsonl", "--output", output)
    return run("train", *data, "--device", "cpu", "--finetune", *QUICK, *arguments)


def test_a_store_is_extracted_with_the_model_that_was_trained_and_takes_its_weights(
    folder: Path, run: Run, tmp_path: Path
) -> None:
    weights, clip = tmp_path / "w.safetensors", tmp_path / "w.clip.safetensors"
    done = finetune(run, folder, weights, *LAST, "--json")
    assert done.code == 0, done.err
    assert (done.json["steps"], done.json["warnings"]) == (6, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == [clip.name, "w.jsonl", weights.name]
    before = load_file(MODELS["tbpipe-small"] / "open_clip_model.safetensors")
    after = load_file(clip)
    changed = [name for name in after if name.startswith("visual.") and not torch.equal(before[name], after[name])]
    assert len(changed) > 0.9 * sum(name.startswith("visual.") for name in before)

    command = shlex.split(done.json["next_command"])
    assert command[:3] == ["tbpipe", "extract", "SOURCE"]
    new = tmp_path / "new"
    places = {"SOURCE": folder / "videos", "NEW_STORE": new}
    done = run(*(places.get(word, word) for word in command[1:]), "--device", "cpu")
    assert done.code == 0, done.err
    assert run("index", "--store", new).code == 0
    asked = ("evaluate", "--captions", folder / "captions.jsonl", "--device", "cpu", "--json", "--store")
    done = run(*asked, new, "--weights", weights)
    assert done.code == 0, done.err
    alone = run(*asked, new, "--method", "broad")
    assert alone.code == 0, alone.err
    broad = [found.json["text_to_video"]["broad"] for found in (alone, done)]
    assert broad[0] == broad[1], "the first indicator is the sentence of the model that was written"
    assert run("index", "--store", folder / "store").code == 0
    one_line_error(run(*asked, folder / "store", "--weights", weights), 12, "weights_sha256", "tbpipe train")


def test_a_lost_video_costs_itself(folder: Path, run: Run, tmp_path: Path) -> None:
    lost, broken = sorted((folder / "videos").iterdir())[:2]
    kept = [path.read_bytes() for path in (lost, broken)]
    lost.unlink()
    broken.write_bytes(b"no video at all")
    try:
        done = finetune(run, folder, tmp_path / "w.safetensors", *BEST, "--json")
    finally:
        for path, content in zip((lost, broken), kept, strict=True):
            path.write_bytes(content)
    assert done.code == 0, done.err
    (warning,) = done.json["warnings"]
    assert warning.startswith("videos that could not be decoded and were left out: 2 (first:")
    assert lost.name in warning
    assert done.json["before"]["focused"] == done.json["before"]["broad"]
    assert done.json["after"]["broad"]["R@5"] == 100, "of three validation videos"


def test_what_cannot_be_finetuned_is_refused(folder: Path, run: Run, tmp_path: Path) -> None:
    refused = finetune(run, folder, tmp_path / "w.safetensors", "--set", "image_learning_rate=0")
    one_line_error(refused, 2, "image_learning_rate = 0", "--finetune")


def test_a_finetuned_run_that_was_stopped_goes_on_to_the_same_bytes(folder: Path, run: Run, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    options = (*LAST, "--set", "epochs=3", "--set", "gumbel=0.5")
    assert finetune(run, folder, whole, *options).code == 0
    data = ("--store", folder / "store", "--captions", folder / "captions.jsonl", "--output", cut, "--device", "cpu")
    process = start_command("train", *data, "--finetune", *QUICK, *options)
    log = cut.with_suffix(".jsonl")
    while not (log.exists() and log.read_text()) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert 0 < len(log.read_text().splitlines()) < 6
    assert finetune(run, folder, cut, *options).code == 0
    clip = ".clip.safetensors"
    assert cut.with_suffix(clip).read_bytes() == whole.with_suffix(clip).read_bytes()
    first, second = load_file(whole), load_file(cut)
    assert all(torch.equal(first[name], second[name]) for name in first)
