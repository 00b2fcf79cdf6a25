"""What benchmarks run on: stores with random tokens, and a ViT-B/32 with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from index_store.records import VideoFeatures, VideoFile, VideoOutcome
from index_store.settings import ModelSettings, SamplingSettings, StoreSettings, TokenSettings
from index_store.store import Store

FRAMES, TOKENS, WIDTH = 12, 50, 512
"""ViT-B/32 at 224 pixels."""
_PER_COMMIT = 100


def settings(frames: int = FRAMES, tokens: int = TOKENS, width: int = WIDTH) -> StoreSettings:
    """Settings of a store whose features nobody computed."""
    model = ModelSettings(
        "random", "", "0" * 64, width, tokens, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", "shortest", "float32"
    )
    return StoreSettings(model, SamplingSettings("uniform", frames), TokenSettings("float16", "all"))


def random_store(directory: Path, num_videos: int, shape: StoreSettings | None = None) -> Store:
    """A store of random features: the arrays are drawn once and shifted for each video, because drawing is slow."""
    store = Store.create(directory, shape or settings())
    with store.writer() as writer:
        outcomes: list[VideoOutcome] = []
        for number, features in enumerate(features_of(store.settings, num_videos)):
            file = VideoFile(f"{number:07d}.mp4", directory / f"{number:07d}.mp4", 1, 1, 1)
            outcomes.append(VideoOutcome(file, "ok", f"{number:064x}", 10.0, "none", features=features))
            if len(outcomes) == _PER_COMMIT or number + 1 == num_videos:
                writer.commit(outcomes)
                outcomes = []
    return store


def features_of(shape: StoreSettings, num_videos: int) -> Iterator[VideoFeatures]:
    """Random ones, each differently shifted."""
    rng = np.random.default_rng(0)
    frames, _, width = shape.token_shape
    drawn = rng.standard_normal(shape.token_shape, np.float32).astype(np.float16)
    for _ in range(num_videos):
        pooled = rng.standard_normal(width, np.float32)
        tokens = np.roll(drawn, int(rng.integers(drawn.size)))
        yield VideoFeatures(
            tokens=tokens,
            token_scales=None,
            frame_mask=np.ones(frames, np.bool_),
            timestamps_seconds=np.arange(frames, dtype=np.float64),
            frame_embeddings=tokens[:, 0],
            pooled=pooled / np.linalg.norm(pooled),
        )


def random_weights(path: Path, model: str = "ViT-B-32") -> Path:
    """A weight file of that architecture, not trained, the same on each call."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = open_clip.create_model(model).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path
