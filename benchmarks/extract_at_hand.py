"""Extract where decoding costs nothing: the frames of every video are at hand, and what is left is compared with the
image tower alone. On GPUs by the clock, on a CPU in CPU seconds."""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.corpus import random_weights
from benchmarks.measure import Ratio
from index_store.records import VideoFile
from index_store.settings import SamplingSettings, StoreSettings, TokenSettings
from index_store.store import Store
from stages.decode_pool import DecodeResult, DecodeTask
from stages.extract import ExtractOptions, extract
from stages.lanes import Lanes, Pixels
from stages.models import load_model
from stages.models.clip import ClipModel, choose_devices
from stages.preprocess import Preprocessor
from stages.video import FrameBatch

NUM_FRAMES = 12
HEIGHT, WIDTH = 360, 640
CPU_VIDEOS, GPU_VIDEOS = 8, 4096
CPU_BATCH, GPU_BATCH = 32, 256


class AtHand:
    """A source of frames that are in memory: the same ones for every video, under another hash."""

    def __init__(self, frames: NDArray[np.uint8]) -> None:
        self._frames = frames

    def map(self, tasks: Iterable[DecodeTask]) -> Iterator[DecodeResult]:
        """A result for each task."""
        times = np.arange(len(self._frames), dtype=np.float64)
        for number, task in enumerate(tasks):
            batch = FrameBatch(self._frames, times, float(len(times)), "at hand", "", is_partial=False)
            yield DecodeResult(task, f"{number:064x}", 1, 0, number, batch)


def run(device: str = "auto") -> Iterator[Ratio]:
    """ViT-B/32 with random weights, on every GPU or on the CPU."""
    devices = choose_devices(device)
    is_cuda = devices[0].type == "cuda"
    num_videos, size = (GPU_VIDEOS * len(devices), GPU_BATCH) if is_cuda else (CPU_VIDEOS, CPU_BATCH)
    clock = time.perf_counter if is_cuda else time.process_time
    with tempfile.TemporaryDirectory() as name:
        weights = random_weights(Path(name) / "weights.safetensors")
        model = load_model("ViT-B-32", str(weights), str(devices[0]), towers="image")
        models = [model.on(other) for other in devices]
        settings = StoreSettings(
            model.settings(), SamplingSettings("uniform", NUM_FRAMES), TokenSettings("float16", "all")
        )
        preprocessor = Preprocessor(settings.model)
        frames = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, HEIGHT, WIDTH, 3), np.uint8)
        num_batches = num_videos * NUM_FRAMES // size
        _tower(models, size, 2 * len(models))  # warm

        before = clock()
        _tower(models, size, num_batches)
        tower = clock() - before

        before = clock()
        _prepare(models, preprocessor, frames, num_videos)
        prepare = clock() - before

        tasks = [
            (VideoFile(f"{number}.mp4", Path(f"/at/hand/{number}.mp4"), 1, 0, number), DecodeTask(Path("/at/hand")))
            for number in range(num_videos)
        ]
        before = clock()
        store = Store.create(Path(name) / "store", settings)
        with store.writer() as writer:
            options = ExtractOptions(size)
            report = extract(tasks, AtHand(frames), model, preprocessor, settings, writer, options, devices=devices)
        whole = clock() - before
    assert report.ok == num_videos, report
    where = f"{len(devices)} x {torch.cuda.get_device_name(devices[0])}" if is_cuda else "CPU"
    detail = (
        f"{where}, {model.dtype}: {num_videos * NUM_FRAMES} frames of {WIDTH} x {HEIGHT}: tower {tower:.1f} s "
        f"({num_batches * size / tower:.0f} frames/s), upload and resize {prepare:.1f}, extract {whole:.1f}"
    )
    limit = 0.95 if is_cuda else 0.9
    yield Ratio("extract of frames at hand, image tower alone / whole", tower / whole, limit, False, detail)


def _tower(models: Sequence[ClipModel], size: int, num_batches: int) -> None:
    """So many batches through the towers, side by side, until all is computed."""
    pixels = [torch.zeros(size, 3, 224, 224, dtype=torch.uint8, device=model.device) for model in models]
    for number in range(num_batches):
        place = number % len(models)
        models[place].encode_frames(pixels[place])
    for model in models:
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)


def _prepare(
    models: Sequence[ClipModel], preprocessor: Preprocessor, frames: NDArray[np.uint8], num_videos: int
) -> None:
    """Upload and resize the frames of all videos."""
    with Lanes(models, preprocessor) as lanes:
        recent: deque[Future[Pixels]] = deque(maxlen=len(models))
        for number in range(num_videos):
            recent.append(lanes[number].prepare(frames))
            recent[0].result()
        for pixels in recent:
            if (ready := pixels.result().ready) is not None:
                ready.synchronize()


if __name__ == "__main__":
    for ratio in run():
        ratio.show()
