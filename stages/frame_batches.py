"""Frames of one video after the other -> batches of one fixed shape -> tokens, handed back in the same order.

How batches are composed depends on the videos alone. Batch n goes to device n modulo the number of devices, and tokens
are handed back batch by batch, whoever was done first: so any number of devices of one kind gives the same bytes.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from stages.lanes import Batch, Lanes, Part, Pixels, Tokens

BATCHES_PER_LANE = 2
"""One that the device computes and one that waits for it, so that it never waits itself."""
VIDEOS_PER_LANE = 3
"""Whose whole frames may wait to be resized."""


class Video(Protocol):
    """Who waits for tokens."""

    def take(self, rows: Tensor) -> None:
        """The tokens float32 [n, P, D] of its next n frames."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Running:
    """A batch on a lane, and to whom its tokens go."""

    parts: list[tuple[Video, Part]]
    tokens: Future[Tokens]

    def is_done(self) -> bool:
        return self.tokens.done() and self.tokens.result().has_arrived()

    def hand_back(self) -> None:
        rows = self.tokens.result().wait()
        for video, part in self.parts:
            video.take(rows[part.place : part.place + len(part)])


class FrameBatches:
    """Gathers frames, keeps every lane busy, and tells each video its tokens."""

    def __init__(self, lanes: Lanes, batch_frames: int, video_frames: int = 0) -> None:
        """``video_frames``: F, where the tower sees whole videos and a batch is some of these; 0 = single frames."""
        self._lanes = lanes
        self._video_frames = video_frames
        self._num_places = max(1, batch_frames // video_frames) * video_frames if video_frames else batch_frames
        self._number = 0
        self._parts: list[tuple[Video, Part]] = []
        self._num_taken = 0
        self._preparing: deque[Future[Pixels]] = deque()
        self._running: deque[_Running] = deque()

    def add(self, video: Video, frames: Any) -> None:
        """Take the frames uint8 [n, H, W, 3] of the next video, an array or a tensor.

        ``video.take`` is called in here and in ``flush``, for this video and for earlier ones. Raises what a device
        raised.
        """
        lane = self._lanes.holding(frames) or self._lanes[self._number]
        pixels = lane.prepare(frames)
        start, number = 0, len(frames)
        del frames
        while start < number:
            stop = min(number, start + self._num_places - self._num_taken)
            self._parts.append((video, Part(pixels, start, stop, self._num_taken)))
            self._num_taken += self._video_frames or stop - start
            start = stop
            if self._num_taken == self._num_places:
                self._send()
        self._preparing.append(pixels)
        while len(self._preparing) > VIDEOS_PER_LANE * len(self._lanes):
            self._preparing.popleft().result()
        self._hand_back(BATCHES_PER_LANE * len(self._lanes))

    def flush(self) -> None:
        """Encode what is left, filled up to the fixed shape, and hand back everything."""
        if self._parts:
            self._send()
        self._hand_back(0)

    def _send(self) -> None:
        batch = Batch([part for _, part in self._parts], self._num_places, self._video_frames)
        self._running.append(_Running(self._parts, self._lanes[self._number].encode(batch)))
        self._number, self._parts, self._num_taken = self._number + 1, [], 0
        self._hand_back(BATCHES_PER_LANE * len(self._lanes))

    def _hand_back(self, num_running: int) -> None:
        """Hand back what is done, and wait until no more than so many batches are running."""
        while self._running and (len(self._running) > num_running or self._running[0].is_done()):
            self._running.popleft().hand_back()
