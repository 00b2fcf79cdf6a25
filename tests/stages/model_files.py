"""Small random models, saved to files as real ones are."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from safetensors.torch import save_file

TINY: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 514 + 3, "width": 32, "heads": 2, "layers": 2},
}
"""4 x 4 patches of 8 pixels, so 17 tokens a frame."""
MERGES = ("d o", "do g</w>", "c a")


def reference_model(config: dict[str, Any] | None = None, seed: int = 0) -> CLIP:
    """open_clip's own model with random weights and lively norms, in evaluation mode."""
    torch.manual_seed(seed)
    model = CLIP(**(config or TINY)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model.requires_grad_(False)


def save_state(model: torch.nn.Module, path: Path) -> Path:
    """Write the model's state dict as safetensors."""
    save_file({key: value.clone() for key, value in model.state_dict().items()}, path)
    return path


def save_folder(folder: Path, model: CLIP, config: dict[str, Any] | None = None, **preprocess: object) -> Path:
    """Write a model folder: configuration, weights and merges."""
    folder.mkdir(parents=True)
    content = {"model_cfg": config or TINY, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    lines = "\n".join(["#version", *MERGES])
    (folder / "bpe_merges.txt.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    save_state(model, folder / "open_clip_model.safetensors")
    return folder
