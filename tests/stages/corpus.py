"""A small random corpus in a real store, and texts whose features are drawn from their letters."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from index_store.records import Query, VideoFile, VideoOutcome
from index_store.settings import ModelSettings, SamplingSettings, StoreSettings, TokenSettings
from index_store.store import Store
from stages.models.clip import TextFeatures
from stages.tokens import pack_features

WIDTH = 32
SETTINGS = StoreSettings(
    ModelSettings(
        name="drawn",
        pretrained="",
        weights_sha256="0" * 64,
        embed_dim=WIDTH,
        tokens_per_frame=6,
        image_size=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        interpolation="bicubic",
        resize_mode="shortest",
        compute_dtype="float32",
    ),
    SamplingSettings("uniform", 4),
    TokenSettings("float16", "all"),
)


def settings_with(dtype: str = "float16", keep: str = "all") -> StoreSettings:
    """The settings above with other tokens."""
    return replace(SETTINGS, tokens=TokenSettings(dtype, keep))  # type: ignore[arg-type]


class DrawnTexts:
    """Text -> features: the words' directions and their sum; equal texts have equal features."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        self.asked.append(len(texts))
        longest = max(len(text.split()) for text in texts)
        words = torch.zeros(len(texts), longest, WIDTH)
        for row, text in enumerate(texts):
            for column, word in enumerate(text.split()):
                words[row, column] = direction(word)
        return TextFeatures(words.sum(1), words, words.abs().sum(-1) > 0)


def direction(word: str) -> Tensor:
    """The same random direction [WIDTH] for the same word."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def outcome(number: int, settings: StoreSettings = SETTINGS, words: str = "", content: str = "") -> VideoOutcome:
    """Video ``number``, 1 to F frames long, that shows ``words`` (a word of its own without) and noise."""
    generator = torch.Generator().manual_seed(number)
    num_frames = 1 + number % settings.num_frames
    rows = torch.randn(num_frames, settings.model.tokens_per_frame, WIDTH, generator=generator)
    rows += sum((direction(word) for word in (words or f"video{number}").split()), torch.zeros(WIDTH))
    timestamps = np.arange(num_frames) + number / 1000
    return VideoOutcome(
        file(number),
        "ok",
        content_hash=content or f"{number:064x}",
        duration_seconds=float(num_frames),
        decoder="drawn",
        features=pack_features(rows, timestamps, settings),
    )


def file(number: int) -> VideoFile:
    """The file of video ``number``."""
    return VideoFile(f"v{number}.mp4", Path(f"/videos/v{number}.mp4"), 100 + number, 0, number)


def make_store(directory: Path, num_videos: int, settings: StoreSettings = SETTINGS) -> Store:
    """A store with videos 0 to ``num_videos`` - 1 in two shards; their ids are one more."""
    store = Store.create(directory, settings)
    numbers = range(num_videos)
    with store.writer() as writer:
        for part in (numbers[: num_videos // 3], numbers[num_videos // 3 :]):
            writer.commit([outcome(number, settings) for number in part])
    return store


def queries(num_queries: int) -> list[Query]:
    """Texts that fit some videos."""
    return [Query(f"q{number}", f"video{number} and video{2 * number} w{number % 5}") for number in range(num_queries)]
