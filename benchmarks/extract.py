"""Extract: CPU seconds of the whole stage against decoding alone plus the model alone, same files, same precision."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import extract_at_hand
from benchmarks.corpus import random_weights
from benchmarks.measure import Ratio, cpu_seconds
from index_store.settings import SamplingSettings, StoreSettings, TokenSettings
from index_store.store import Store
from stages.decode_pool import DecodePool, DecodeTask
from stages.extract import ExtractOptions, extract
from stages.models import load_model
from stages.preprocess import Preprocessor
from stages.scan import scan
from stages.synthetic.render import VideoFormat, render_corpus

RENDERED = VideoFormat(width=640, height=360, frames_per_second=25, seconds=4.0)


def run(videos: Path | None = None, num_videos: int = 40) -> Iterator[Ratio]:
    """Decode, encode and extract the same videos; rendered ones where no folder is given."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if videos is None:
            render_corpus(folder, 1, num_videos, video_format=RENDERED)
            videos = folder / "videos"
        model = load_model("ViT-B-32", str(random_weights(folder / "weights.safetensors")), "cpu", towers="image")
        settings = StoreSettings(model.settings(), SamplingSettings("uniform", 12), TokenSettings("float16", "all"))
        tasks = [(file, DecodeTask(file.path)) for file in scan([videos]).files]
        options = ExtractOptions()
        model.encode_frames(torch.zeros((options.batch_frames, 3, 224, 224), dtype=torch.uint8))  # warm

        before = cpu_seconds()
        num_frames = 0
        with DecodePool(settings.sampling, os.cpu_count() or 1) as pool:
            for result in pool.map(task for _, task in tasks):
                num_frames += 0 if result.frames is None else len(result.frames.frames)
                result.release()
        decode = cpu_seconds() - before

        before = cpu_seconds()
        for _ in range(num_frames // options.batch_frames):
            model.encode_frames(torch.zeros((options.batch_frames, 3, 224, 224), dtype=torch.uint8))
        encode = (cpu_seconds() - before) * num_frames / (num_frames // options.batch_frames * options.batch_frames)

        store = Store.create(folder / "store", settings)
        before = cpu_seconds()
        with store.writer() as writer, DecodePool(settings.sampling, os.cpu_count() or 1) as pool:
            extract(tasks, pool, model, Preprocessor(settings.model), settings, writer, options)
        whole = cpu_seconds() - before
        detail = (
            f"{len(tasks)} videos: decode {decode:.1f} + model {encode:.1f} ({model.dtype}), extract {whole:.1f} CPU s"
        )
        yield Ratio(
            "extract, CPU seconds / (decode + model)", whole / (decode + encode), 1.10, at_most=True, detail=detail
        )
    yield from extract_at_hand.run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", nargs="?", type=Path, help="folder of videos; rendered ones by default")
    for ratio in run(parser.parse_args().videos):
        ratio.show()
