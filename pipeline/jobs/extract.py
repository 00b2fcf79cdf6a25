"""``tbpipe extract``: scan, plan, load the model, run the stage; or estimate what that would cost."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from index_store.errors import ComponentMissingError, InputError, InterruptedRunError
from index_store.layout import Layout
from index_store.records import VideoFile, VideoOutcome
from index_store.settings import SamplingSettings, StoreSettings, TokenSettings, has_store_section
from index_store.store import Store
from index_store.writer import StoreWriter
from pipeline.plan import ExtractPlan, plan_extract
from pipeline.progress import progress_bar
from pipeline.stop import stop_on_signals
from stages.keys import in_part
from stages.scan import ScanResult, scan

if TYPE_CHECKING:
    import torch

    from stages.decode_pool import DecodeTask
    from stages.extract import ExtractReport, FrameSource
    from stages.models.clip import ClipModel

    ExtractTask = tuple[VideoFile, DecodeTask]

_LOOKAHEAD_BYTES = 512 << 20
"""Decoded frames that may wait for the model."""
_GPU_DECODE_THREADS = 4
"""For each GPU. A file keeps one of its video engines busy (an H200 has seven), and its frames fill GPU memory."""
_NUM_SAMPLES = 3
"""Videos that an estimate of time decodes."""
DEFAULT_MODEL = "ViT-B-32"
DEFAULT_PRETRAINED = "openai"
_QUICK_GELU = "-quickgelu"
"""What a store adds to the model's name when the weights ask for that activation, as OpenAI's do."""
_DEFAULT_BATCH_FRAMES = {"cpu": 32, "cuda": 256}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractJob:
    """Everything that ``tbpipe extract`` was told; None means: as the store has it, or the default for a new store."""

    sources: tuple[Path, ...]
    store: Path
    model: str | None = None
    pretrained: str | None = None
    sampling: Literal["uniform", "fps", "keyframe"] | None = None
    frames: int | None = None
    fps: float | None = None
    token_dtype: Literal["float16", "int8"] | None = None
    keep_tokens: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    decoder: str = "auto"
    workers: int | None = None
    batch_frames: int | None = None
    timeout: float = 60.0
    decode_memory: int = 2 << 30
    commit_bytes: int = 128 << 20
    part: tuple[int, int] | None = None
    limit: int | None = None
    dry_run: bool = False
    lock_timeout: float = 0.0
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class ExtractResult:
    """What a run of extract did, for printing."""

    report: ExtractReport
    num_files: int
    num_left: int
    """Videos that the run was asked for and did not reach: cut off by --limit or by a signal."""
    store: Path
    interrupted_by: InterruptedRunError | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What extract would do."""

    num_files: int
    num_new: int
    num_changed: int
    num_to_do: int
    """New and changed ones, as far as --limit lets."""
    num_unchanged: int
    bytes_per_video: int
    total_bytes: int
    free_bytes: int
    seconds: float
    """Wall time on this machine, from a few videos decoded and one batch encoded; 0 when there is nothing to do."""
    source_bytes: int


def extract(job: ExtractJob) -> ExtractResult:
    """Run ``tbpipe extract``: everything that is finished is committed, however the run ends."""
    found = _scan(job)
    with stop_on_signals() as stop:
        model, settings = model_and_settings(job)
        store = Store.open(job.store) if is_store(job.store) else Store.create(job.store, settings)
        with store.writer(job.lock_timeout) as writer:
            with store.snapshot() as snapshot:
                plan = plan_extract(snapshot, found.files)
            if plan.moved:
                writer.touch(plan.moved)
            report = run_extract(job, plan.tasks[: job.limit], model, settings, writer, stop)
    report.unchanged, report.moved = plan.num_unchanged, len(plan.moved)
    report.problems = [f"{problem.path}: {problem.reason}" for problem in found.problems]
    num_left = len(plan.tasks) - report.finished
    done = f"{report.finished} videos are committed and {num_left} left"
    message = f"stopped by a signal; {done}: run the same command to go on"
    return ExtractResult(
        report, len(found.files), num_left, job.store, stop.error(message) if report.interrupted else None
    )


def estimate(job: ExtractJob) -> Estimate:
    """Run ``tbpipe extract --dry-run``: what would be done, its bytes and its time; writes nothing."""
    found = _scan(job)
    model, settings = model_and_settings(job)
    plan = ExtractPlan()
    if is_store(job.store):
        with Store.open(job.store).snapshot() as snapshot:
            plan = plan_extract(snapshot, found.files)
    else:
        from stages.decode_pool import DecodeTask

        plan.tasks = [(file, DecodeTask(file.path, frozenset())) for file in found.files]
    tasks = plan.tasks[: job.limit]
    return Estimate(
        num_files=len(found.files),
        num_new=len(plan.tasks) - plan.num_changed,
        num_changed=plan.num_changed,
        num_to_do=len(tasks),
        num_unchanged=plan.num_unchanged + len(plan.moved),
        bytes_per_video=settings.bytes_per_video,
        total_bytes=settings.bytes_per_video * len(tasks),
        free_bytes=shutil.disk_usage(_existing_parent(job.store)).free,
        seconds=_estimate_seconds(job, tasks, model, settings),
        source_bytes=sum(file.size_bytes for file, _ in tasks),
    )


def is_store(directory: Path) -> bool:
    """Whether there is a store, or only what a store can be made in."""
    return has_store_section(Layout(directory).settings_path)


def _scan(job: ExtractJob) -> ScanResult:
    """The files that the job is about. Raises InputError when there is none."""
    found = scan(job.sources)
    if job.part is not None:
        found.files = [file for file in found.files if in_part(file.key, *job.part)]
    if not found.files and job.part is None:
        sources = ", ".join(str(source) for source in job.sources)
        raise InputError(
            f"no video in {sources} ({found.num_ignored} other files); give folders with videos, videos, or manifests"
        )
    return found


def model_and_settings(job: ExtractJob) -> tuple[ClipModel, StoreSettings]:
    """The model on its device, and the settings that the store has or will have.

    Raises FingerprintError, naming the differences, when the job asks for other settings than the store was made with.
    """
    from stages.models import load_model

    pinned = Store.open(job.store).settings if is_store(job.store) else None
    name = job.model or (pinned.model.name if pinned else DEFAULT_MODEL)
    if pinned is not None and job.pretrained is None:
        same = name.replace(_QUICK_GELU, "") == pinned.model.name.replace(_QUICK_GELU, "")
        pretrained = pinned.model.pretrained if same else ""
    else:
        pretrained = job.pretrained or ("" if job.model else DEFAULT_PRETRAINED)
    dtype = pinned.model.compute_dtype if pinned is not None and job.dtype == "auto" else job.dtype
    model = load_model(name, pretrained, job.device, dtype, towers="image")
    settings = StoreSettings(model.settings(), _sampling(job, pinned), _tokens(job, pinned))
    model.check_can_be_found_again()
    if pinned is not None:
        pinned.require_same(settings, job.store)
    return model, settings


def _sampling(job: ExtractJob, pinned: StoreSettings | None) -> SamplingSettings:
    known = pinned.sampling if pinned else SamplingSettings("uniform", 12)
    mode = job.sampling or known.mode
    fps = job.fps if job.fps is not None else known.fps
    if mode == "fps":
        return SamplingSettings(mode, job.frames or known.frames, fps or 1.0)
    return SamplingSettings(mode, job.frames or known.frames, job.fps)


def _tokens(job: ExtractJob, pinned: StoreSettings | None) -> TokenSettings:
    """As asked; a store that does not say which patches it keeps goes on without."""
    known = pinned.tokens if pinned else TokenSettings("float16", "all")
    asked = TokenSettings.new(job.token_dtype or known.dtype, job.keep_tokens or known.keep)
    return replace(asked, places=known.places) if asked.keeps_some and known.keeps_some else asked


def run_extract(
    job: ExtractJob,
    tasks: Sequence[ExtractTask],
    model: ClipModel,
    settings: StoreSettings,
    writer: StoreWriter,
    should_stop: Callable[[], bool],
    on_video: Callable[[VideoOutcome], None] = lambda outcome: None,
) -> ExtractReport:
    """Extract these videos with a progress bar; what is finished when ``should_stop`` says so is committed."""
    from stages.extract import ExtractOptions, extract
    from stages.models.clip import choose_devices
    from stages.preprocess import Preprocessor

    devices = choose_devices(job.device)
    options = ExtractOptions(
        job.batch_frames or _DEFAULT_BATCH_FRAMES[model.device.type], commit_bytes=job.commit_bytes
    )
    with (
        _frame_source(job, settings.sampling) as source,
        progress_bar("extract", len(tasks), "videos", job.quiet) as advance,
    ):

        def advance_and_tell(outcome: VideoOutcome) -> None:
            advance(1)
            on_video(outcome)

        return extract(
            tasks,
            source,
            model,
            Preprocessor(settings.model),
            settings,
            writer,
            options,
            advance_and_tell,
            should_stop,
            devices,
        )


def _frame_source(job: ExtractJob, sampling: SamplingSettings) -> AbstractContextManager[FrameSource]:
    from stages.models.clip import choose_devices

    return frame_source(
        sampling,
        choose_devices(job.device),
        job.decoder,
        num_workers=job.workers or os.cpu_count() or 1,
        timeout_seconds=job.timeout,
        memory_bytes=job.decode_memory,
    )


def frame_source(
    sampling: SamplingSettings,
    devices: Sequence[torch.device],
    decoder: str = "auto",
    num_workers: int = 1,
    timeout_seconds: float = 60.0,
    memory_bytes: int = 2 << 30,
) -> AbstractContextManager[FrameSource]:
    """Worker processes, or decoder threads of the GPUs where they are asked for or work by themselves.

    Raises ComponentMissingError when ``--decoder torchcodec`` cannot work here.
    """
    from stages.decode_pool import DecodePool
    from stages.decoders.torchcodec import GpuDecodeThreads, missing_reason
    from stages.video import DECODERS

    if decoder == "torchcodec" or (decoder == "auto" and devices[0].type == "cuda"):
        missing = missing_reason(str(devices[0]))
        if not missing:
            num_threads = min(num_workers, _GPU_DECODE_THREADS * len(devices))
            return GpuDecodeThreads(sampling, [str(device) for device in devices], num_threads)
        if decoder == "torchcodec":
            raise ComponentMissingError(f"frames cannot be decoded on the GPU ({missing}); use --decoder auto")
    return DecodePool(
        sampling,
        num_workers=num_workers,
        timeout_seconds=timeout_seconds,
        memory_bytes=memory_bytes,
        lookahead_bytes=_LOOKAHEAD_BYTES,
        decoders=DECODERS if decoder == "auto" else (decoder,),
    )


def _estimate_seconds(
    job: ExtractJob, tasks: Sequence[ExtractTask], model: ClipModel, settings: StoreSettings
) -> float:
    """Wall time for the tasks: a few of them are decoded by one worker, and one batch is encoded, twice."""
    from stages.models.clip import choose_devices

    if not tasks:
        return 0.0
    samples = [
        tasks[place * (len(tasks) - 1) // (_NUM_SAMPLES - 1)][1] for place in range(min(_NUM_SAMPLES, len(tasks)))
    ]
    with _frame_source(replace(job, workers=1), settings.sampling) as source:
        before = time.monotonic()
        num_frames = []
        for result in source.map(samples):
            num_frames.append(0 if result.frames is None else len(result.frames.timestamps_seconds))
            result.release()
        decode_seconds = (time.monotonic() - before) / len(samples)
    batch = job.batch_frames or _DEFAULT_BATCH_FRAMES[model.device.type]
    if model.sees_videos:
        batch = settings.num_frames
    _encode_black_frames(model, batch)
    before = time.monotonic()
    _encode_black_frames(model, batch)
    model_seconds = (time.monotonic() - before) / batch * sum(num_frames) / len(num_frames)
    if model.device.type == "cuda":
        model_seconds /= len(choose_devices(job.device))
    cores = os.cpu_count() or 1
    decoders = job.workers or cores
    if model.device.type == "cpu":  # decoders and model share the cores
        return len(tasks) * (decode_seconds / cores + model_seconds)
    return len(tasks) * max(decode_seconds / decoders, model_seconds)


def _encode_black_frames(model: ClipModel, number: int) -> None:
    """Run the tower on so many frames; on one video of so many where it takes whole ones."""
    import torch

    size = model.architecture.image_size
    pixels = torch.zeros((number, 3, size, size), dtype=torch.uint8)
    if model.sees_videos:
        tokens = model.encode_videos(pixels[None], torch.ones(1, number, dtype=torch.bool))
    else:
        tokens = model.encode_frames(pixels)
    tokens.cpu()


def _existing_parent(path: Path) -> Path:
    """The directory itself or the nearest one above that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
