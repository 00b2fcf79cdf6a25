"""torchcodec on NVIDIA GPUs: frames are decoded by a GPU's video engine and stay in its memory.

Not a ``Decoder`` of the worker processes but a source of its own, like DecodePool: a CUDA tensor cannot leave its
process, so decoding runs in threads here. A file that the GPU cannot decode is decoded on the CPU in the same thread,
and its note says why. Only worker processes protect against files that hang or crash a library.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from index_store.settings import SamplingSettings
from stages.decode_pool import DecodeResult, DecodeTask
from stages.decode_worker import check_unchanged, hash_of
from stages.decoders.base import DeclinedError
from stages.decoders.pyav import OpenVideo, open_video
from stages.errors import DecodeError
from stages.file_header import HEADER_BYTES, check_header, missing_bytes
from stages.sampling import choose_frames
from stages.video import DECODERS, FrameBatch, batch_of, code_of, decode_open_file, name_of_open_file, open_regular

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_TIME_DIFFERENCE = 0.25
"""In frame gaps: a frame whose time differs by more is another frame than the one that was asked for."""


def missing_reason(device: str = "cuda") -> str:
    """Why frames cannot be decoded on ``device``; empty when they can."""
    if not device.startswith("cuda"):
        return f"{device} is no CUDA device"
    import torch

    return cannot_load() or ("" if torch.cuda.is_available() else "no CUDA device was found")


def cannot_load() -> str:
    """Why torchcodec or its FFmpeg cannot be loaded; empty when they can."""
    try:
        from torchcodec.decoders import VideoDecoder  # noqa: F401 (only tried)
    except (ImportError, OSError, RuntimeError) as error:
        return f"torchcodec cannot be loaded: {str(error).strip().splitlines()[0]}"
    return ""


class GpuDecodeThreads:
    """Decodes on GPUs, in order, a bounded number of files ahead. Use as a context manager; one map() at a time.

    File n is decoded on device n modulo their number. Every thread orders its work on streams of its own: where the
    model computes, it would wait for whole batches.
    """

    def __init__(
        self,
        sampling: SamplingSettings,
        devices: Sequence[str] = ("cuda:0",),
        num_threads: int = 4,
        lookahead_videos: int = 8,
        fallback: tuple[str, ...] = DECODERS,
    ) -> None:
        self._sampling = sampling
        self._devices = tuple(devices)
        self._fallback = fallback
        self._lookahead = max(num_threads, lookahead_videos)
        self._threads = ThreadPoolExecutor(num_threads, "tbpipe-gpu-decode")
        self._local = threading.local()

    def __enter__(self) -> GpuDecodeThreads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)

    def map(self, tasks: Iterable[DecodeTask]) -> Iterator[DecodeResult]:
        """Decode the tasks; results in the order of the tasks. Frames are CUDA tensors uint8 [n, H, W, 3]."""
        running: deque[Future[DecodeResult]] = deque()
        try:
            for number, task in enumerate(tasks):
                device = self._devices[number % len(self._devices)]
                running.append(self._threads.submit(self._decode, task, device))
                if len(running) >= self._lookahead:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()

    def _decode(self, task: DecodeTask, device: str) -> DecodeResult:
        result = DecodeResult(task, "", 0, 0, 0)
        try:
            with open_regular(task.path) as descriptor:
                before = os.fstat(descriptor)
                result.size_bytes, result.mtime_ns, result.inode = before.st_size, before.st_mtime_ns, before.st_ino
                content_hash = hash_of(descriptor)
                try:
                    if content_hash not in task.known_hashes:
                        result.frames = self._frames(descriptor, task.path, device)
                finally:
                    check_unchanged(descriptor, before)
                    result.content_hash = content_hash
        except DecodeError as error:
            result.frames, result.error = None, error
        except OSError as error:
            result.frames, result.error = None, DecodeError(code_of(error), error.strerror or str(error))
        return result

    def _frames(self, descriptor: int, path: Path, device: str) -> FrameBatch:
        """On the GPU, or else on the CPU."""
        header = os.pread(descriptor, HEADER_BYTES, 0)
        check_header(header)
        try:
            if missing_bytes(descriptor, header):
                raise DeclinedError("the file is cut off")
            with open_video(name_of_open_file(descriptor, path)) as video:
                frames = choose_frames(video.table, self._sampling)
                with self._own_stream(device):
                    pixels = fetch_on_gpu(video, frames, device)
                return batch_of(video, frames, pixels, version(), [], is_partial=False)
        except (DeclinedError, DecodeError) as refusal:
            return decode_open_file(descriptor, path, self._sampling, self._fallback, [f"torchcodec: {refusal}"])

    def _own_stream(self, device: str) -> AbstractContextManager[object]:
        """This thread's stream on ``device`` as the current one. torch has 32 a device, so they are kept."""
        if not device.startswith("cuda"):
            return nullcontext()
        import torch

        if not hasattr(self._local, "streams"):
            self._local.streams = {}
        streams: dict[str, Any] = self._local.streams
        if device not in streams:
            stream: Any = torch.cuda.Stream
            streams[device] = stream(device)
        chosen: AbstractContextManager[object] = torch.cuda.stream(streams[device])
        return chosen


def version() -> str:
    """Name and version of the library, which says for which CUDA it was built."""
    import torchcodec

    return f"torchcodec {torchcodec.__version__} (NVDEC)"


def fetch_on_gpu(video: OpenVideo, frames: NDArray[np.int64], device: str) -> NDArray[np.uint8]:
    """The chosen frames as a CUDA tensor uint8 [m, H, W, 3], upright. Raises DeclinedError when that is impossible."""
    import torch
    from torchcodec.decoders import VideoDecoder

    if video.num_hidden or video.ticks is None:
        raise DeclinedError("an edit list, or frames without times")
    try:
        decoder = VideoDecoder(
            video.path, stream_index=video.stream.index, dimension_order="NHWC", device=device, seek_mode="exact"
        )
        _check_engine(decoder)
        if len(decoder) != len(video.table):
            raise DeclinedError(f"it counts {len(decoder)} frames, the file has {len(video.table)}")
        batch = decoder.get_frames_at(frames.tolist())
        _check_engine(decoder)  # one that works through FFmpeg knows only now
        if batch.data.is_cuda:
            torch.cuda.current_stream(batch.data.device).synchronize()
    except (RuntimeError, ValueError) as error:
        raise DeclinedError(str(error).strip().splitlines()[0]) from error
    check_times(video, frames, batch.pts_seconds)
    return cast("NDArray[np.uint8]", batch.data)  # for everybody who reads it, a tensor behaves the same


def _check_engine(decoder: Any) -> None:
    """Raise DeclinedError where the frames come from the CPU after all: then our own decoders are to be used."""
    if decoder.cpu_fallback:
        raise DeclinedError(str(decoder.cpu_fallback))


def check_times(video: OpenVideo, frames: NDArray[np.int64], seconds: Tensor) -> None:
    """Raise DeclinedError unless the frames that came are the ones that were asked for, by their times."""
    assert video.ticks is not None
    starts = video.table.starts_seconds
    first = float(video.ticks[0] * (video.stream.time_base or 0))
    allowed = LARGEST_TIME_DIFFERENCE * float(np.diff(starts).min()) if len(starts) > 1 else 1.0
    if (np.abs(seconds.cpu().numpy() - first - starts[frames]) > allowed).any():
        raise DeclinedError("it returned frames of other times")
