"""Kills extract with -9 at random moments, finishes it, and compares the store with one that was never disturbed.

    python -m tests.crash.kill_extract --kills 20 --seed 0

Each extract is a fork of this process, which has imported torch already, so that the kills fall into the work and not
into the imports. After each kill: the store opens, every committed record has its checksum, and what was committed
before is still where it was. At the end: same catalog, same shard files, same ``info``, to the byte.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import NoReturn

import open_clip  # noqa: F401  (every fork inherits the imports)
import torch

from index_store.records import VideoRecord
from index_store.store import Store
from stages.synthetic.render import VideoFormat, render_corpus

NUM_RENDERED = 12
NUM_VIDEOS = 120


def make_corpus(folder: Path, num_videos: int) -> Path:
    """Many contents from a few renderings: bytes behind an MP4's end change the file, not its frames."""
    render_corpus(folder / "rendered", seed=3, num_videos=NUM_RENDERED, video_format=VideoFormat(seconds=0.8))
    originals = [path.read_bytes() for path in sorted((folder / "rendered" / "videos").iterdir())]
    videos = folder / "videos"
    videos.mkdir()
    for number in range(num_videos):
        (videos / f"{number:03d}.mp4").write_bytes(originals[number % NUM_RENDERED] + number.to_bytes(8, "big"))
    (videos / "bad.mp4").write_bytes(b"\0no video\0" * 100)
    return videos


def run_extract(videos: Path, store: Path) -> NoReturn:
    """Be an extract, in a forked process."""
    from pipeline.cli import main

    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    try:
        main(
            [
                "extract",
                str(videos),
                "--store",
                str(store),
                "--model",
                "tbpipe-small",
                "--device",
                "cpu",
                "--commit-bytes",
                "500K",
            ]
        )
    except SystemExit as end:
        os._exit(int(end.code or 0))
    os._exit(0)


def start(videos: Path, store: Path) -> int:
    """Fork an extract; gives its pid."""
    pid = os.fork()
    if pid == 0:
        run_extract(videos, store)
    return pid


def finish(pid: int) -> int:
    """Wait for an extract; gives its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def committed(store: Path) -> dict[str, VideoRecord]:
    """Every record, after each one with features was read and checked; nothing if the store does not exist yet."""
    if not (store / "tbpipe.toml").exists():
        return {}
    with Store.open(store).snapshot() as snapshot:
        records = {record.key: record for record in snapshot.videos()}
        for record in records.values():
            if record.shard is not None:
                snapshot.verify_record(record.id)
    return records


def info(store: Path) -> str:
    """What ``tbpipe info --json`` says, but for the directory's name."""
    from pipeline.jobs import upkeep

    return json.dumps(asdict(replace(upkeep.info(store), directory=Path("store"))), default=str)


def shard_bytes(store: Path) -> dict[str, bytes]:
    """Content of each shard file."""
    return {path.name: path.read_bytes() for path in sorted((store / "shards").iterdir())}


def check(kills: int, seed: int, num_videos: int = NUM_VIDEOS) -> None:
    """Raise AssertionError when anything is lost, done twice or different."""
    torch.set_num_threads(1)  # a thread pool does not survive a fork
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = make_corpus(folder, num_videos)
        undisturbed, killed = folder / "undisturbed", folder / "killed"
        before = time.monotonic()
        assert finish(start(videos, undisturbed)) == 3
        whole_seconds = time.monotonic() - before
        known: dict[str, VideoRecord] = {}
        num_landed = 0
        for number in range(kills):
            pid = start(videos, killed)
            time.sleep(rng.uniform(0, whole_seconds * 0.4))
            os.kill(pid, signal.SIGKILL)
            num_landed += finish(pid) == -signal.SIGKILL
            now = committed(killed)
            assert known.items() <= now.items(), "something that was committed has changed"
            print(f"kill {number + 1}: {len(now)} of {num_videos + 1} committed", file=sys.stderr, flush=True)
            known = now
            if len(known) == num_videos + 1:  # done: begin again, to make every kill count
                os.rename(killed, folder / f"finished{number}")
                assert shard_bytes(folder / f"finished{number}") == shard_bytes(undisturbed)
                known = {}
        assert finish(start(videos, killed)) in (0, 3)
        after = committed(killed)
        assert known.items() <= after.items(), "something that was committed was computed again"
        assert after == committed(undisturbed), "the catalogs differ"
        assert shard_bytes(killed) == shard_bytes(undisturbed), "the shards differ"
        assert info(killed) == info(undisturbed)
        print(f"{num_landed} of {kills} kills hit a running extract; the finished store equals the undisturbed one")


def main() -> None:
    """Parse and check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    check(arguments.kills, arguments.seed)


if __name__ == "__main__":
    main()
