"""What the image tower gave for one video -> the arrays that are kept: pooled, chosen, quantised, padded."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from index_store.records import VideoFeatures
from index_store.settings import KeepRule, StoreSettings

_INT8_MAX = 127
_FLOAT16_END = 65520.0
"""From here on float32 is rounded to an infinite float16."""


def pack_features(
    rows: Tensor, timestamps_seconds: NDArray[np.float64], settings: StoreSettings
) -> VideoFeatures | None:
    """Features of a video with n <= F frames; None when a number is not finite in the stored dtype.

    rows float32 [n, 1 + patches, D], raw, row 0 the frame embedding; timestamps_seconds float64 [n].
    """
    if not _is_within(rows, torch.inf) or not _is_within(rows[:, 0], _FLOAT16_END):
        return None
    num_frames, num_padded = len(rows), settings.sampling.frames
    frame_embeddings = rows[:, 0]
    kept, places = choose_tokens(rows, settings.tokens.rule)
    scales: NDArray[np.float32] | None = None
    if settings.tokens.dtype == "int8":
        stored, scale = quantise(kept)
        scales = _pad(scale, num_padded)
    elif _is_within(kept, _FLOAT16_END):
        stored = kept.half()
    else:
        return None
    return VideoFeatures(
        tokens=_pad(stored, num_padded),
        token_scales=scales,
        frame_mask=np.arange(num_padded) < num_frames,
        timestamps_seconds=np.pad(timestamps_seconds, (0, num_padded - num_frames)),
        frame_embeddings=_pad(frame_embeddings.half(), num_padded),
        pooled=pool(frame_embeddings).numpy(),
        token_places=None if places is None or not settings.tokens.places else _pad_places(places, settings),
    )


def _is_within(values: Tensor, end: float) -> bool:
    """Whether all are numbers between -end and end. One look at each; ``isfinite`` takes twelve times as long."""
    lowest, highest = values.aminmax()
    return bool(lowest > -end and highest < end)  # an undefined number makes both undefined


def pool(frame_embeddings: Tensor) -> Tensor:
    """Broad view of a video, unit length [D]: the normalised mean of its unit-length frame embeddings [n, D].

    CLIP4Clip's "meanP", and f_CLS of TokenBinder.
    """
    return normalize(normalize(frame_embeddings.double(), dim=-1).mean(dim=0), dim=-1).float()


def keep_tokens(rows: Tensor, rule: KeepRule) -> Tensor:
    """Tokens [n, 1 + kept, D]: all, the frame embedding only, or with it the N patches that the rule asks for.

    "closest" are those with the highest cosine to the frame embedding, "distinct" those with the lowest to the mean of
    the frame's unit-length patches. They stay in the order of the picture; of two equal ones the first is kept.
    """
    return choose_tokens(rows, rule)[0]


def choose_tokens(rows: Tensor, rule: KeepRule) -> tuple[Tensor, Tensor | None]:
    """What ``keep_tokens`` keeps, and of N patches which tokens these are: int64 [n, 1 + N], 0 = frame embedding."""
    if rule.name == "all":
        return rows, None
    if rule.name == "cls":
        return rows[:, :1], None
    worth = _closeness(rows) if rule.name == "closest" else -_likeness(rows)
    best = worth.sort(dim=1, descending=True, stable=True).indices[:, : rule.num_patches].sort(dim=1).values
    places = torch.cat([best.new_zeros(len(best), 1), best + 1], dim=1)
    return rows.gather(1, places.unsqueeze(-1).expand(-1, -1, rows.shape[-1])), places


def _closeness(rows: Tensor) -> Tensor:
    """Cosine of every patch with its frame embedding, [n, patches]."""
    return (normalize(rows[:, 1:], dim=-1) * normalize(rows[:, :1], dim=-1)).sum(dim=-1)


def _likeness(rows: Tensor) -> Tensor:
    """Cosine of every patch with the mean patch of its frame, times that mean's length: float64 [n, patches]."""
    patches = normalize(rows[:, 1:].double(), dim=-1)  # so that the order of a sum does not decide what is kept
    return (patches * patches.mean(dim=1, keepdim=True)).sum(dim=-1)


def quantise(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Int8 [n, P, D] and scales float32 [n, P], token = int8 x scale; a token's largest component becomes 127."""
    lowest, highest = tokens.aminmax(dim=-1)
    scale = torch.maximum(lowest.abs(), highest.abs()) / _INT8_MAX
    divisor = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (tokens / divisor.unsqueeze(-1)).round_().to(torch.int8), scale


def _pad_places(places: Tensor, settings: StoreSettings) -> NDArray[Any]:
    """As they are stored, with zeros behind."""
    return _pad(places, settings.num_frames).astype(np.uint8 if settings.place_bytes == 1 else np.uint16)


def _pad(values: Tensor, num_frames: int) -> NDArray[Any]:
    """Zeros behind the first axis up to ``num_frames``."""
    padded = torch.zeros((num_frames, *values.shape[1:]), dtype=values.dtype)
    padded[: len(values)] = values
    array: NDArray[Any] = padded.numpy()
    return array
