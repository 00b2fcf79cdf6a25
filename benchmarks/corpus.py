"""What benchmarks run on: stores with random tokens, and a ViT-B/32 with random weights."""

from __future__ import annotations

from pathlib import Path

from index_store.settings import StoreSettings
from index_store.store import Store
from stages.bench.data import drawn_features as features_of
from stages.bench.data import drawn_store, store_settings

__all__ = ["FRAMES", "TOKENS", "WIDTH", "features_of", "random_store", "random_weights", "settings"]

FRAMES, TOKENS, WIDTH = 12, 50, 512
"""ViT-B/32 at 224 pixels."""


def settings(frames: int = FRAMES, tokens: int = TOKENS, width: int = WIDTH) -> StoreSettings:
    """Settings of a store whose features nobody computed."""
    return store_settings(frames, tokens, width)


def random_store(directory: Path, num_videos: int, shape: StoreSettings | None = None) -> Store:
    """A store of random features."""
    return drawn_store(directory, num_videos, shape or settings())


def random_weights(path: Path, model: str = "ViT-B-32") -> Path:
    """A weight file of that architecture, not trained, the same on each call."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = open_clip.create_model(model).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path
