"""Videos -> features: decode, preprocess, encode, commit, all four at once.

    feeder thread    DecodePool.map: frames of one video after the other, in the order of the keys
    this thread      batches that mix the frames of different videos, and the videos that they complete
    lanes            preprocess and the image tower, a lane for each device (lanes.py)
    committer thread shards and the catalog

Every batch has the same shape (the last one is filled up with black frames), so a video's features do not depend on
what else was in its batch, nor on where an earlier run was cut off: a store that was killed and resumed equals an
undisturbed one. They do not depend on the number of devices either, if these are alike (frame_batches.py).
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from index_store.errors import StoreError
from index_store.records import VideoFeatures, VideoFile, VideoOutcome
from index_store.settings import StoreSettings
from stages.frame_batches import FrameBatches
from stages.lanes import Lanes
from stages.tokens import pack_features

if TYPE_CHECKING:
    from index_store.writer import StoreWriter
    from stages.decode_pool import DecodeResult, DecodeTask
    from stages.models.clip import ClipModel
    from stages.preprocess import Preprocessor


_NO_FRAMES: NDArray[np.float64] = np.zeros(0)


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """How to run; nothing here changes a number that is stored."""

    batch_frames: int = 32
    """Frames that go through the image tower at once."""
    commit_videos: int = 1024
    commit_bytes: int = 128 << 20
    commit_seconds: float = 60.0
    """A shard is closed when one of these is reached: the most that a kill can cost."""


@dataclass(slots=True)
class ExtractReport:
    """What a run did, in numbers of videos."""

    ok: int = 0
    partial: int = 0
    quarantined: int = 0
    shared: int = 0
    """Copies of content that is stored already: ok, without being computed again."""
    unchanged: int = 0
    """Skipped: nothing about the file has changed since it was committed (or quarantined)."""
    moved: int = 0
    """Known content under a new path: only the catalog was updated."""
    problems: list[str] = field(default_factory=list)
    """Folders that could not be read."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Number of quarantined videos for each reason code."""
    num_frames: int = 0
    """Frames that went through the model."""
    seconds_for_frames: float = 0.0
    """Wall time in which nothing was at hand to be given to a device: decoding is the bound."""
    seconds_for_tokens: float = 0.0
    """Wall time in which every device had enough to do: the model, or the way to it, is the bound."""
    interrupted: bool = False

    def count(self, outcome: VideoOutcome) -> None:
        """Add one finished video."""
        if outcome.status == "quarantined":
            self.quarantined += 1
            self.reasons[outcome.reason_code] = self.reasons.get(outcome.reason_code, 0) + 1
        elif outcome.same_content_as:
            self.shared += 1
        elif outcome.status == "partial":
            self.partial += 1
        else:
            self.ok += 1
        if outcome.features is not None:
            self.num_frames += int(outcome.features.frame_mask.sum())

    @property
    def finished(self) -> int:
        """Videos that reached a final state in this run."""
        return self.ok + self.partial + self.quarantined + self.shared


class FrameSource(Protocol):
    """Where decoded frames come from: worker processes, or decoder threads of a GPU."""

    def map(self, tasks: Iterable[DecodeTask]) -> Iterator[DecodeResult]:
        """Decode the tasks; results in the order of the tasks."""
        ...


def extract(
    files: Sequence[tuple[VideoFile, DecodeTask]],
    source: FrameSource,
    model: ClipModel,
    preprocessor: Preprocessor,
    settings: StoreSettings,
    writer: StoreWriter,
    options: ExtractOptions,
    on_video: Callable[[VideoOutcome], None] = lambda outcome: None,
    should_stop: Callable[[], bool] = lambda: False,
    devices: Sequence[torch.device] = (),
) -> ExtractReport:
    """Compute and commit the features of ``files``; returns when all is committed, also after a stop.

    ``devices``: where to compute, all of one kind, each with a copy of the model; empty = where the model is.
    ``on_video`` is told of each video once its state is known, in order. ``should_stop`` is asked between videos: what
    is finished by then is committed. A file that cannot be decoded becomes a quarantined record, never an error.
    Raises StoreError when a commit fails; nothing half-written is left.
    """
    report = ExtractReport()
    copies = _Copies()
    for_frames, for_tokens = _Stopwatch(), _Stopwatch()
    models = [model.on(device) for device in devices or [model.device]]
    with (
        _Committer(writer, options) as committer,
        _Feed(source, [task for _, task in files]) as feed,
        Lanes(models, preprocessor) as lanes,
    ):
        batches = FrameBatches(lanes, options.batch_frames, settings.num_frames if model.sees_videos else 0)
        assembly: deque[_Pending] = deque()

        def hand_over() -> None:
            while assembly and not assembly[0].needs_frames:
                outcome = copies.resolve(assembly.popleft().outcome(settings))
                report.count(outcome)
                committer.add(outcome)
                on_video(outcome)

        for (file, _), result in zip(files, for_frames.over(feed.results(should_stop)), strict=False):
            pending = _Pending.of(file, result, copies.is_copy(result))
            assembly.append(pending)
            if pending.needs_frames and result.frames is not None:
                with for_tokens:
                    batches.add(pending, result.frames.frames)
            result.release()
            hand_over()
        with for_tokens:
            batches.flush()
        hand_over()
        report.interrupted = should_stop() and report.finished < len(files)
    report.seconds_for_frames = round(for_frames.seconds, 3)
    report.seconds_for_tokens = round(for_tokens.seconds, 3)
    return report


class _Stopwatch(AbstractContextManager["_Stopwatch"]):
    """Wall time spent within ``with``, or in getting the next of ``over``."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def __enter__(self) -> _Stopwatch:
        self._began = time.monotonic()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.seconds += time.monotonic() - self._began

    def over(self, items: Iterator[DecodeResult]) -> Iterator[DecodeResult]:
        """The same items."""
        while True:
            with self:
                item = next(items, None)
            if item is None:
                return
            yield item


@dataclass(slots=True, eq=False)
class _Pending:
    """One video between decoder and commit: collects the tokens of its frames."""

    base: VideoOutcome
    """What is known without the tokens: everything about the file, and its final state if no frames come."""
    timestamps_seconds: NDArray[np.float64]
    rows: list[torch.Tensor] = field(default_factory=list)
    num_taken: int = 0

    @classmethod
    def of(cls, file: VideoFile, result: DecodeResult, is_copy: bool) -> _Pending:
        """The video as its decode result says; ``is_copy`` = its content was met before."""
        if result.error is not None:  # kept as the scan saw it, so that the next scan knows it again
            error = result.error
            base = VideoOutcome(
                file, "quarantined", result.content_hash, reason_code=error.reason_code, reason_detail=error.detail
            )
            return cls(base, _NO_FRAMES)
        file = replace(file, size_bytes=result.size_bytes, mtime_ns=result.mtime_ns, inode=result.inode)
        frames = result.frames
        if frames is None or is_copy:
            return cls(VideoOutcome(file, "ok", result.content_hash, same_content_as=result.content_hash), _NO_FRAMES)
        base = VideoOutcome(
            file,
            "partial" if frames.is_partial else "ok",
            result.content_hash,
            frames.duration_seconds,
            frames.decoder,
            frames.note,
            reason_code="damaged" if frames.is_partial else "",
            reason_detail=frames.note if frames.is_partial else "",
        )
        return cls(base, frames.timestamps_seconds)

    @property
    def needs_frames(self) -> bool:
        return self.num_taken < len(self.timestamps_seconds)

    def take(self, rows: torch.Tensor) -> None:
        """Add the tokens [n, P, D] of the next n frames."""
        self.rows.append(rows)
        self.num_taken += len(rows)

    def outcome(self, settings: StoreSettings) -> VideoOutcome:
        if not len(self.timestamps_seconds):
            return self.base
        features = pack_features(torch.cat(self.rows), self.timestamps_seconds, settings)
        if features is not None:
            return replace(self.base, features=features)
        detail = f"the model gave numbers that {settings.tokens.dtype} cannot hold, or undefined ones"
        return VideoOutcome(
            self.base.file, "quarantined", self.base.content_hash, reason_code="not_finite", reason_detail=detail
        )


class _Copies:
    """Contents met in this run. A copy shares the features of the first file, or its fate when that one got none."""

    def __init__(self) -> None:
        self._met: set[str] = set()
        self._without_features: dict[str, VideoOutcome] = {}

    def is_copy(self, result: DecodeResult) -> bool:
        """Whether a file with frames has the content of an earlier one; from now on it is known."""
        if result.frames is None:
            return False
        known = result.content_hash in self._met
        self._met.add(result.content_hash)
        return known

    def resolve(self, outcome: VideoOutcome) -> VideoOutcome:
        """The outcome that can be committed, given what became of the first file with this content."""
        if outcome.status == "quarantined" and outcome.content_hash in self._met:
            self._without_features[outcome.content_hash] = outcome
        first = self._without_features.get(outcome.same_content_as)
        return outcome if first is None else replace(first, file=outcome.file)


class _Feed(AbstractContextManager["_Feed"]):
    """Runs the frame source in a thread: decoding goes on while the model computes, and a stop is seen at once."""

    _POLL_SECONDS = 0.1

    def __init__(self, source: FrameSource, tasks: Sequence[DecodeTask]) -> None:
        self._source = source
        self._tasks = tasks
        self._queue: queue.Queue[DecodeResult | BaseException | None] = queue.Queue(maxsize=2)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tbpipe-feed", daemon=True)

    def __enter__(self) -> _Feed:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop handing out tasks; results that nobody took give their memory back."""
        self._closed.set()

    def results(self, should_stop: Callable[[], bool]) -> Iterator[DecodeResult]:
        """Results in order, until the tasks end or a stop is asked for."""
        while not should_stop():
            try:
                item = self._queue.get(timeout=self._POLL_SECONDS)
            except queue.Empty:
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def _open_tasks(self) -> Iterator[DecodeTask]:
        for task in self._tasks:
            if self._closed.is_set():
                return
            yield task

    def _run(self) -> None:
        try:
            for result in self._source.map(self._open_tasks()):
                if not self._put(result):
                    result.release()
                    return
            self._put(None)
        except BaseException as error:  # raised again in the thread that reads results()
            self._put(error)

    def _put(self, item: DecodeResult | BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=self._POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False


class _Committer(AbstractContextManager["_Committer"]):
    """Gathers outcomes and commits them in a thread of its own, one shard at a time, in order."""

    def __init__(self, writer: StoreWriter, options: ExtractOptions) -> None:
        self._writer = writer
        self._options = options
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tbpipe-commit")
        self._running: Future[None] | None = None
        self._open: list[VideoOutcome] = []
        self._open_bytes = 0
        self._opened_at = 0.0

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        """Commit what is finished, whatever ended the run but a failed commit, and wait for it."""
        try:
            if self._open and not (kind is not None and issubclass(kind, StoreError)):
                self._seal()
        finally:
            self._thread.shutdown()
        if kind is None:
            self._wait()

    def add(self, outcome: VideoOutcome) -> None:
        """Take one outcome; closes the shard when it is full. Raises what an earlier commit raised."""
        if not self._open:
            self._opened_at = time.monotonic()
        self._open.append(outcome)
        self._open_bytes += _size_bytes(outcome.features)
        options = self._options
        if (
            len(self._open) >= options.commit_videos
            or self._open_bytes >= options.commit_bytes
            or time.monotonic() - self._opened_at >= options.commit_seconds
        ):
            self._seal()

    def _seal(self) -> None:
        self._wait()
        outcomes, self._open, self._open_bytes = self._open, [], 0
        self._running = self._thread.submit(self._writer.commit, outcomes)

    def _wait(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()


def _size_bytes(features: VideoFeatures | None) -> int:
    return 0 if features is None else features.tokens.nbytes + features.frame_embeddings.nbytes
