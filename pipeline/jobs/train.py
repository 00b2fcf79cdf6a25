"""``tbpipe train``: captions and the store's features -> weights of the focused view."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index_store.captions import match_captions, read_captions
from index_store.errors import ComponentMissingError, InputError, UsageError
from index_store.snapshot import Snapshot
from index_store.store import Store
from pipeline.jobs.answering import store_model
from pipeline.jobs.benchmark import match_split
from pipeline.jobs.extract import frame_source
from pipeline.progress import progress_bar
from pipeline.stop import stop_on_signals
from stages.datasets import find_dataset

if TYPE_CHECKING:
    from torch import Tensor

    from index_store.settings import StoreSettings
    from stages.models.clip import ClipModel
    from stages.rerankers.token_binder import TokenBinderWeights
    from stages.training.config import TrainConfig
    from stages.training.frames import VideoFiles
    from stages.training.journal import Journal
    from stages.training.objective import Setup
    from stages.training.pairs import CaptionedId, PairCorpus
    from stages.training.pairwise import HeadObjective
    from stages.training.ranks import Ranks
    from stages.training.token_binder import TokenBinderObjective
    from stages.training.trainer import Validation

WEIGHTS_SUFFIX = ".safetensors"
CLIP_SUFFIX = ".clip.safetensors"
"""Of the image-text model that --finetune writes beside the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """Everything that ``tbpipe train`` was told."""

    store: Path
    output: Path
    captions: Path | None = None
    dataset: str | None = None
    annotations: Path | None = None
    split: str = ""
    method: str | None = None
    """A Method of TrainConfig; None: what preset or recipe says."""
    preset: str | None = None
    """None: that of the method's paper."""
    recipe: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of TrainConfig that were given one by one; they go before preset and recipe."""
    start: Path | None = None
    """Earlier weights to begin with."""
    finetune: bool = False
    """The image tower learns too, on the frames of the videos' files."""
    restart: bool = False
    plot: bool = False
    device: str = "auto"
    pretrained: str | None = None
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run of train wrote."""

    weights: Path
    clip: Path | None
    """Weights of the image-text model that they belong to, where the image tower has learned."""
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
    next_command: str
    """What makes the store that the weights are for; empty where it is the store that they were trained on."""
    warnings: tuple[str, ...]


def train(job: TrainJob) -> TrainResult | None:
    """Run ``tbpipe train``. What is killed or interrupted goes on exactly where it was when run again.

    Of the processes that torchrun started only the first writes; the others get None.
    """
    _check(job)
    from stages.training.journal import Journal
    from stages.training.objective import Setup
    from stages.training.pairs import PairCorpus
    from stages.training.ranks import join_ranks
    from stages.training.trainer import Trainer

    config, store = _config(job), Store.open(job.store)
    state, journal = job.output.with_suffix(".state"), Journal(job.output.with_suffix(".jsonl"))
    with (
        stop_on_signals() as stop,
        store.snapshot() as snapshot,
        join_ranks(job.device) as (ranks, device),
        ExitStack() as opened,
    ):
        captions, warnings = _captions(snapshot, job)
        model = store_model(store, job.pretrained, device, "float32", "both" if job.finetune else "text")
        corpus = PairCorpus(snapshot, captions)
        files = _video_files(snapshot, corpus, model, ranks, opened) if job.finetune else None
        setup = Setup(corpus, config, model.device, ranks)
        objective = _objective(setup, job, store, model, files)
        trainer = Trainer(setup, objective)
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
        clip = _save(objective, trainer.chosen(), model, job)
    state.unlink(missing_ok=True)
    lost = objective.left_out()
    return TrainResult(
        weights=job.output,
        clip=clip,
        log=journal.path,
        plot=_plot(journal, job) if job.plot else None,
        steps=report.steps,
        planned_steps=report.planned_steps,
        stopped_early=report.stopped_early,
        best_step=report.best_step,
        num_videos=len(corpus),
        num_captions=len(captions),
        before=report.first,
        after=report.best,
        next_command="" if clip is None else _extract_command(store.settings, clip),
        warnings=(*warnings, lost) if lost else warnings,
    )


def _check(job: TrainJob) -> None:
    """Raise what is wrong with the texts and the output before any work is done."""
    given = [f"--{name}" for name in ("captions", "dataset", "annotations") if getattr(job, name) is not None]
    if given not in (["--captions"], ["--dataset", "--annotations"]):
        found = " and ".join(given) or "no captions"
        raise UsageError(f"found {found}; give --captions FILE, or --dataset NAME and --annotations DIR")
    if job.output.suffix != WEIGHTS_SUFFIX:
        raise UsageError(f"--output is {job.output}, expected a name that ends in {WEIGHTS_SUFFIX}")
    if not job.output.absolute().parent.is_dir():
        raise InputError(f"the folder {job.output.absolute().parent} does not exist; make it, or write elsewhere")
    if job.plot and importlib.util.find_spec("matplotlib") is None:
        raise ComponentMissingError("--plot needs matplotlib: pip install 'tbpipe[plot]'")


def _start(job: TrainJob, store: Store) -> TokenBinderWeights | None:
    """Earlier weights to begin with. Raises FingerprintError for those of other features."""
    from stages.rerankers.token_binder import TokenBinderWeights

    if job.start is None:
        return None
    start = TokenBinderWeights.load(job.start)
    start.require(store.settings, job.start)
    return start


def _plot(journal: Journal, job: TrainJob) -> Path:
    from stages.training.plot import draw

    return draw(journal.read(), job.output.with_suffix(".png"))


def _config(job: TrainJob) -> TrainConfig:
    """Preset, recipe and single settings, the last one goes before."""
    from stages.training.config import choose

    method = {} if job.method is None else {"method": job.method}
    config = choose(job.preset, job.recipe, {**job.options, **method})
    if job.finetune and config.method != "token-binder":
        raise UsageError(
            f"--finetune trains the image tower with token-binder, not with {config.method}; leave it out: the head "
            "and the text tower learn on the store's features"
        )
    if job.finetune and not config.image_learning_rate > 0:
        raise UsageError(f"image_learning_rate = {config.image_learning_rate} with --finetune; leave --finetune out")
    return config


def _objective(
    setup: Setup, job: TrainJob, store: Store, model: ClipModel, files: VideoFiles | None
) -> TokenBinderObjective | HeadObjective:
    """What the method trains."""
    from stages.training.pairwise import HeadObjective
    from stages.training.token_binder import TokenBinderObjective

    if setup.config.method != "token-binder":
        return HeadObjective(setup, store.settings, model, job.start)
    return TokenBinderObjective(setup, store.settings, model, _start(job, store), files)


def _video_files(
    snapshot: Snapshot, corpus: PairCorpus, model: ClipModel, ranks: Ranks, opened: ExitStack
) -> VideoFiles:
    """The files of the corpus, and decoders that run until ``opened`` is closed.

    Raises UsageError for a model whose new weights could not be loaded from a file.
    """
    from stages.training.frames import VideoFiles

    model.check_takes_files()
    num_workers = max(1, (os.cpu_count() or 1) // ranks.size)
    source = opened.enter_context(frame_source(snapshot.settings.sampling, [model.device], num_workers=num_workers))
    return VideoFiles(source, [record.path for record in snapshot.by_ids(corpus.ids.tolist())])


def _save(
    objective: TokenBinderObjective | HeadObjective, state: Mapping[str, Tensor], model: ClipModel, job: TrainJob
) -> Path | None:
    """Write the weights and, where the image tower has learned, the model that they belong to; returns its path."""
    from stages.models.weights import write_weights
    from stages.training.token_binder import TokenBinderObjective

    if not isinstance(objective, TokenBinderObjective) or objective.frames is None:
        objective.weights(state).save(job.output)
        return None
    weights, clip = objective.weights(state), job.output.with_suffix(CLIP_SUFFIX)
    write_weights(clip, objective.module.clip_weights(state))
    replace(weights, kind=replace(weights.kind, weights_sha256=model.digest_with(clip))).save(job.output)
    return clip


def _extract_command(settings: StoreSettings, clip: Path) -> str:
    """What makes a store that the weights fit."""
    sampling, tokens = settings.sampling, settings.tokens
    fps = "" if sampling.fps is None else f" --fps {sampling.fps:g}"
    return (
        f"tbpipe extract SOURCE --store NEW_STORE --model {settings.model.name} --pretrained {shlex.quote(str(clip))} "
        f"--sampling {sampling.mode} --frames {sampling.frames}{fps} --token-dtype {tokens.dtype} "
        f"--keep-tokens {tokens.keep}"
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

    ids = {record.key: record.id for record in snapshot.videos(SEARCHABLE)}
    if job.dataset is not None and job.annotations is not None:
        dataset = find_dataset(job.dataset)
        split = dataset.read(job.annotations, job.split or dataset.train)
        benchmark = match_split(split, job.store, ids)
        pairs = [CaptionedId(text, ids[key]) for video, key in benchmark.found for text in video.captions]
        return pairs, (*split.remarks, *benchmark.left_out())
    assert job.captions is not None
    captions = read_captions(job.captions, job.split)
    matched = match_captions(captions, ids)
    if not matched.found:
        raise InputError(
            f"none of the {len(captions)} captions in {job.captions} belongs to one of the {len(ids)} videos in "
            f"{job.store}; the captions name videos such as {captions[0].key!r}"
        )
    return [CaptionedId(caption.text, ids[key]) for caption, key in matched.found], matched.left_out()
