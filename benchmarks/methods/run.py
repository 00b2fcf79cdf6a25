"""One row of the table: train where there is something to train, evaluate, measure what answering costs."""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.methods.cost import Cost, measure
from benchmarks.methods.plan import Row, Scale, config_of
from benchmarks.methods.results import Found, Result, key_of
from benchmarks.near_duplicates import Corpus, corpus_to_test_on, corpus_to_train_on, make, text_tower_of
from index_store.atomic import remove, write_bytes
from index_store.captions import read_captions
from index_store.records import Query
from index_store.store import Store
from pipeline.jobs.answering import open_answering
from pipeline.jobs.evaluate import EvaluateJob, evaluate
from pipeline.jobs.train import WEIGHTS_SUFFIX, TrainJob, train
from stages.evaluate import DirectionResult
from stages.prepare import prepare
from stages.rerankers.base import BroadReranker, Reranker
from stages.rerankers.video_sides import video_side_of
from stages.synthetic import pretrain_text


@dataclass(frozen=True, slots=True)
class Bench:
    """Everything that rows run on."""

    work: Path
    scale: Scale
    training: Corpus
    test: Corpus
    start: Path
    """Weights whose text tower every training begins with."""
    device: str

    def run(self, row: Row) -> Result:
        """One row. A training that was killed goes on from its last validation."""
        weights, training_seconds = self._trained(row) if row.form == "trained" else (None, 0.0)
        job = EvaluateJob(
            store=self.test.store,
            captions=self.test.captions,
            method=row.method,
            weights=weights,
            top_k=self.scale.top_k,
            device=self.device,
        )
        found = evaluate(job)
        cost, prepared, bytes_prepared = self._costs(job, row)
        return Result(
            label=row.label,
            form=row.form,
            scale=asdict(self.scale),
            config=asdict(config_of(row, self.scale)) if weights else {},
            t2v=_found(found.text_to_video),
            v2t=_found(found.video_to_text),
            cost=cost,
            prepared=prepared,
            bytes_prepared=bytes_prepared,
            training_seconds=training_seconds,
        )

    def _trained(self, row: Row) -> tuple[Path, float]:
        """The weights of a row, and the CPU seconds of the process that finished them."""
        name = hashlib.sha256(key_of(row, self.scale).encode()).hexdigest()[:16]
        weights = self.work / "trained" / f"{row.method}-{name}{WEIGHTS_SUFFIX}"
        took = weights.with_suffix(".seconds")
        if not took.exists():
            weights.parent.mkdir(exist_ok=True)
            started = time.process_time()
            options, start = asdict(config_of(row, self.scale)), self.start
            store, captions = self.training.store, self.training.captions
            job = TrainJob(
                store=store, captions=captions, output=weights, options=options, start=start, device=self.device
            )
            train(job)
            write_bytes(took, f"{time.process_time() - started:.1f}\n".encode())
        return weights, float(took.read_text())

    def _costs(self, job: EvaluateJob, row: Row) -> tuple[Cost, Cost | None, int]:
        """From the tokens; and from what is prepared, with its bytes a video, where preparing saves something."""
        store = Store.open(self.test.store)
        queries = [Query(str(number), caption.text) for number, caption in enumerate(read_captions(self.test.captions))]
        remove(store.directory / "prepared")
        with store.snapshot() as snapshot:
            opened = open_answering(store, snapshot, job)
            is_broad = row.options.get("focused") is False
            reranker: Reranker = BroadReranker() if is_broad else opened.reranker

            def cost() -> Cost:
                return measure(snapshot, opened.index, opened.model, queries, reranker, self.scale.top_k)

            from_tokens = cost()
            if video_side_of(reranker) is None:
                return from_tokens, None, 0
            try:
                report = prepare(store, reranker)
                return from_tokens, cost(), report.bytes_per_video
            finally:
                remove(store.directory / "prepared")


def start_of(work: Path, given: Path | None) -> Path:
    """The weights that were given; else a text tower that is taught in some minutes, once."""
    if given is not None:
        return given
    path = work / f"first{WEIGHTS_SUFFIX}"
    if not path.exists():
        print("teaching the text tower that training starts from; --start FILE takes a ready one", file=sys.stderr)
        pretrain_text.main(["--output", str(path), "--work", str(work / "first")])
    return path


def open_bench(work: Path, scale: Scale, start: Path, device: str, workers: int | None) -> Bench:
    """Render, extract and index what is not there yet."""
    training = corpus_to_train_on(work, scale.videos)
    test = corpus_to_test_on(work, scale.test_videos, scale.test_seed)
    make(work, (training, test), device, workers)
    return Bench(work, scale, training, test, text_tower_of(start, work), device)


def _found(result: DirectionResult | None) -> Found:
    assert result is not None  # both directions were asked for
    focused, broad = result.focused.recall_at, result.broad.recall_at
    return Found(focused[1], focused[5], broad[1], result.ceiling)
