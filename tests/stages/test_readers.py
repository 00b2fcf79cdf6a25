"""Whoever asks while the store changes gets an answer of one commit and one index generation, and no error."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from index_store.records import Ranking, VideoOutcome
from index_store.snapshot import Snapshot
from index_store.store import Store
from stages.index import build_index
from stages.rerank import rerank
from stages.rerankers.eercf import EercfReranker
from stages.search import open_index
from tests.stages.corpus import DrawnTexts, file, make_store, outcome, queries

NUM_ROUNDS = 10
Moment = tuple[int, int]
"""Commit number and index generation."""


def asked(store: Store) -> tuple[Moment, list[Ranking]]:
    """What the store answers now."""
    with store.snapshot() as snapshot:
        return answer(snapshot)


def answer(snapshot: Snapshot) -> tuple[Moment, list[Ranking]]:
    """What this snapshot answers, and of when it is."""
    generation = snapshot.generation()
    assert generation is not None
    index = open_index(snapshot)
    found = list(rerank(snapshot, index, DrawnTexts(), queries(3), EercfReranker(), top_k=6))
    return (snapshot.commit_number, generation.id), found


class Reader(threading.Thread):
    """Asks again and again until told to end."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._store = Store.open(directory)
        self._end = threading.Event()
        self.answers: list[tuple[Moment, list[Ranking]]] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        """Ask."""
        try:
            while not self._end.is_set():
                self.answers.append(asked(self._store))
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        """Ask no more, and say what went wrong."""
        self._end.set()
        self.join()
        if self.error is not None:
            raise self.error


def changed(number: int, round_number: int) -> VideoOutcome:
    """The video shows something else, or is gone."""
    if (number + round_number) % 5 == 0:
        return VideoOutcome(file(number), "removed")
    words = f"video{number % 6} w{round_number % 5} {round_number}"
    return outcome(number, words=words, content=f"{round_number:032x}{number:032x}")


def test_a_slow_reader_still_finds_its_generation(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 30)
    build_index(store)
    expected = asked(store)
    folders = tmp_path / "store" / "index"
    with store.snapshot() as snapshot:  # it has opened nothing yet
        for round_number in range(4):
            with store.writer() as writer:
                writer.commit([changed(number, round_number) for number in range(20)])
            build_index(store)
        assert answer(snapshot) == expected
        assert asked(store) != expected
        assert len(list(folders.iterdir())) == 5
    with store.writer():
        pass
    assert sorted(path.name for path in folders.iterdir()) == ["00000004", "00000005"]


@pytest.mark.slow
def test_every_answer_belongs_to_one_generation(tmp_path: Path) -> None:
    """Every round gives some videos other content, so that each commit and each generation answers differently."""
    store = make_store(tmp_path / "store", 30)
    build_index(store)
    expected = dict([asked(store)])
    rng = np.random.default_rng(4)
    reader = Reader(store.directory)
    reader.start()
    for round_number in range(NUM_ROUNDS):
        with store.writer() as writer:
            writer.commit([changed(number, round_number) for number in rng.permutation(30)[:8].tolist()])
        expected.update([asked(store)])
        build_index(store)
        expected.update([asked(store)])
    reader.end()
    assert len({moment for moment, _ in reader.answers}) > NUM_ROUNDS // 4
    for moment, found in reader.answers:
        assert found == expected[moment]
    assert len(set(map(repr, expected.values()))) == 2 * NUM_ROUNDS + 1
