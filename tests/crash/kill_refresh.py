"""Kills refresh with -9 at random moments, and compares the store with one that was never disturbed.

    python -m tests.crash.kill_refresh --kills 200 --seed 0

The source changes in every way; a refresh is started and killed, again and again, until one has finished; then the
store must equal the one that a single refresh made, row by row and byte by byte, and the source changes once more.
After every kill, ``verify --read-data`` finds nothing and a reader gets an answer.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from index_store.settings import has_store_section
from tests.crash.refreshing import (
    Source,
    answer,
    finish,
    fork,
    new_store,
    preload,
    refresh,
    refresh_well,
    require_clean,
    require_equal,
)

NUM_VIDEOS = 6


def check(folder: Path, kills: int, seed: int) -> tuple[int, int]:
    """Raise AssertionError when anything is lost or different; gives how many kills hit, and how often it ended."""
    rng = random.Random(seed)
    source = Source(folder)
    source.fill(NUM_VIDEOS)
    whole, killed, log = folder / "undisturbed", folder / "killed", folder / "log"
    new_store(whole, folder)
    new_store(killed, folder)
    num_hit = turn = 0
    while num_hit < kills:
        before = time.monotonic()
        refresh_well(whole, source.videos, log)
        whole_seconds = time.monotonic() - before
        while True:
            pid = fork(lambda: refresh(killed, source.videos), log)
            time.sleep(rng.uniform(0, 1.1 * whole_seconds))
            os.kill(pid, signal.SIGKILL)
            code = finish(pid)
            if code >= 0:
                assert code in (0, 3), f"exit code {code}: {log.read_text()}"
                break
            num_hit += 1
            if has_store_section(killed / "tbpipe.toml"):
                require_clean(killed)
                answer(killed)
            print(f"kill {num_hit} in turn {turn}", file=sys.stderr, flush=True)
            if num_hit >= kills:
                refresh_well(killed, source.videos, log)
                break
        require_equal(killed, whole, f"killed again and again in turn {turn}")
        turn += 1
        source.change(turn)
    return num_hit, turn


def main() -> None:
    """Parse and check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    preload()
    with tempfile.TemporaryDirectory() as name:
        num_hit, turns = check(Path(name), arguments.kills, arguments.seed)
    print(f"{num_hit} kills hit a running refresh, {turns} times it finished: each time equal to the undisturbed store")


if __name__ == "__main__":
    main()
