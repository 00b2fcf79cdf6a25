from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stages.models.architecture import built_in_names, from_folder, resolve
from stages.models.image import build as build_image
from stages.models.image import tokens_per_frame
from stages.models.text import build
from stages.models.text_transformer import TextTransformer, is_plain
from tests.stages.model_files import TINY, reference_model, save_folder

IDS = torch.zeros(3, 20, dtype=torch.long)
IDS[:, 0] = 515
IDS[:, 1:5] = torch.tensor([[7, 200, 516, 0], [516, 0, 0, 0], [2, 3, 4, 516]])


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("mlp_ratio", [4.0, 2.5])
def test_it_gives_the_bits_of_open_clip(tmp_path: Path, quick_gelu: bool, mlp_ratio: float) -> None:
    config: dict[str, Any] = {
        **TINY,
        "quick_gelu": quick_gelu,
        "text_cfg": {**TINY["text_cfg"], "mlp_ratio": mlp_ratio},
    }
    reference = reference_model(config)
    tower = build(from_folder("tiny", save_folder(tmp_path / "tiny", reference, config)))
    assert isinstance(tower.module, TextTransformer)
    state = reference.state_dict()
    tower.module.load_state_dict({name: state[name] for name in tower.module.state_dict()})
    assert {*state} - {*tower.module.state_dict()} == {name for name in state if name.startswith("visual.")} | {
        "logit_scale"
    }
    tower.module.eval()
    with torch.inference_mode():
        assert torch.equal(tower.features(IDS)[0], reference.encode_text(IDS))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(tower.features(IDS)[0], reference.encode_text(IDS))


def test_towers_of_other_kinds_are_left_to_open_clip() -> None:
    plain = {name for name in built_in_names() if is_plain(resolve(name, "", {}).text)}
    assert {"ViT-B-32", "ViT-L-14-quickgelu", "EVA02-B-16", "PE-Core-B-16"} <= plain
    assert not {"coca_ViT-B-32", "ViT-B-16-SigLIP", "MobileCLIP2-B", "roberta-ViT-B-32"} & plain


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-L-14-336", "ViT-B-32-256", "clip-vip-B-32", "ViT-bigG-14"])
def test_the_number_of_tokens_is_told_without_the_tower(name: str) -> None:
    architecture = resolve(name, "", {})
    with torch.device("meta"):
        assert tokens_per_frame(architecture) == build_image(architecture).tokens_per_frame
