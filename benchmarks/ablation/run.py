"""Two rendered corpora, made once, and the trials on them. Everything is done by the jobs of ``pipeline``."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.ablation.plan import Scale, Trial
from benchmarks.ablation.results import Recalls, Result, key_of
from index_store.errors import InputError, UsageError
from index_store.lock import writer_lock
from pipeline.jobs.evaluate import EvaluateJob, evaluate
from pipeline.jobs.extract import ExtractJob, extract
from pipeline.jobs.train import WEIGHTS_SUFFIX, TrainJob, train
from pipeline.jobs.upkeep import index
from pipeline.progress import progress_bar
from stages.evaluate import DirectionResult
from stages.rerankers import TOKEN_BINDER
from stages.rerankers.token_binder import TokenBinderWeights
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


@dataclass(frozen=True, slots=True)
class Bench:
    """Everything that trials run on."""

    work: Path
    scale: Scale
    training: Corpus
    test: Corpus
    start: Path | None
    """Weights without a fusion network."""
    device: str

    def run(self, trial: Trial) -> Result:
        """Train and evaluate with the same K. A trial that was killed goes on from its last validation."""
        started = time.monotonic()
        name = hashlib.sha256(key_of(self.scale, trial.config).encode()).hexdigest()[:16]
        weights = self.work / "trials" / (name + WEIGHTS_SUFFIX)
        weights.parent.mkdir(exist_ok=True)
        trained = train(
            TrainJob(
                store=self.training.store,
                captions=self.training.captions,
                output=weights,
                options=asdict(trial.config),
                start=self.start,
                device=self.device,
            )
        )
        assert trained is not None  # one process trains here
        found = evaluate(
            EvaluateJob(
                store=self.test.store,
                captions=self.test.captions,
                method=TOKEN_BINDER,
                weights=weights,
                top_k=trial.config.num_candidates,
                device=self.device,
            )
        )
        return Result(
            table=trial.table,
            label=trial.label,
            scale=asdict(self.scale),
            config=asdict(trial.config),
            steps=trained.steps,
            num_videos=trained.num_videos,
            num_test_videos=found.num_videos,
            t2v=_recalls(found.text_to_video),
            v2t=_recalls(found.video_to_text),
            seconds=round(time.monotonic() - started, 1),
        )


def prepare(work: Path, scale: Scale, start: Path | None, device: str, workers: int | None) -> Bench:
    """Render, extract and index what is not there yet; one process does it, the others wait."""
    kinds = "" if scale.families == tuple(FAMILIES) else "-" + "-".join(scale.families)
    training = Corpus(
        work / f"train-{scale.videos}-seed-{TRAIN_SEED}{kinds}",
        TRAIN_SEED,
        scale.videos,
        scale.families,
        "seen",
        TRAIN_CAPTIONS,
    )
    test = Corpus(
        work / f"test-{scale.test_videos}-seed-{scale.test_seed}{kinds}",
        scale.test_seed,
        scale.test_videos,
        scale.families,
        "unseen",
        1,
    )
    with writer_lock(work / "corpora.lock", _WAIT_SECONDS):
        for corpus in (training, test):
            _render(corpus)
            _extract(corpus, device, workers)
        return Bench(work, scale, training, test, start and _text_tower_of(start, work, scale), device)


def sha256_of(path: Path | None) -> str:
    """Of a weights file, for Scale. Raises InputError for one that cannot be read."""
    if path is None:
        return ""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read as weights to start from: {error.strerror}") from error


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


def _text_tower_of(start: Path, work: Path, scale: Scale) -> Path:
    """A copy of the weights without their fusion network, which would fit the trials of one form only."""
    path = work / f"start-{scale.start[:16]}{WEIGHTS_SUFFIX}"
    replace(TokenBinderWeights.load(start), fusion={}).save(path)
    return path


def _recalls(found: DirectionResult | None) -> Recalls:
    assert found is not None  # both directions were asked for
    broad, focused = (
        {f"R@{cut}": value for cut, value in metrics.recall_at.items()} for metrics in (found.broad, found.focused)
    )
    return Recalls(broad, focused)
