"""Image tower and text tower beside the products that they need."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stages.bench.count import operations
from stages.bench.data import SENTENCES
from stages.bench.machine import GIGA, MEMORY, clock_of, matmul
from stages.bench.measure import Need, Stage, Yardstick
from stages.bench.models import weight_bytes
from stages.models.clip import DTYPES, TEXTS_PER_BATCH, ClipModel

IMAGE_TOWER = "image tower"


def image_tower(model: ClipModel, batch_frames: int) -> Stage:
    """One batch of black frames, as extract gives it to the tower."""
    encode = _encoder(model, batch_frames)
    counted = operations(_encoder(model, _counted_frames(model))) / _counted_frames(model)
    return Stage(
        IMAGE_TOWER,
        "frames",
        batch_frames,
        encode,
        (
            (
                Need(matmul(DTYPES[model.dtype]), counted / GIGA),
                Need(MEMORY, weight_bytes(model.image_side().module) / batch_frames / GIGA),
            ),
        ),
        clock_of(model.device),
        detail=f"{model.name}, {batch_frames} frames at once, {counted / GIGA:.2f} GFLOP each",
    )


def image_tower_yardstick(stage: Stage) -> Yardstick:
    """The same as something that extract cannot beat."""
    return Yardstick(IMAGE_TOWER, stage.unit, stage.number, stage.run, stage.clock, detail=stage.detail)


def text_tower(model: ClipModel) -> Stage:
    """A batch of texts, tokenizer and all."""
    number = 8 * TEXTS_PER_BATCH[model.device.type]
    texts = [SENTENCES[place % len(SENTENCES)] for place in range(number)]
    counted = operations(lambda: model.encode_texts(texts)) / number
    tower, _ = model.query_side()
    dtype = torch.float32 if model.device.type == "cpu" else DTYPES[model.dtype]
    return Stage(
        "text tower",
        "texts",
        number,
        lambda: model.encode_texts(texts),
        (
            (
                Need(matmul(dtype), counted / GIGA),
                Need(MEMORY, weight_bytes(tower.module) / TEXTS_PER_BATCH[model.device.type] / GIGA),
            ),
        ),
        clock_of(model.device),
        detail=f"{model.name}, {TEXTS_PER_BATCH[model.device.type]} texts at once, {counted / GIGA:.3f} GFLOP each",
    )


def _counted_frames(model: ClipModel) -> int:
    """Few: the count of one frame is that of any other. A model that sees videos gets one of its usual length."""
    return 12 if model.sees_videos else 2


def _encoder(model: ClipModel, number: int) -> Callable[[], Tensor]:
    size = model.architecture.image_size
    pixels = torch.zeros((number, 3, size, size), dtype=torch.uint8, device=model.device)
    if model.sees_videos:
        mask = torch.ones(1, number, dtype=torch.bool)
        return lambda: model.encode_videos(pixels[None], mask)
    return lambda: model.encode_frames(pixels)
