"""The rendered near-duplicates that methods are compared on, made once: captioned videos, their features, an index.

Everything is done by the jobs of ``pipeline``. Benchmarks that are given the same folder share what lies there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from index_store.errors import InputError, UsageError
from index_store.lock import writer_lock
from index_store.store import Store
from pipeline.jobs.extract import ExtractJob, extract
from pipeline.jobs.train import WEIGHTS_SUFFIX
from pipeline.jobs.upkeep import index
from pipeline.progress import progress_bar
from stages.rerankers.token_binder import TokenBinderWeights
from stages.search import BroadView, open_index
from stages.synthetic.families import FAMILIES
from stages.synthetic.render import render_families
from stages.synthetic.scenes import Combinations

MODEL = "tbpipe-small"
TRAIN_SEED = 21
TRAIN_CAPTIONS = 6
"""Paraphrases of what can be said of a training video. At 9,000 videos, the corpus of the weights that ship."""
_WAIT_SECONDS = 12 * 3600.0
"""Processes that share the work wait so long for the one that makes the corpora."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """A folder with rendered near-duplicates, captions.jsonl and a store."""

    directory: Path
    seed: int
    num_videos: int
    families: tuple[str, ...]
    combinations: Combinations
    """Of colour and shape: training never sees those of the test videos."""
    captions_each: int

    @property
    def captions(self) -> Path:
        """What the videos are asked for with."""
        return self.directory / "captions.jsonl"

    @property
    def store(self) -> Path:
        """Features and index of the videos."""
        return self.directory / "store"


def corpus_to_train_on(work: Path, num_videos: int, families: Sequence[str] = tuple(FAMILIES)) -> Corpus:
    """Of the training split."""
    directory = work / f"train-{num_videos}-seed-{TRAIN_SEED}{_kinds(families)}"
    return Corpus(directory, TRAIN_SEED, num_videos, tuple(families), "seen", TRAIN_CAPTIONS)


def corpus_to_test_on(work: Path, num_videos: int, seed: int, families: Sequence[str] = tuple(FAMILIES)) -> Corpus:
    """Of the test split, one caption a video."""
    directory = work / f"test-{num_videos}-seed-{seed}{_kinds(families)}"
    return Corpus(directory, seed, num_videos, tuple(families), "unseen", 1)


def make(work: Path, corpora: Sequence[Corpus], device: str, workers: int | None) -> None:
    """Render, extract and index what is not there yet; one process does it, the others wait."""
    with writer_lock(work / "corpora.lock", _WAIT_SECONDS):
        for corpus in corpora:
            _render(corpus)
            _extract(corpus, device, workers)


def sha256_of(path: Path | None) -> str:
    """Of a weights file; empty for none. Raises InputError for one that cannot be read."""
    if path is None:
        return ""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read as weights to start from: {error.strerror}") from error


def text_tower_of(start: Path, work: Path) -> Path:
    """A copy of the weights in ``work`` without their fusion network, which would fit trials of one form only."""
    path = work / f"start-{sha256_of(start)[:16]}{WEIGHTS_SUFFIX}"
    with writer_lock(work / "corpora.lock", _WAIT_SECONDS):
        replace(TokenBinderWeights.load(start), fusion={}).save(path)
    return path


def _kinds(families: Sequence[str]) -> str:
    return "" if tuple(families) == tuple(FAMILIES) else "-" + "-".join(families)


def _render(corpus: Corpus) -> None:
    if (corpus.directory / "qrels.tsv").exists():  # is written last
        return
    corpus.directory.mkdir(exist_ok=True)
    with progress_bar("render", corpus.num_videos, "videos") as advance:
        try:
            render_families(
                corpus.directory,
                corpus.seed,
                corpus.num_videos,
                corpus.families,
                combinations=corpus.combinations,
                captions_each=corpus.captions_each,
                on_video=advance,
            )
        except ValueError as error:
            raise UsageError(f"{corpus.directory.name} cannot be rendered: {error}") from error


def _extract(corpus: Corpus, device: str, workers: int | None) -> None:
    if _is_finished(corpus):  # wherever it was made: a copy of a corpus elsewhere is as good
        return
    job = ExtractJob(
        sources=(corpus.directory / "videos",),
        store=corpus.store,
        model=MODEL,
        device=device,
        dtype="float32",
        workers=workers,
    )
    result = extract(job)
    if result.interrupted_by:
        raise result.interrupted_by
    index(corpus.store)


def _is_finished(corpus: Corpus) -> bool:
    """Whether every video has its features and is in the index."""
    if not corpus.store.exists():
        return False
    with Store.open(corpus.store).snapshot() as snapshot:
        if snapshot.num_searchable != corpus.num_videos or snapshot.generation() is None:
            return False
        return not BroadView(snapshot, open_index(snapshot)).staleness
