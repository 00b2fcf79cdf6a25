"""Reranks in a loop while the store is refreshed again and again.

    python -m tests.crash.read_beside --refreshes 50

Readers open the store as it is, answer a few queries in two stages, wait, and answer them again from what they hold.
Wanted: no reader ever fails; the second answer is the first; every answer with the same commit and the same index
generation is the same, also that of whoever reads when nothing moves.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from index_store.records import SEARCHABLE, Query
from index_store.snapshot import Snapshot
from index_store.store import Store
from tests.crash.refreshing import Source, finish, fork, new_store, preload, refresh_well, require_clean

NUM_READERS = 2
QUERIES = [Query(str(number), text) for number, text in enumerate(("a red circle", "a blue square turns", "two stars"))]
TOP_K = 5

State = tuple[int, int]
"""Commit number and index generation."""


class Reader:
    """Answers the queries with what the store is at that moment."""

    def __init__(self, store: Store) -> None:
        from pipeline.jobs.answering import text_model

        self.store = store
        self.model = text_model(store, None, "cpu")

    def answers(self, pauses: Iterator[float]) -> tuple[State, str]:
        """One snapshot's answer. Raises AssertionError when it changes while the snapshot is held."""
        with self.store.snapshot() as snapshot:
            first = self._answer(snapshot)
            time.sleep(next(pauses))
            assert self._answer(snapshot) == first, "a snapshot gave two answers"
            generation = snapshot.generation()
            assert generation is not None
            return (snapshot.commit_number, generation.id), first

    def _answer(self, snapshot: Snapshot) -> str:
        from stages.rerank import rerank
        from stages.rerankers import make_reranker
        from stages.search import open_index

        index = open_index(snapshot)  # of the generation that the snapshot names, and of the commit that it says
        statuses = [record.status for record in snapshot.by_ids(index.ids.tolist())]
        num_there = sum(status in SEARCHABLE for status in statuses)
        answer = []
        for ranking in rerank(snapshot, index, self.model, QUERIES, make_reranker("eercf"), top_k=TOP_K):
            assert {hit.video_id for hit in ranking.hits} <= set(index.ids.tolist()), "a video of another generation"
            assert len(ranking.hits) == min(TOP_K, num_there), "a video is missing"
            answer.append([(hit.key, hit.score, hit.broad_score) for hit in ranking.hits])
        return json.dumps(answer)


def read_until(stop: Path, directory: Path, output: Path, seed: int) -> int:
    """Be a reader; each answer becomes a line."""
    rng = random.Random(seed)
    reader = Reader(Store.open(directory))
    pauses = iter(lambda: rng.choice((0.0, 0.05, 0.3, 1.5)), None)
    with output.open("w") as file:
        while not stop.exists():
            state, answer = reader.answers(pauses)
            file.write(json.dumps([state, answer]) + "\n")
            file.flush()
    return 0


def check(folder: Path, refreshes: int) -> tuple[int, int]:
    """Raise AssertionError when a reader failed or mixed; gives the answers and the states that readers have seen."""
    source = Source(folder)
    source.fill(6)
    directory, log, stop = folder / "store", folder / "log", folder / "stop"
    new_store(directory, folder)
    refresh_well(directory, source.videos, log)
    quiet = Reader(Store.open(directory))
    expected: dict[State, str] = dict([quiet.answers(iter([0.0]))])
    outputs = [folder / f"answers{number}" for number in range(NUM_READERS)]
    readers = [
        fork(partial(read_until, stop, directory, output, seed), output.with_suffix(".log"))
        for seed, output in enumerate(outputs)
    ]
    for turn in range(refreshes):
        source.change(turn)
        refresh_well(directory, source.videos, log)
        state, answer = quiet.answers(iter([0.0]))
        expected[state] = answer
        print(f"refresh {turn + 1}: commit {state[0]}, generation {state[1]}", file=sys.stderr, flush=True)
    stop.touch()
    for pid, output in zip(readers, outputs, strict=True):
        assert finish(pid) == 0, output.with_suffix(".log").read_text()
    require_clean(directory)
    num_answers = 0
    seen = set()
    for output in outputs:
        for line in output.read_text().splitlines():
            (commit, generation), answer = json.loads(line)
            known = expected.setdefault((commit, generation), answer)
            assert answer == known, f"two answers at commit {commit}, generation {generation}"
            num_answers += 1
            seen.add((commit, generation))
    return num_answers, len(seen)


def main() -> None:
    """Parse and check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--refreshes", type=int, default=50)
    arguments = parser.parse_args()
    preload()
    with tempfile.TemporaryDirectory() as name:
        num_answers, num_states = check(Path(name), arguments.refreshes)
    print(f"{num_answers} answers of {num_states} states, beside {arguments.refreshes} refreshes: none failed")


if __name__ == "__main__":
    main()
