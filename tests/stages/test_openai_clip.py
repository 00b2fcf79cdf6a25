from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from torch import Tensor

from index_store.errors import InputError
from stages.models import MODELS
from stages.models.architecture import resolve
from stages.models.openai_clip import NAMES, architecture_of
from tests.stages.model_files import TINY, reference_model

FILE = Path("checkpoint.bin")


def shapes_of(config: dict[str, Any]) -> dict[str, Tensor]:
    """A state dict without memory."""
    with torch.device("meta"):
        return CLIP(**config).state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_openais_architectures_are_known_by_their_shapes(name: str) -> None:
    known = resolve(name, "", MODELS)
    found = architecture_of(
        shapes_of({"embed_dim": known.embed_dim, "vision_cfg": known.vision, "text_cfg": known.text}), FILE
    )
    assert found == known


def test_other_sizes_are_read_from_the_shapes() -> None:
    found = architecture_of(reference_model().state_dict(), FILE, vision_heads=2, text_heads=2)
    assert found.embed_dim == TINY["embed_dim"]
    assert {**found.vision, **TINY["vision_cfg"]} == found.vision
    assert {**found.text, **TINY["text_cfg"]} == found.text
    assert found.name == "2x64 patches of 8, 2x32"


@pytest.mark.parametrize(("width", "inner"), [(56, 61), (56, 230), (64, 100), (48, 110)])
def test_any_width_of_the_inner_layer_is_kept(width: int, inner: int) -> None:
    """56 x (61 / 56) is a little less than 61."""
    text = {**TINY["text_cfg"], "width": width, "heads": 1, "mlp_ratio": (inner + 0.5) / width}
    found = architecture_of(shapes_of({**TINY, "text_cfg": text}), FILE)
    assert shapes_of({**TINY, "text_cfg": found.text})["transformer.resblocks.1.mlp.c_fc.bias"].shape == (inner,)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("visual.proj", "no tensor visual.proj"),
        ("visual.conv1.weight", "no tensor visual.conv1.weight"),
        ("transformer.resblocks.0.mlp.c_fc.weight", "no tensor transformer.resblocks.0.mlp.c_fc.weight"),
    ],
)
def test_a_tensor_that_is_missing_is_named(key: str, message: str) -> None:
    state = reference_model().state_dict()
    del state[key]
    with pytest.raises(InputError, match=f"{FILE} has {message}"):
        architecture_of(state, FILE)


def test_a_block_that_is_missing_is_named() -> None:
    state = {key: value for key, value in reference_model().state_dict().items() if ".resblocks.0." not in key}
    with pytest.raises(InputError, match=r"no tensor visual\.transformer\.resblocks\.0\.ln_1\.weight"):
        architecture_of(state, FILE)
