"""Peak memory of extract, index and rerank with one and with ten times the videos: it must not grow with the corpus."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Ratio
from stages.synthetic.render import VideoFormat, render_corpus

NUM_VIDEOS = 100
FACTOR = 10
LIMIT = 1.10


def run(num_videos: int = NUM_VIDEOS, factor: int = FACTOR) -> Iterator[Ratio]:
    """Run the commands as processes of their own on ``num_videos`` and on ``factor`` times as many."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        render_corpus(folder, 1, 20, video_format=VideoFormat(seconds=1.6))
        peaks = [_peaks(folder, folder / f"corpus{count}", count) for count in (num_videos, factor * num_videos)]
    for command, small in peaks[0].items():
        large = peaks[1][command]
        detail = f"{small / 1e6:.0f} MB with {num_videos} videos, {large / 1e6:.0f} MB with {factor * num_videos}"
        yield Ratio(f"{command}, peak memory x{factor} / x1", large / small, LIMIT, at_most=True, detail=detail)


def _peaks(rendered: Path, folder: Path, num_videos: int) -> dict[str, int]:
    """Bytes of resident memory at most, for each command."""
    (folder / "videos").mkdir(parents=True)
    originals = [path.read_bytes() for path in sorted((rendered / "videos").iterdir())]
    for number in range(num_videos):  # bytes behind the end of an MP4 change its content, not its frames
        copy = originals[number % len(originals)] + number.to_bytes(8, "big")
        (folder / "videos" / f"{number:06d}.mp4").write_bytes(copy)
    store = ["--store", str(folder / "store")]
    queries = [
        "--queries",
        str(rendered / "queries.jsonl"),
        "--output",
        str(folder / "run.trec"),
        "--memory",
        "8M",
        "--top-k",
        "20",
    ]
    return {
        "extract": _peak("extract", str(folder / "videos"), *store, "--model", "tbpipe-small", "--commit-bytes", "4M"),
        "index": _peak("index", *store),
        "rerank": _peak("rerank", *store, *queries),
    }


def _peak(*arguments: str) -> int:
    process = subprocess.Popen([sys.executable, "-m", "pipeline", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"tbpipe {' '.join(arguments)} ended with {process.returncode}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
