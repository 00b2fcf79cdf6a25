"""Small random models, saved to files as real ones are."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor

from stages.models.clip_vip import ClipVip

TINY: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 514 + 3, "width": 32, "heads": 2, "layers": 2},
}
"""4 x 4 patches of 8 pixels, so 17 tokens a frame."""
TINY_CLIP_VIP: dict[str, Any] = {
    **TINY,
    "quick_gelu": True,
    "vision_cfg": {**TINY["vision_cfg"], "video": "clip-vip", "num_proxies": 4, "temporal_size": 6},
}
"""The same with three more proxies and times for 6 frames."""
MERGES = ("d o", "do g</w>", "c a")


def reference_model(config: dict[str, Any] | None = None, seed: int = 0) -> CLIP:
    """open_clip's own model with random weights and lively norms, in evaluation mode."""
    torch.manual_seed(seed)
    model = CLIP(**(config or TINY)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model.requires_grad_(False)


def clip_vip_state(seed: int = 0) -> dict[str, Tensor]:
    """Random weights of TINY_CLIP_VIP by OpenAI's names; times that differ from frame to frame."""
    text = {
        key: value for key, value in reference_model(seed=seed).state_dict().items() if not key.startswith("visual.")
    }
    tower = ClipVip(TINY_CLIP_VIP["vision_cfg"], TINY_CLIP_VIP["embed_dim"])
    image = {f"visual.{key}": value + 0.1 * torch.randn_like(value) for key, value in tower.state_dict().items()}
    return {**text, **image}


def save_clip_vip(folder: Path, seed: int = 0) -> Path:
    """Write a model folder of a CLIP-ViP."""
    save_folder(folder, reference_model(), TINY_CLIP_VIP, resize_mode="squash")
    save_file(clip_vip_state(seed), folder / "open_clip_model.safetensors")
    return folder


def save_state(state: Mapping[str, Tensor], path: Path) -> Path:
    """Write tensors as safetensors."""
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def save_folder(folder: Path, model: CLIP, config: dict[str, Any] | None = None, **preprocess: object) -> Path:
    """Write a model folder: configuration, weights and merges."""
    folder.mkdir(parents=True)
    content = {"model_cfg": config or TINY, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    lines = "\n".join(["#version", *MERGES])
    (folder / "bpe_merges.txt.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    save_state(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder
