"""How much is worked on, in minutes or in less than one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stages.synthetic.render import VideoFormat


@dataclass(frozen=True, slots=True)
class GrowthSizes:
    """What is tried; while one size changes, the others stay. Frames, tokens and width are those of the material."""

    num_videos: int
    num_queries: int
    vectors: Sequence[int]
    """Of the broad view."""
    corpora: Sequence[int]
    """Videos of a store whose videos are small, so that there may be many."""
    candidates: Sequence[int]
    """K."""
    frames: Sequence[float]
    """Times the frames of the material."""
    tokens: Sequence[float]
    """Times its tokens a frame; 0 stands for one token."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of everything."""

    model: str
    clip: VideoFormat
    num_clips: int
    num_videos: int
    """Of the drawn store; of a given one, those that are read."""
    num_vectors: int
    num_queries: int
    repetitions: int
    disk_bytes: int
    """Of the file that tells how fast the disk is."""
    growth: GrowthSizes


FULL = Scale(
    model="ViT-B-32-quickgelu",  # the architecture of the default model's weights
    clip=VideoFormat(width=640, height=360, frames_per_second=25, seconds=4.0),
    num_clips=8,
    num_videos=400,
    num_vectors=100_000,
    num_queries=100,
    repetitions=3,
    disk_bytes=256 << 20,
    growth=GrowthSizes(
        num_videos=100,
        num_queries=16,
        vectors=(1_000, 10_000, 100_000),
        corpora=(300, 3_000, 30_000),
        candidates=(5, 10, 20, 50),
        frames=(0.25, 0.5, 1, 2),
        tokens=(0, 0.25, 0.5, 1),
    ),
)
QUICK = Scale(
    model="tbpipe-small",
    clip=VideoFormat(width=320, height=180, frames_per_second=25, seconds=2.0),
    num_clips=8,
    num_videos=200,
    num_vectors=20_000,
    num_queries=32,
    repetitions=2,
    disk_bytes=64 << 20,
    growth=GrowthSizes(
        num_videos=60,
        num_queries=8,
        vectors=(1_000, 4_000, 16_000),
        corpora=(200, 1_000, 5_000),
        candidates=(5, 10, 20),
        frames=(0.25, 0.5, 1),
        tokens=(0, 0.25, 1),
    ),
)
