"""The clips that every peer gets: all of one length and frame rate, so that all can be told to take the same frames.

Real videos are cut (or repeated) to ten seconds at 30 frames a second and encoded again, at their own size; where no
folder of videos is given, clips are rendered.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.plan import FRAMES_PER_SECOND, SECONDS
from index_store.errors import InputError
from stages.synthetic.render import VideoFormat, encode_video, render_corpus

SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov"}
_LARGEST = 864
"""Larger videos are left out: with frames of 1080p, decoding is most of what is measured."""
_FEWEST_FRAMES = 30


def make_clips(work: Path, videos: Path | None, count: int) -> list[Path]:
    """``count`` clips in ``work``, made where they are not there yet; by name. Raises InputError for too few videos."""
    if videos is None:
        return _rendered(work / "rendered", count)
    folder = work / "clips"
    folder.mkdir(parents=True, exist_ok=True)
    clips: list[Path] = []
    for source in sorted(path for path in videos.iterdir() if path.suffix.lower() in SUFFIXES):
        if len(clips) == count:
            break
        clip = folder / f"{source.stem}.mp4"
        if clip.exists() or _cut(source, clip):
            clips.append(clip)
            print(f"clip {len(clips)} of {count}: {clip.name}", file=sys.stderr)
    if len(clips) < count:
        raise InputError(
            f"{videos} has {len(clips)} usable videos (at least {_FEWEST_FRAMES} frames, at most {_LARGEST} pixels "
            f"a side), expected {count}; give --clips {len(clips)} or another folder"
        )
    return clips


def digest(clips: Sequence[Path]) -> str:
    """SHA-256 over their contents."""
    whole = hashlib.sha256()
    for clip in clips:
        whole.update(hashlib.sha256(clip.read_bytes()).digest())
    return whole.hexdigest()


def _rendered(folder: Path, count: int) -> list[Path]:
    form = VideoFormat(width=640, height=360, frames_per_second=FRAMES_PER_SECOND, seconds=SECONDS)
    made = sorted((folder / "videos").rglob("*.mp4")) if (folder / f"{count}.done").exists() else []
    if not made:
        render_corpus(folder, 1, count, video_format=form)
        (folder / f"{count}.done").touch()
        made = sorted((folder / "videos").rglob("*.mp4"))
    return made


def _cut(source: Path, clip: Path) -> bool:
    """Write ``clip``; False for a video that cannot be used."""
    try:
        with av.open(str(source)) as container:
            stream = container.streams.video[0]
            width, height, frames = stream.width, stream.height, stream.frames
    except (av.FFmpegError, IndexError):
        return False
    if max(width, height) > _LARGEST or (frames and frames < _FEWEST_FRAMES):
        return False
    form = VideoFormat(width // 2 * 2, height // 2 * 2, FRAMES_PER_SECOND, SECONDS, crf=23)
    unfinished = clip.with_suffix(".part")
    pictures = itertools.islice(_again_and_again(source, form), form.num_frames)
    try:
        encode_video(unfinished, pictures, form)
    except av.FFmpegError:
        unfinished.unlink(missing_ok=True)
        return False
    unfinished.replace(clip)
    return True


def _again_and_again(source: Path, form: VideoFormat) -> Iterator[NDArray[np.uint8]]:
    """The frames from the first, as stored (not turned), without an end."""
    while True:
        with av.open(str(source)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24", width=form.width, height=form.height)
