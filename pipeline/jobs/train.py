"""``tbpipe train``: captions and the store's features -> weights of the focused view."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index_store.captions import match_captions, read_captions
from index_store.errors import ComponentMissingError, InputError, UsageError
from index_store.store import Snapshot, Store
from pipeline.jobs.answering import text_model
from pipeline.progress import progress_bar
from pipeline.stop import stop_on_signals

if TYPE_CHECKING:
    from stages.training.pairs import CaptionedId
    from stages.training.trainer import Validation

WEIGHTS_SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """Everything that ``tbpipe train`` was told."""

    store: Path
    captions: Path
    output: Path
    split: str = ""
    preset: str = "tokenbinder"
    recipe: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of TrainConfig that were given one by one; they go before preset and recipe."""
    start: Path | None = None
    """Earlier weights to begin with."""
    restart: bool = False
    plot: bool = False
    device: str = "auto"
    pretrained: str | None = None
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run of train wrote."""

    weights: Path
    log: Path
    plot: Path | None
    steps: int
    planned_steps: int
    stopped_early: bool
    best_step: int
    num_videos: int
    num_captions: int
    before: Validation | None
    """Validation videos found before training; None when none were kept."""
    after: Validation | None
    """The same with the weights that were written."""
    warnings: tuple[str, ...]


def train(job: TrainJob) -> TrainResult | None:
    """Run ``tbpipe train``. What is killed or interrupted goes on exactly where it was when run again.

    Of the processes that torchrun started only the first writes; the others get None.
    """
    if job.output.suffix != WEIGHTS_SUFFIX:
        raise UsageError(f"--output is {job.output}, expected a name that ends in {WEIGHTS_SUFFIX}")
    if not job.output.absolute().parent.is_dir():
        raise InputError(f"the folder {job.output.absolute().parent} does not exist; make it, or write elsewhere")
    if job.plot:
        _require_matplotlib()
    from stages.rerankers.token_binder import TokenBinderWeights
    from stages.training.config import PRESETS, read_recipe, with_options
    from stages.training.journal import Journal
    from stages.training.pairs import PairCorpus
    from stages.training.ranks import join_ranks
    from stages.training.trainer import Trainer

    config = PRESETS[job.preset]
    if job.recipe is not None:
        config = read_recipe(job.recipe, config)
    config = with_options(config, dict(job.options), "the command line")
    state, log = job.output.with_suffix(".state"), job.output.with_suffix(".jsonl")
    store = Store.open(job.store)
    start = None
    if job.start is not None:
        start = TokenBinderWeights.load(job.start)
        start.kind.require(store.settings, job.start)
    with stop_on_signals() as stop, store.snapshot() as snapshot, join_ranks(job.device) as (ranks, device):
        captions, warnings = _captions(snapshot, job)
        model = text_model(store, job.pretrained, device, "float32")
        corpus = PairCorpus(snapshot, captions)
        trainer = Trainer(store.settings, model, corpus, config, model.device, start, ranks)
        journal = Journal(log)
        if job.restart and ranks.is_first:
            state.unlink(missing_ok=True)
        ranks.wait()
        with progress_bar("train", trainer.num_steps, "steps", job.quiet or not ranks.is_first) as advance:
            report = trainer.run(journal, state, advance, stop)
        if not ranks.is_first:
            return None
        if report.interrupted:
            done = f"{report.steps} of {report.planned_steps} steps are kept in {state}"
            raise stop.error(f"stopped by a signal; {done}: run the same command to go on")
        trainer.weights().save(job.output)
    state.unlink(missing_ok=True)
    plot = None
    if job.plot:
        from stages.training.plot import draw

        plot = draw(journal.read(), job.output.with_suffix(".png"))
    return TrainResult(
        weights=job.output,
        log=log,
        plot=plot,
        steps=report.steps,
        planned_steps=report.planned_steps,
        stopped_early=report.stopped_early,
        best_step=report.best_step,
        num_videos=len(corpus),
        num_captions=len(captions),
        before=report.first,
        after=report.best,
        warnings=warnings,
    )


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """``("epochs=10", "head=positional")`` -> {"epochs": 10, "head": "positional"}. Raises UsageError."""
    found: dict[str, Any] = {}
    for setting in settings:
        name, sign, value = setting.partition("=")
        if not sign or not name:
            raise UsageError(f"--set {setting!r} is not NAME=VALUE, such as --set epochs=10")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def _captions(snapshot: Snapshot, job: TrainJob) -> tuple[list[CaptionedId], tuple[str, ...]]:
    """Captions of videos in the store, by id, and what is to be said about the others."""
    from index_store.records import SEARCHABLE
    from stages.training.pairs import CaptionedId

    captions = read_captions(job.captions, job.split)
    ids = {record.key: record.id for record in snapshot.videos(SEARCHABLE)}
    matched = match_captions(captions, ids)
    if not matched.found:
        raise InputError(
            f"none of the {len(captions)} captions in {job.captions} belongs to one of the {len(ids)} videos in "
            f"{job.store}; the captions name videos such as {captions[0].key!r}"
        )
    return [CaptionedId(caption.text, ids[key]) for caption, key in matched.found], matched.left_out()


def _require_matplotlib() -> None:
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise ComponentMissingError("--plot needs matplotlib: pip install 'tbpipe[plot]'")
