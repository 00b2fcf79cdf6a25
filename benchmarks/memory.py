"""Peak memory of the commands: it must not grow with the corpus, and stay below 1.5 GB beside the model.

First the whole way, from videos, with one and with ten times as many; then stores of 10^3 and of 10^5 videos that
nobody decoded; then tokens of ViT-B/32's size, more than the memory that they may take.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.corpus import random_store, random_weights
from benchmarks.measure import Ratio
from benchmarks.process import TBPIPE, cost_of
from benchmarks.refresh import make_corpus
from index_store.settings import SamplingSettings, StoreSettings, TokenSettings
from stages.index import build_index
from stages.models import load_model
from stages.synthetic.render import VideoFormat, render_corpus

NUM_VIDEOS = 100
FACTOR = 10
SIZES = (1_000, 100_000)
NUM_LARGE = 1_500
"""Of ViT-B/32's size: 0.9 GB, of which 0.5 may be in memory."""
LIMIT = 1.10
LIMIT_BYTES = 1.5e9
_NUM_QUERIES = 200


def run(
    num_videos: int = NUM_VIDEOS, factor: int = FACTOR, sizes: tuple[int, int] = SIZES, num_large: int = NUM_LARGE
) -> Iterator[Ratio]:
    """Run the commands as processes of their own on ``num_videos`` and on ``factor`` times as many, and so on."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        render_corpus(folder, 1, 20, video_format=VideoFormat(seconds=1.6))
        counts = (num_videos, factor * num_videos)
        yield from _growth(counts, [_from_videos(folder, folder / f"corpus{count}", count) for count in counts])
        texts = "".join(json.dumps({"_id": str(place), "text": f"a {place}"}) + "\n" for place in range(_NUM_QUERIES))
        (folder / "queries.jsonl").write_text(texts)
        yield from _growth(sizes, [_synthetic(folder, folder / f"store{count}", count) for count in sizes])
        if num_large:
            yield from _large(folder, num_large)


def _growth(counts: tuple[int, int], peaks: list[dict[str, int]]) -> Iterator[Ratio]:
    """Of each command, from the smaller to the larger corpus."""
    for command, small in peaks[0].items():
        large = peaks[1][command]
        detail = f"{small / 1e6:.0f} MB with {counts[0]:,} videos, {large / 1e6:.0f} MB with {counts[1]:,}"
        name = f"{command}, peak memory x{counts[1] // counts[0]} / x1"
        yield Ratio(name, large / small, LIMIT, at_most=True, detail=detail)


def _from_videos(rendered: Path, folder: Path, num_videos: int) -> dict[str, int]:
    """Bytes of resident memory at most, for each command."""
    (folder / "videos").mkdir(parents=True)
    originals = [path.read_bytes() for path in sorted((rendered / "videos").iterdir())]
    for number in range(num_videos):  # bytes behind the end of an MP4 change its content, not its frames
        copy = originals[number % len(originals)] + number.to_bytes(8, "big")
        (folder / "videos" / f"{number:06d}.mp4").write_bytes(copy)
    store = ("--store", str(folder / "store"))
    model = ("--model", "tbpipe-small", "--commit-bytes", "4M")
    answer = ("--queries", str(rendered / "queries.jsonl"), "--output", str(folder / "run.trec"))
    return {
        "extract": _peak("extract", str(folder / "videos"), *store, *model),
        "index": _peak("index", *store),
        "rerank": _peak("rerank", *store, *answer, "--memory", "8M", "--top-k", "20"),
    }


def _synthetic(rendered: Path, folder: Path, num_videos: int) -> dict[str, int]:
    """The same for stores of random tokens, 5 KB a video, and for a tree of known files with 20 new ones."""
    pinned = load_model("tbpipe-small", device="cpu", dtype="float32", towers="image").settings()
    shape = StoreSettings(pinned, SamplingSettings("uniform", 4), TokenSettings("float16", "4"))
    store = random_store(folder / "store", num_videos, shape)
    index = build_index(store)
    at, cpu = ("--store", str(store.directory)), ("--device", "cpu")
    answer = ("--queries", str(rendered / "queries.jsonl"), "--output", str(folder / "run.trec"), "--memory", "8M")
    in_memory = 4 * shape.embed_dim * index.num_vectors
    peaks = {
        "search, beside the index": _peak("search", "a red circle", *at, *cpu) - in_memory,
        "rerank, beside the index": _peak("rerank", *at, *answer, *cpu) - in_memory,
    }
    shutil.rmtree(store.directory)
    known = make_corpus(folder / "known", num_videos, replace(shape, sampling=SamplingSettings("uniform", 12)))
    sources = (str(folder / "known" / "videos"), str(rendered / "videos"))
    peaks["extract of 20 new ones"] = _peak("extract", *sources, "--store", str(known.directory), *cpu)
    shutil.rmtree(folder)
    return peaks


def _large(folder: Path, num_videos: int) -> Iterator[Ratio]:
    """Rerank and extract with ViT-B/32: what is in memory beside the weights of the tower."""
    weights = random_weights(folder / "weights.safetensors")
    pinned = load_model("ViT-B-32", str(weights), "cpu", towers="image").settings()
    shape = StoreSettings(pinned, SamplingSettings("uniform", 12), TokenSettings("float16", "all"))
    store = random_store(folder / "large", num_videos, shape)
    build_index(store)
    at, cpu = ("--store", str(store.directory)), ("--device", "cpu")
    answer = ("--queries", str(folder / "queries.jsonl"), "--output", str(folder / "run.trec"))
    found = {
        "rerank": _peak("rerank", *at, *answer, *cpu) - _tower_bytes(weights, visual=False),
        "extract": _peak("extract", str(folder / "videos"), *at, *cpu) - _tower_bytes(weights, visual=True),
    }
    for command, peak in found.items():
        name = f"{command} with ViT-B/32, peak memory beside the model, MB"
        yield Ratio(name, peak / 1e6, LIMIT_BYTES / 1e6, at_most=True, detail=f"{num_videos:,} videos of 614 KB")


def _tower_bytes(weights: Path, *, visual: bool) -> int:
    from safetensors import safe_open

    with safe_open(weights, framework="pt", device="cpu") as file:
        names = [name for name in file.keys() if name.startswith("visual.") == visual]  # noqa: SIM118  not a mapping
        return sum(file.get_tensor(name).nbytes for name in names)


def _peak(*arguments: str) -> int:
    return cost_of([*TBPIPE, *arguments, *(() if arguments[0] in ("index", "search") else ("--quiet",))]).peak_bytes
