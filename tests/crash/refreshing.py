"""A source that has changed in every way, refreshes of it in forked processes, and what a store is to be compared by.

Each refresh is a fork of this process, which has imported torch already, so that what is tried falls into the work and
not into the imports.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np

from index_store.store import Store
from index_store.vectors import VectorIndex
from index_store.verify import verify
from stages.synthetic.render import VideoFormat, render_corpus

NUM_RENDERED = 3
PASSING = {"writer.lock", "readers.lock", "catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm", "catalog.seal"}
"""Files of a store whose bytes hang on who had it open when; the catalog is compared row by row."""


class Source:
    """A folder of videos that changes: many contents from a few renderings, told apart by bytes behind an MP4's end."""

    def __init__(self, folder: Path) -> None:
        render_corpus(folder / "rendered", seed=3, num_videos=NUM_RENDERED, video_format=VideoFormat(seconds=0.8))
        self._renderings = [path.read_bytes() for path in sorted((folder / "rendered" / "videos").iterdir())]
        self.videos = folder / "videos"
        self.videos.mkdir()
        self._num_contents = 0

    def content(self) -> bytes:
        """Another video each time."""
        self._num_contents += 1
        return self._renderings[self._num_contents % NUM_RENDERED] + self._num_contents.to_bytes(4, "big")

    def fill(self, number: int) -> None:
        """The first videos."""
        for index in range(number):
            (self.videos / f"{index:03d}.mp4").write_bytes(self.content())

    def change(self, turn: int = 0) -> None:
        """Three come, one of them a copy; one changes, one moves, one goes, and one cannot be used."""
        names = sorted(path.name for path in self.videos.glob("[0-9]*.mp4"))
        for place in "ab":
            (self.videos / f"9{turn:03d}{place}.mp4").write_bytes(self.content())
        shutil.copy(self.videos / names[0], self.videos / f"9{turn:03d}copy.mp4")
        (self.videos / names[1]).write_bytes(self.content())
        (self.videos / f"moved{turn}").mkdir()
        (self.videos / names[2]).rename(self.videos / f"moved{turn}" / names[2])
        (self.videos / names[3]).unlink()
        (self.videos / f"bad{turn}.mp4").write_bytes(b"\0no video\0" * 100)


def new_store(directory: Path, folder: Path) -> None:
    """A directory that the first refresh makes a store, with standing queries."""
    (folder / "queries.tsv").write_text("1\ta red circle\n2\ta blue square\n")
    directory.mkdir()
    standing = f'[[refresh.queries]]\nfile = "{folder}/queries.tsv"\noutput = "runs/standing.trec"\n'
    (directory / "tbpipe.toml").write_text(standing)


def standing_answer(store: Path) -> bytes:
    """What the standing queries' output holds; nothing before the first refresh."""
    path = store / "runs" / "standing.trec"
    return path.read_bytes() if path.exists() else b""


def fork(action: Callable[[], int], log: Path) -> int:
    """Do it in another process, whose output goes to ``log``; gives its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = action()
    finally:
        os._exit(code)


def finish(pid: int) -> int:
    """Wait for a process; gives its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def refresh(store: Path, source: Path, commit_bytes: str = "200K", *options: str) -> int:
    """Run ``tbpipe refresh``; gives its exit code."""
    from pipeline.cli import main

    fixed = ["--model", "tbpipe-small", "--device", "cpu", "--workers", "1", "--commit-bytes", commit_bytes]
    try:
        main(["refresh", "--store", str(store), "--source", str(source), "--max-deletes", "100%", *fixed, *options])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def refresh_well(store: Path, source: Path, log: Path) -> int:
    """Run it in another process, to its end. Raises AssertionError, with what it said, for an error."""
    code = finish(fork(lambda: refresh(store, source), log))
    assert code in (0, 3), f"exit code {code}: {log.read_text()}"
    return code


def preload() -> None:
    """Import everything heavy, for all forks."""
    import faiss  # noqa: F401
    import open_clip  # noqa: F401
    import torch

    from pipeline.jobs import refresh_run  # noqa: F401
    from stages import extract, index  # noqa: F401

    torch.set_num_threads(1)  # a thread pool does not survive a fork


def rows(store: Path) -> list[str]:
    """Every row of the catalog, as SQL; also of one that a killed writer has left, which stays as it is."""
    connection = sqlite3.connect(f"file:{store}/catalog.sqlite?mode=ro", uri=True)
    try:
        return [line for line in connection.iterdump() if line.startswith("INSERT")]
    finally:
        connection.close()


def files(store: Path) -> dict[str, bytes]:
    """Every file that must be the same in two equal stores; what standing queries remember hangs on absolute paths."""
    found = {str(path.relative_to(store)): path for path in sorted(store.rglob("*")) if path.is_file()}
    compared = {name: path for name, path in found.items() if name not in PASSING and path.suffix != ".npz"}
    return {name: path.read_bytes() for name, path in compared.items()}


def require_clean(store: Path) -> None:
    """Raise AssertionError unless every byte is what was written."""
    report = verify(store, read_data=True)
    assert report.problems == [], [str(problem) for problem in report.problems]


def answer(store: Path) -> tuple[int, tuple[tuple[int, float], ...]]:
    """What a reader gets now: the newest generation, and from it the videos that are there, best first, with scores.

    Raises AssertionError for an answer that belongs to no single generation: each score is computed again from the
    vectors of the index, and every video that the index leads to must be known, and have features or have lost them.
    """
    opened = Store.open(store)
    with opened.snapshot() as snapshot:
        generation = snapshot.generation()
        if generation is None:
            return 0, ()
        index = VectorIndex.open(generation.path, opened.fingerprint)
        assert len(index) == generation.num_vectors
        assert index.commit_number == generation.commit_number <= snapshot.commit_number
        query = np.zeros((1, index.dim), np.float32)
        query[0, 0] = 1
        scores, ids = index.search(query, len(index))
        found = list(zip(ids[0].tolist(), scores[0].tolist(), strict=True))
        records = {record.id: record for record in snapshot.by_ids([video_id for video_id, _ in found])}
        there = [video_id for video_id, _ in found if records[video_id].status in ("ok", "partial")]
        snapshot.read_tokens(there)
        return generation.id, tuple(found)


def require_equal(store: Path, whole: Path, what: str) -> None:
    """Raise AssertionError unless both stores are clean and the same. ``what``: was done to the first."""
    require_clean(store)
    assert rows(store) == rows(whole), f"{what}: another catalog"
    assert answer(store) == answer(whole), f"{what}: another index"
    found, expected = files(store), files(whole)
    assert found.keys() == expected.keys(), f"{what}: {found.keys() ^ expected.keys()} in one of them only"
    differing = [path for path in found if found[path] != expected[path]]
    assert differing == [], f"{what}: other bytes in {differing}"
