"""What stages are measured on: features, texts and clips made for the occasion, always the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from index_store.errors import InputError
from index_store.records import Query, VideoFeatures, VideoFile, VideoOutcome
from index_store.settings import ModelSettings, SamplingSettings, StoreSettings, TokenDtype, TokenSettings
from index_store.snapshot import Snapshot
from index_store.store import Store
from stages.models.clip import TextFeatures
from stages.search import unit_length
from stages.synthetic.render import VideoFormat, render_corpus
from stages.tokens import quantise

SENTENCES = (
    "a dog catches a frisbee on the beach",
    "two people talk in a kitchen while it rains outside",
    "a red car turns left",
    "someone folds a paper plane and throws it out of the window into the garden",
)
"""Of ordinary length; every text tower gets these."""

_FEWEST_WORDS, _MOST_WORDS = 10, 14
"""Of a drawn text, start and end with it."""
_NOISE = 0.5
"""Of a drawn query beside the video that it is near to: its best videos then differ from query to query."""
_COMMIT_VIDEOS, _COMMIT_BYTES = 1024, 128 << 20
"""Of a shard, as extract makes it."""


def store_settings(frames: int, tokens: int, width: int, dtype: TokenDtype = "float16") -> StoreSettings:
    """Settings of a store of drawn features, as a model of these sizes would make it."""
    drawn = ModelSettings(
        "random", "", "0" * 64, width, tokens, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", "shortest", "float32"
    )
    return StoreSettings(drawn, SamplingSettings("uniform", frames), TokenSettings(dtype, "all"))


def drawn_store(directory: Path, num_videos: int, settings: StoreSettings) -> Store:
    """A store of drawn features."""
    store = Store.create(directory, settings)
    per_commit = max(1, min(_COMMIT_VIDEOS, _COMMIT_BYTES // settings.bytes_per_video))
    with store.writer() as writer:
        outcomes: list[VideoOutcome] = []
        for number, features in enumerate(drawn_features(settings, num_videos)):
            file = VideoFile(f"{number:07d}.mp4", directory / f"{number:07d}.mp4", 1, 1, 1)
            outcomes.append(VideoOutcome(file, "ok", f"{number:064x}", 10.0, "none", features=features))
            if len(outcomes) == per_commit or number + 1 == num_videos:
                writer.commit(outcomes)
                outcomes = []
    return store


def drawn_features(settings: StoreSettings, num_videos: int) -> Iterator[VideoFeatures]:
    """Drawn once and shifted for each video, because drawing is slow; the pooled ones are drawn for each."""
    rng = np.random.default_rng(0)
    frames, _, width = settings.token_shape
    drawn = torch.from_numpy(rng.standard_normal(settings.token_shape, np.float32))
    values, scales = quantise(drawn) if settings.tokens.dtype == "int8" else (drawn.half(), None)
    stored = values.numpy()
    for _ in range(num_videos):
        pooled = rng.standard_normal(width, np.float32)
        tokens = np.roll(stored, int(rng.integers(stored.size)))
        yield VideoFeatures(
            tokens=tokens,
            token_scales=None if scales is None else scales.numpy(),
            frame_mask=np.ones(frames, np.bool_),
            timestamps_seconds=np.arange(frames, dtype=np.float64),
            frame_embeddings=tokens[:, 0].astype(np.float16),
            pooled=pooled / np.linalg.norm(pooled),
        )


def drawn_vectors(number: int, width: int) -> NDArray[np.float32]:
    """Unit-length vectors float32 [number, width]."""
    return unit_length(np.random.default_rng(0).standard_normal((number, width), np.float32))


class DrawnTexts:
    """Stands for a text tower: query n has the features of a text that is near to one of the given videos."""

    def __init__(
        self, near: NDArray[np.float32], num_texts: int, device: torch.device, num_indicators: int = 4
    ) -> None:
        """Query features near to the videos whose pooled features are ``near``, float32 [n, D]."""
        generator = torch.Generator().manual_seed(0)
        width = near.shape[1]
        chosen = torch.randint(len(near), (num_texts,), generator=generator)
        noise = torch.randn(num_texts, width, generator=generator) * (_NOISE / width**0.5)
        number = torch.randint(_FEWEST_WORDS, _MOST_WORDS + 1, (num_texts, 1), generator=generator)
        self._mask = (torch.arange(_MOST_WORDS) < number).to(device)
        self._sentence = (torch.from_numpy(near)[chosen] + noise).to(device)
        self._words = torch.randn(num_texts, _MOST_WORDS, width, generator=generator).to(device)
        self._words.masked_fill_(~self._mask.unsqueeze(-1), 0.0)
        self._indicators = torch.randn(num_texts, num_indicators, width, generator=generator).to(device)
        self._indicators[:, 0] = self._sentence
        self.queries = [Query(str(text), str(text)) for text in range(num_texts)]
        self.mean_words = float(number.float().mean())

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Features of the queries with these numbers."""
        rows = torch.tensor([int(text) for text in texts], device=self._sentence.device)
        return TextFeatures(self._sentence[rows], self._words[rows], self._mask[rows], self._indicators[rows])


def first_videos(snapshot: Snapshot) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids int64 [n] and pooled features float32 [n, D] of the first videos that have some, some ten thousands at most.

    Raises InputError for a store that holds none.
    """
    for ids, pooled in snapshot.read_pooled():
        return ids, pooled
    raise InputError("the store holds no video with features; run 'tbpipe extract' first")


def render_clips(directory: Path, number: int, video_format: VideoFormat) -> list[Path]:
    """Rendered videos."""
    return [video.path for video in render_corpus(directory, 1, number, video_format=video_format)]
