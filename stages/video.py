"""A video file -> the pictures to look at. The same content gives the same answer on every run, whatever its name."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index_store.settings import SamplingSettings
from stages.decoders import load_decoder
from stages.decoders.base import DeclinedError
from stages.decoders.pyav import DECODER as SALVAGER
from stages.decoders.pyav import OpenVideo, open_video, salvage
from stages.errors import DecodeError, printable
from stages.file_header import HEADER_BYTES, check_header, is_known_container, missing_bytes
from stages.sampling import choose_frames

DECODERS = ("decord", "pyav")
"""Tried in this order."""

LAST_DECODER = "pyav"

MAX_BATCH_BYTES = 2 << 30
"""The most that the pictures of one video may take."""


@dataclass(frozen=True, slots=True, eq=False)
class FrameBatch:
    """The chosen frames of one video."""

    frames: NDArray[np.uint8]
    """uint8 [n, H, W, 3], RGB, upright. From a GPU decoder, a CUDA tensor."""
    timestamps_seconds: NDArray[np.float64]
    """float64 [n], ascending, from the first frame of the video."""
    duration_seconds: float
    decoder: str
    """Name and version of what made the pixels, such as ``decord 0.6.0``."""
    note: str
    """Why an earlier decoder was not used, or what is damaged; empty when the first one worked."""
    is_partial: bool
    """True = the file is damaged, and not every frame that was chosen could be decoded."""

    def __post_init__(self) -> None:
        """Check the shapes."""
        if self.frames.ndim != 4 or self.frames.shape[3] != 3 or len(self.frames) != len(self.timestamps_seconds):
            raise ValueError(f"frames {self.frames.shape} do not fit {self.timestamps_seconds.shape} timestamps")

    def __repr__(self) -> str:
        return (
            f"FrameBatch({self.frames.dtype}{list(self.frames.shape)}, {self.duration_seconds:.2f} s, {self.decoder})"
        )


def decode(path: Path, sampling: SamplingSettings, decoders: Sequence[str] = DECODERS) -> FrameBatch:
    """The chosen frames of the video at ``path``. Raises DecodeError when there is not even one."""
    with open_regular(path) as descriptor:
        return decode_open_file(descriptor, path, sampling, decoders)


def decode_open_file(
    descriptor: int, path: Path, sampling: SamplingSettings, decoders: Sequence[str], notes: Sequence[str] = ()
) -> FrameBatch:
    """As ``decode``, for a regular file that is open already, so that it cannot be exchanged for another meanwhile.

    ``notes``: what is to be said of earlier attempts.
    """
    header = os.pread(descriptor, HEADER_BYTES, 0)
    check_header(header)
    num_missing = missing_bytes(descriptor, header)
    damage = [f"the file is cut off: {num_missing} bytes are missing at its end"] if num_missing else []
    try:
        with open_video(name_of_open_file(descriptor, path)) as video:
            return decode_video(video, sampling, decoders, [*notes, *damage], bool(damage))
    except MemoryError as error:
        raise DecodeError("out_of_memory", str(error)) from error
    except DecodeError as error:
        if error.reason_code == "not_a_video" and is_known_container(header):
            raise DecodeError("damaged", "; ".join([*damage, error.detail])) from error
        raise


def decode_video(
    video: OpenVideo, sampling: SamplingSettings, decoders: Sequence[str], notes: Sequence[str], is_damaged: bool
) -> FrameBatch:
    """Ask one decoder after the other for the chosen frames; when none can give all, keep what is left of the file.

    PyAV is always the last one asked, and the only one for a file that is known to be damaged (``is_damaged``): decord
    reads ahead in a thread of its own, and whether it gets to the damage before it is done differs from run to run.
    ``notes``: what is to be said already.
    """
    frames = choose_frames(video.table, sampling)
    size_bytes = len(frames) * video.width * video.height * 3
    if size_bytes > MAX_BATCH_BYTES:
        detail = (
            f"{len(frames)} frames of {video.width}x{video.height} take {size_bytes} bytes, more than {MAX_BATCH_BYTES}"
        )
        raise DecodeError("out_of_memory", detail)
    refusals = list(notes)
    for name in dict.fromkeys([*(() if is_damaged else decoders), LAST_DECODER]):
        try:
            decoder = load_decoder(name)
            pictures = decoder.fetch(video, frames)
        except ImportError:
            refusals.append(f"{name} is not installed")
        except DeclinedError as refusal:
            refusals.append(f"{name}: {refusal}")
        else:
            return batch_of(video, frames, pictures, decoder.version(), refusals, is_partial=is_damaged)
    try:
        frames, pictures = salvage(video, sampling)
    except DeclinedError as refusal:
        raise DecodeError("no_frame", "; ".join([*refusals, str(refusal)])) from refusal
    return batch_of(video, frames, pictures, SALVAGER.version(), refusals, is_partial=True)


def batch_of(
    video: OpenVideo,
    frames: NDArray[np.int64],
    pictures: NDArray[np.uint8],
    decoder: str,
    notes: list[str],
    is_partial: bool,
) -> FrameBatch:
    """The record of what was decoded."""
    times = video.table.starts_seconds[frames]
    return FrameBatch(pictures, times, video.table.duration_seconds, decoder, printable("; ".join(notes)), is_partial)


@contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """A descriptor of the regular file at ``path``, which never blocks. Raises DecodeError for everything else."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DecodeError("not_a_file", "not a regular file")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise DecodeError(code_of(error), error.strerror or str(error)) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DecodeError("not_a_file", "not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def code_of(error: OSError) -> str:
    """The reason code of a file that could not be opened or read."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "missing"
    return "not_a_file" if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR) else "unreadable"


def name_of_open_file(descriptor: int, path: Path) -> str:
    """A name that libraries can open, free of characters that mean something to them or that they cannot pass on."""
    return f"/proc/self/fd/{descriptor}" if sys.platform == "linux" else f"file:{path}"
