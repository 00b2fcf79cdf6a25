"""Which frames of a video are looked at: pure functions on a table of timestamps.

A frame is on screen from its own time until the next frame's. Frame counts and durations in headers are not
used, because they lie; the table is made from the packets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index_store.settings import SamplingSettings

SLACK = 0.1
"""A frame that starts up to this part of a median frame gap after the wanted time is taken as shown at it: containers
round times (Matroska to 1 ms), and a re-encoded copy must not fall on the neighbouring frame because of that."""


@dataclass(frozen=True, slots=True, eq=False)
class FrameTable:
    """The frames of one video in the order in which they are shown."""

    starts_seconds: NDArray[np.float64]
    """float64 [n], n >= 1, ascending, first 0."""
    is_key: NDArray[np.bool_]
    """bool [n], True = can be decoded without any other frame."""
    duration_seconds: float
    """End of the last frame."""

    def __post_init__(self) -> None:
        """Check the order, which every search below relies on."""
        starts = self.starts_seconds
        if starts.ndim != 1 or not starts.size or self.is_key.shape != starts.shape:
            raise ValueError(
                f"a frame table needs one time and one key flag per frame, got {starts.shape} {self.is_key.shape}"
            )
        if starts[0] != 0 or not np.isfinite(starts).all() or (np.diff(starts) < 0).any():
            raise ValueError("the times of a frame table must start at 0 and ascend")

    def __len__(self) -> int:
        return int(self.starts_seconds.size)

    def __repr__(self) -> str:
        return f"FrameTable({len(self)} frames, {self.duration_seconds:.3f} s, {int(self.is_key.sum())} key)"

    def only(self, frames: NDArray[np.int64]) -> FrameTable:
        """The table in which all other frames are lost: what is left is on screen until the next that is left."""
        starts = self.starts_seconds[frames]
        return FrameTable(starts - starts[0], self.is_key[frames], self.duration_seconds - float(starts[0]))


def choose_frames(table: FrameTable, sampling: SamplingSettings) -> NDArray[np.int64]:
    """Indices of the frames to look at: int64 [m], 1 <= m <= sampling.frames, ascending, each frame at most once."""
    if sampling.mode == "keyframe":
        keys = np.flatnonzero(table.is_key)
        return thinned(keys if keys.size else np.zeros(1, np.int64), sampling.frames)
    if sampling.mode == "uniform" and len(table) <= sampling.frames:
        return np.arange(len(table), dtype=np.int64)
    return shown_at(table, target_seconds(table, sampling))


def target_seconds(table: FrameTable, sampling: SamplingSettings) -> NDArray[np.float64]:
    """The times that are looked at, float64 [m], m <= sampling.frames, ascending.

    ``uniform``: midpoints of equal segments. ``fps``: every 1/fps seconds from 0; where that gives more than
    sampling.frames, as ``uniform``, so that a long video is not judged by its beginning.
    """
    if sampling.mode == "fps" and sampling.fps:
        count = int(np.floor(table.duration_seconds * sampling.fps * (1 - 1e-9))) + 1
        if count <= sampling.frames:
            return np.arange(count, dtype=np.float64) / sampling.fps
    return midpoints(table.duration_seconds, sampling.frames)


def midpoints(duration_seconds: float, segments: int) -> NDArray[np.float64]:
    """Middle of each of ``segments`` equal parts of the duration, float64 [segments]."""
    return (np.arange(segments, dtype=np.float64) + 0.5) * (duration_seconds / segments)


def shown_at(table: FrameTable, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    """The frames on screen at the given times (last with start <= time), int64, ascending, without repeats."""
    starts = table.starts_seconds
    slack = SLACK * float(np.median(np.diff(starts))) if len(table) > 1 else 0.0
    return np.unique(np.maximum(np.searchsorted(starts, seconds + slack, side="right") - 1, 0)).astype(np.int64)


def thinned(indices: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most ``most`` of the indices, evenly spread: the middle one of each of ``most`` equal runs."""
    if indices.size <= most:
        return indices.astype(np.int64)
    return indices[midpoints(float(indices.size), most).astype(np.int64)].astype(np.int64)
