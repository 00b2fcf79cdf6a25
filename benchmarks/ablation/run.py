"""Two rendered corpora, made once, and the trials on them. Everything is done by the jobs of ``pipeline``."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.ablation.plan import Scale, Trial
from benchmarks.ablation.results import Recalls, Result, key_of
from benchmarks.near_duplicates import Corpus, corpus_to_test_on, corpus_to_train_on, make, text_tower_of
from pipeline.jobs.evaluate import EvaluateJob, evaluate
from pipeline.jobs.train import WEIGHTS_SUFFIX, TrainJob, train
from stages.evaluate import DirectionResult
from stages.rerankers import TOKEN_BINDER


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
    training = corpus_to_train_on(work, scale.videos, scale.families)
    test = corpus_to_test_on(work, scale.test_videos, scale.test_seed, scale.families)
    make(work, (training, test), device, workers)
    return Bench(work, scale, training, test, start and text_tower_of(start, work), device)


def _recalls(found: DirectionResult | None) -> Recalls:
    assert found is not None  # both directions were asked for
    broad, focused = (
        {f"R@{cut}": value for cut, value in metrics.recall_at.items()} for metrics in (found.broad, found.focused)
    )
    return Recalls(broad, focused)
