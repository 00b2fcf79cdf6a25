"""A store of made-up videos in the shipped small model's joint space: two things, one after the other, in both orders.

A mean over frames cannot tell the two orders apart, the captions do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from index_store.records import VideoFile, VideoOutcome
from index_store.settings import SamplingSettings, StoreSettings, TokenSettings
from index_store.store import Store
from stages.models import load_model
from stages.models.clip import ClipModel
from stages.tokens import pack_features
from stages.training.pairs import CaptionedId

FRAMES = 4
_COLOURS = ("red", "green", "blue", "yellow", "black", "white", "pink", "purple")
_SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")


def small_clip() -> ClipModel:
    """A fresh text tower of the small model, in float32."""
    return load_model("tbpipe-small", "", "cpu", "float32", towers="text")


def ordered_store(
    directory: Path, num_pairs: int, keep: str = "2", places: Literal[True] | None = None
) -> tuple[Store, list[CaptionedId]]:
    """2 x ``num_pairs`` videos and a caption of each."""
    clip = small_clip()
    tokens = TokenSettings("float16", keep, places)
    settings = StoreSettings(clip.settings(), SamplingSettings("uniform", FRAMES), tokens)
    store = Store.create(directory, settings)
    rng = np.random.default_rng(0)
    names = [f"a {colour} {shape}" for colour in _COLOURS for shape in _SHAPES]
    shown = dict(zip(names, clip.encode_texts(names).sentence, strict=True))
    outcomes, texts = [], []
    generator = torch.Generator().manual_seed(0)
    while len(outcomes) < 2 * num_pairs:
        first, second = (str(name) for name in rng.choice(names, 2, replace=False))
        for one, other in ((first, second), (second, first)):
            rows = torch.stack([shown[one]] * 2 + [shown[other]] * 2)[:, None].repeat(1, 37, 1)
            rows += (
                0.05 * rows.norm(dim=-1).mean() * torch.randn(rows.shape, generator=generator) / rows.shape[-1] ** 0.5
            )
            number = len(outcomes)
            outcomes.append(
                VideoOutcome(
                    VideoFile(f"v{number:04d}.mp4", directory / f"v{number:04d}.mp4", 1, 0, number),
                    "ok",
                    content_hash=f"{number:064x}",
                    duration_seconds=4.0,
                    decoder="drawn",
                    features=pack_features(rows, np.arange(FRAMES) + 0.5, settings),
                )
            )
            texts.append(f"first {one}, then {other}")
    with store.writer() as writer:
        writer.commit(outcomes)
    with store.snapshot() as snapshot:
        ids = {record.key: record.id for record in snapshot.videos()}
    return store, [CaptionedId(text, ids[f"v{i:04d}.mp4"]) for i, text in enumerate(texts)]
