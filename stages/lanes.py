"""The devices that extract computes on, a lane each: frames become pixels there, and batches of pixels tokens.

Several lanes work side by side, each in a thread of its own and in the order in which it is given work; one CPU works
in the thread of the caller. A lane of a GPU only gives orders and never waits for them. Its three streams run at once:

    inputs    frames from pinned memory to the GPU, resized and cropped
    compute   the image tower
    outputs   tokens from the GPU to pinned memory

so the frames of the next batch arrive, and the tokens of the one before leave, while the tower computes. Whoever reads
tokens waits for them alone (``Tokens.wait``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from stages.models.clip import ClipModel
    from stages.preprocess import Preprocessor

UPLOAD_BYTES = 32 << 20
"""Frames that go to a GPU at once: on it they grow to five times the bytes, and pinned memory is never given back."""

Result = TypeVar("Result")
cuda: Any = torch.cuda
"""Its streams and events come without types."""


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """Frames as the image tower takes them."""

    levels: Tensor
    """uint8 [n, 3, S, S], on the device that made them."""
    ready: Any = None
    """On a GPU the event after which they are there."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Frames of one video in a batch."""

    pixels: Future[Pixels]
    start: int
    stop: int
    """Of the video's pixels, these."""
    place: int
    """Where the first of them stands in the batch."""

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What the tower is given at once."""

    parts: Sequence[Part]
    num_places: int
    """Frames in the batch; places that no part fills are black."""
    video_places: int = 0
    """For a tower that sees videos: so many places are one video, its frames in the first of them. Else 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """What the tower gave for a batch."""

    rows: Tensor
    """float32 [num_places, P, D] on the CPU; to be read after ``wait``."""
    arrived: Any = None
    """From a GPU: the event after which they are there."""

    def has_arrived(self) -> bool:
        """Whether ``wait`` returns at once."""
        return self.arrived is None or bool(self.arrived.query())

    def wait(self) -> Tensor:
        """The rows, once they are here."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.rows


class Lane:
    """A device with a model on it. This one is a CPU."""

    def __init__(self, model: ClipModel, preprocessor: Preprocessor, has_thread: bool) -> None:
        self.device = model.device
        self._model = model
        self._preprocessor = preprocessor
        self._thread = ThreadPoolExecutor(1, "tbpipe-lane") if has_thread else None
        self._num_at_once = 0

    def prepare(self, frames: Any) -> Future[Pixels]:
        """Pixels of frames uint8 [n, H, W, 3], an array or a tensor; they are held until then, and no longer."""
        return self._submit(lambda: self._prepared(torch.as_tensor(frames)))

    def encode(self, batch: Batch) -> Future[Tokens]:
        """Tokens of a batch; its parts may come from any lane, if they were asked for before."""
        return self._submit(lambda: self._encoded(batch))

    def cancel(self) -> None:
        """Begin nothing more."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Wait for what has begun."""
        if self._thread is not None:
            self._thread.shutdown()

    def _submit(self, work: Callable[[], Result]) -> Future[Result]:
        if self._thread is not None:
            return self._thread.submit(work)
        done: Future[Result] = Future()
        done.set_result(work())
        return done

    def _prepared(self, frames: Tensor) -> Pixels:
        return Pixels(self._preprocessor(frames))

    def _encoded(self, batch: Batch) -> Tokens:
        return Tokens(self._tokens(*self._filled(batch)))

    def _filled(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Pixels [n, 3, S, S] of the whole batch; for a tower that sees videos [V, F, 3, S, S] and which are frames."""
        first = batch.parts[0].pixels.result().levels
        levels = torch.zeros((batch.num_places, *first.shape[1:]), dtype=first.dtype, device=self.device)
        is_frame = torch.zeros(batch.num_places, dtype=torch.bool, device=self.device) if batch.video_places else None
        for part in batch.parts:
            places = slice(part.place, part.place + len(part))
            levels[places] = self._here(part)
            if is_frame is not None:
                is_frame[places] = True
        if is_frame is None:
            return levels, None
        by_video = (-1, batch.video_places)
        return levels.view(*by_video, *levels.shape[1:]), is_frame.view(by_video)

    def _here(self, part: Part) -> Tensor:
        """The pixels of the part, on this device."""
        return part.pixels.result().levels[part.start : part.stop]

    def _tokens(self, pixels: Tensor, is_frame: Tensor | None) -> Tensor:
        """The tower's float32 [n, P, D]. A batch that is too big for the device is halved, and all that follow."""
        self._num_at_once = min(self._num_at_once or len(pixels), len(pixels))
        while True:
            try:
                pieces = list(self._pieces(pixels, is_frame))
                return torch.cat(pieces) if len(pieces) > 1 else pieces[0]
            except torch.OutOfMemoryError:
                if self._num_at_once == 1:
                    raise
                self._num_at_once //= 2
            self._free_memory()  # the pieces that were made are gone with the error

    def _pieces(self, pixels: Tensor, is_frame: Tensor | None) -> Iterator[Tensor]:
        """Tokens of one part of the batch after the other, all of the same shape within the tower."""
        size = self._num_at_once
        for start in range(0, len(pixels), size):
            piece = _fill_up(pixels[start : start + size], size)
            number = min(size, len(pixels) - start)
            if is_frame is None:
                yield self._model.encode_frames(piece)[:number]
            else:
                tokens = self._model.encode_videos(piece, _fill_up(is_frame[start : start + size], size))
                yield tokens[:number].flatten(0, 1)

    def _free_memory(self) -> None:
        """Give back what is only kept for reuse."""


class CudaLane(Lane):
    """A GPU: orders are given on three streams, and events say what has been done."""

    def __init__(self, model: ClipModel, preprocessor: Preprocessor) -> None:
        super().__init__(model, preprocessor, has_thread=True)
        self._inputs, self._compute, self._outputs = (cuda.Stream(self.device) for _ in range(3))
        cuda.synchronize(self.device)  # the weights came on another stream

    def _prepared(self, frames: Tensor) -> Pixels:
        with cuda.stream(self._inputs):
            at_once = max(1, UPLOAD_BYTES // max(1, frames[0].nbytes))
            pieces = [self._preprocessor(uploaded(piece, self.device)) for piece in torch.split(frames, at_once)]
            return Pixels(torch.cat(pieces), self._inputs.record_event())

    def _encoded(self, batch: Batch) -> Tokens:
        with cuda.stream(self._compute):
            tokens = self._tokens(*self._filled(batch))
        self._outputs.wait_stream(self._compute)
        with cuda.stream(self._outputs):
            rows = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            rows.copy_(tokens, non_blocking=True)
            tokens.record_stream(self._outputs)
            arrived = cuda.Event(blocking=True)  # who waits for it sleeps, and leaves the core to the decoders
            arrived.record(self._outputs)
        return Tokens(rows, arrived)

    def _here(self, part: Part) -> Tensor:
        pixels = part.pixels.result()
        assert pixels.ready is not None
        # Between two GPUs torch copies on the current stream of the one that gives. That is its default stream, where
        # nothing else runs: on its lane's own streams the copy would stand behind whole batches.
        stream = cuda.current_stream(pixels.levels.device)
        stream.wait_event(pixels.ready)
        pixels.levels.record_stream(stream)
        return pixels.levels[part.start : part.stop].to(self.device, non_blocking=True)

    def _free_memory(self) -> None:
        cuda.synchronize(self.device)
        with cuda.device(self.device):
            cuda.empty_cache()


def uploaded(frames: Tensor, device: torch.device) -> Tensor:
    """Frames of a decoder on ``device``, for the stream that is current there.

    From the CPU they go through pinned memory, so that nobody waits: torch keeps it until the copy is done, and then
    for the next one. Those that a decoder made on the GPU were made on another stream, which is done with them: the
    allocator is told that this one reads them.
    """
    if device.type != "cuda":
        return frames.to(device)
    if not frames.is_cuda:
        return frames.pin_memory().to(device, non_blocking=True)
    frames.record_stream(cuda.current_stream(frames.device))
    return frames.to(device, non_blocking=True)


class Lanes(AbstractContextManager["Lanes"]):
    """The lanes of a run; batch n goes to lane n modulo their number."""

    def __init__(self, models: Sequence[ClipModel], preprocessor: Preprocessor) -> None:
        has_threads = len(models) > 1
        self._lanes = [
            CudaLane(model, preprocessor) if model.device.type == "cuda" else Lane(model, preprocessor, has_threads)
            for model in models
        ]

    def __len__(self) -> int:
        return len(self._lanes)

    def __getitem__(self, batch_number: int) -> Lane:
        return self._lanes[batch_number % len(self._lanes)]

    def holding(self, frames: Any) -> Lane | None:
        """The lane of the GPU on which the frames are; None for those in the memory of the CPU."""
        device = getattr(frames, "device", None)
        return next((lane for lane in self._lanes if lane.device == device and lane.device.type == "cuda"), None)

    def __exit__(self, *exc_info: object) -> None:
        """Leave out what has not begun: after an error nobody wants it, and otherwise there is nothing."""
        for lane in self._lanes:
            lane.cancel()
        with contextlib.ExitStack() as closing:
            for lane in self._lanes:
                closing.callback(lane.close)


def _fill_up(rows: Tensor, size: int) -> Tensor:
    """The same rows, and as many of zeros as are missing to ``size``."""
    missing = size - len(rows)
    return torch.cat([rows, rows.new_zeros((missing, *rows.shape[1:]))]) if missing else rows
