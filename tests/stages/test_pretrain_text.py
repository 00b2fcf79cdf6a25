from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.models import MODELS
from stages.models.tiny import TinySizes, load_small, new_tokenizer
from stages.rerankers.token_binder import TokenBinderWeights
from stages.synthetic.families import FAMILIES, SAYS, reorder
from stages.synthetic.pretrain_data import make_corpus
from stages.synthetic.pretrain_text import BindingConfig, binding_labels, first_weights, learn_to_bind, main
from stages.synthetic.render import VideoFormat
from stages.synthetic.scenes import Claim, Statement, describe, draw_scene

SMALL = MODELS["tbpipe-small"]


def test_labels_say_what_belongs_to_what() -> None:
    red, star = Claim(colour="red", shape="circle", motion="up"), Claim(colour="blue", shape="star", motion="down")
    labels = binding_labels(Statement((red, star), "meadow"))
    swapped = (replace(red, motion="down"), replace(star, motion="up"))
    assert not torch.equal(labels, binding_labels(Statement(swapped, "meadow")))
    assert torch.equal(labels, binding_labels(Statement((star, red), "meadow")))
    assert not torch.equal(labels, binding_labels(Statement((red, star), "meadow", in_order=True)))
    assert labels.sum() == 1 + 2 * 4  # background; of each thing: colour and shape both ways, colour and shape moving
    scene = draw_scene(np.random.default_rng(0), FAMILIES["order"].level)
    first, second = (binding_labels(describe(one, SAYS)) for one in (scene, reorder(scene)))
    assert first.sum() == second.sum()
    assert not torch.equal(first, second)


def test_labels_say_which_rank_is_asked_for() -> None:
    largest, second = (
        binding_labels(Statement((Claim(colour="red", rank=rank),), "meadow")) for rank in ("largest", "second largest")
    )
    assert largest.sum() == second.sum() == 2
    assert not torch.equal(largest, second)


@pytest.mark.slow
@pytest.mark.parametrize("comparisons", [False, True])
def test_the_text_tower_learns_and_the_image_tower_stays(tmp_path: Path, comparisons: bool) -> None:
    model = load_small(SMALL, TinySizes())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    corpus = make_corpus(tmp_path / "videos", 5, 16, "mixed", 4, 1, 48, VideoFormat(seconds=0.4))
    losses: list[dict[str, float]] = []
    config = BindingConfig(steps=20, num_pairs=8, num_texts=16, comparisons=comparisons)
    learn_to_bind(model, new_tokenizer(SMALL, 40), corpus, config, lambda step, found: losses.append(found))
    assert losses[-1]["bound"] < 0.9 * losses[0]["bound"]
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("visual."))
    assert not torch.equal(after["text_projection"], before["text_projection"])
    weights = first_weights(model)
    assert torch.equal(weights.text["text_projection"], after["text_projection"])
    assert not weights.fusion


@pytest.mark.slow
def test_the_command_writes_weights_to_start_from(tmp_path: Path) -> None:
    arguments = [
        "--output",
        str(tmp_path / "w.safetensors"),
        "--work",
        str(tmp_path),
        "--steps",
        "1",
        "--videos",
        "128",
    ]
    assert main(arguments) == 0
    assert TokenBinderWeights.load(tmp_path / "w.safetensors").kind.model == "tbpipe-small"
