"""Decode and extract beside decoding alone and the image tower alone, on the same files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from index_store.errors import InputError
from index_store.records import VideoFile
from index_store.settings import SamplingSettings, StoreSettings, TokenSettings
from index_store.store import Store
from stages.bench.machine import GIGA, HASHING, UPLOAD, clock_of
from stages.bench.measure import Need, Stage, Yardstick
from stages.bench.towers import IMAGE_TOWER
from stages.decode_pool import DecodePool, DecodeTask
from stages.decoders.torchcodec import GpuDecodeThreads, missing_reason
from stages.extract import ExtractOptions, FrameSource, extract
from stages.models.clip import ClipModel
from stages.preprocess import Preprocessor
from stages.scan import scan
from stages.video import decode

DECODER = "decoder"
DECODE = "decode"

Task = tuple[VideoFile, DecodeTask]


@dataclass(frozen=True, slots=True, eq=False)
class Videos:
    """Files that decode, and where their frames come from."""

    tasks: tuple[Task, ...]
    source: FrameSource
    sampling: SamplingSettings
    num_frames: int
    """Of all of them."""

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file, _ in self.tasks)


@contextmanager
def open_videos(paths: Sequence[Path], sampling: SamplingSettings, device: torch.device, most: int) -> Iterator[Videos]:
    """The first ``most`` files that decode. Raises InputError where none does.

    On a CPU one worker is enough, since CPU seconds are counted; beside a GPU there are as many as there are cores.
    """
    found = [(file, DecodeTask(file.path)) for file in scan(paths).files[: 2 * most]]
    with _source(sampling, device) as source:
        good: list[Task] = []
        num_frames = 0
        for (file, task), result in zip(found, source.map(task for _, task in found), strict=True):
            if result.frames is not None and len(good) < most:
                good.append((file, task))
                num_frames += len(result.frames.timestamps_seconds)
            result.release()
        if not good:
            raise InputError(f"none of the {len(found)} videos in {', '.join(map(str, paths))} can be decoded")
        yield Videos(tuple(good), source, sampling, num_frames)


def _source(sampling: SamplingSettings, device: torch.device) -> AbstractContextManager[FrameSource]:
    if device.type == "cuda" and not missing_reason(str(device)):
        return GpuDecodeThreads(sampling, [str(device)])
    return DecodePool(sampling, 1 if device.type == "cpu" else os.cpu_count() or 1)


def decoder_yardstick(videos: Videos) -> Yardstick:
    """The decoder library called in this process, one file after the other."""
    return Yardstick(
        DECODER,
        "videos",
        len(videos.tasks),
        lambda: [decode(task.path, videos.sampling) for _, task in videos.tasks],
        detail=f"{videos.num_frames / len(videos.tasks):.0f} frames of each, in one process",
    )


def decode_stage(videos: Videos) -> Stage:
    """Decoding as extract does it: processes that watch over each file, and hash it."""
    number = len(videos.tasks)
    needs = ((Need(DECODER, 1.0),), (Need(HASHING, videos.num_bytes / number / GIGA),))
    return Stage(
        DECODE,
        "videos",
        number,
        lambda: _drain(videos),
        needs,
        in_children=True,
        detail=f"{number} files of {videos.num_bytes / number / 1e3:.0f} KB",
    )


def decode_yardstick(videos: Videos, device: torch.device) -> Yardstick:
    """The same as something that extract cannot beat."""
    return Yardstick(DECODE, "videos", len(videos.tasks), lambda: _drain(videos), clock_of(device), in_children=True)


def extract_stage(videos: Videos, model: ClipModel, directory: Path, options: ExtractOptions) -> Stage:
    """The whole stage into a new store: frames decoded, prepared, encoded, committed."""
    settings = StoreSettings(model.settings(), videos.sampling, TokenSettings("float16", "all"))
    number, frames = len(videos.tasks), videos.num_frames / len(videos.tasks)
    side = model.architecture.image_size
    decoded, encoded = Need(DECODE, 1.0), Need(IMAGE_TOWER, frames)
    on_gpu = model.device.type == "cuda"
    needs = ((decoded, encoded, Need(UPLOAD, frames * 3 * side * side / GIGA)),) if on_gpu else ((decoded,), (encoded,))

    def anew() -> None:
        shutil.rmtree(directory, ignore_errors=True)
        Store.create(directory, settings)

    def run() -> None:
        with Store.open(directory).writer() as writer:
            extract(videos.tasks, videos.source, model, Preprocessor(settings.model), settings, writer, options)

    return Stage(
        "extract",
        "videos",
        number,
        run,
        needs,
        clock_of(model.device),
        anew,
        in_children=True,
        detail=f"{model.name}, {number} videos of {frames:.0f} frames, new store",
    )


def _drain(videos: Videos) -> None:
    for result in videos.source.map(task for _, task in videos.tasks):
        result.release()
