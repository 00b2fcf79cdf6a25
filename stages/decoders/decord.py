"""decord: planned batches on its own, older FFmpeg.

Its rules: one reader per file, ONE get_batch, deleted at once, because an idle reader decodes ahead until memory ends;
one thread; never across a fork. It repeats the frame before where one is damaged, unless told to fail.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from stages.decoders.base import DeclinedError
from stages.decoders.pyav import OpenVideo

FAIL_AT_FIRST_DAMAGED_FRAME = 1e-9
"""Tolerated part of replaced frames."""

EXACT_FORMATS = {"mov", "matroska"}
"""Containers in which it finds the frame it was asked for; in MPEG-TS, MPEG-PS and ASF it returned neighbours, in AVI
with a damaged index other frames on every run."""

EXACT_CODECS = {"h264", "vp8", "vp9"}
"""Codecs of which it gives the same pixels on every run, whatever the file's bytes. Of damaged MPEG-4 and FLV pictures
it returned what happened to be in memory, and reported nothing."""

EXACT_PIXELS = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv410p"}
"""Layouts that its FFmpeg decodes and turns into RGB as the newer one does. With 10 bits, edges differ by over 100 grey
levels. With 4:4:4 of an x264 before build 151, a reader that starts behind the first key frame, which names the build,
decodes noise and reports nothing."""


class Decord:
    """Decoder on the decord wheel."""

    def version(self) -> str:
        """See Decoder.version."""
        import decord

        return f"decord {decord.__version__}"

    def fetch(self, video: OpenVideo, frames: NDArray[np.int64]) -> NDArray[np.uint8]:
        """See Decoder.fetch."""
        import decord

        check_exact(video)
        try:
            reader = decord.VideoReader(video.path, num_threads=1, fault_tol=FAIL_AT_FIRST_DAMAGED_FRAME)
            if len(reader) != len(video.table):
                raise DeclinedError(f"it counts {len(reader)} frames, the file has {len(video.table)}")
            if reader.get_key_indices() != np.flatnonzero(video.table.is_key).tolist():
                raise DeclinedError("it takes other frames for key frames")
            pictures: NDArray[np.uint8] = reader.get_batch(frames).asnumpy()
        except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, AssertionError) as error:
            raise DeclinedError(reason_of(error)) from error
        finally:
            reader = None
        if pictures.shape[1:3] not in ((video.height, video.width), (video.width, video.height)):
            raise DeclinedError(f"its frames have the size {pictures.shape[2]}x{pictures.shape[1]} of another stream")
        return pictures


DECODER = Decord()


def check_exact(video: OpenVideo) -> None:
    """Raise DeclinedError where decord is known to give other frames or other pixels."""
    container = video.container.format.name.split(",")[0]
    format_of_pixels = video.stream.codec_context.format  # not pix_fmt: where it is unknown, PyAV 17 crashes
    pixels = format_of_pixels.name if format_of_pixels else "unknown"
    if video.num_hidden:
        raise DeclinedError(f"an edit list hides {video.num_hidden} frames, which it would count")
    if container not in EXACT_FORMATS:
        raise DeclinedError(f"it is not exact in {container}")
    if video.stream.codec_context.name not in EXACT_CODECS:
        raise DeclinedError(f"it is not exact for {video.stream.codec_context.name}")
    if pixels not in EXACT_PIXELS:
        raise DeclinedError(f"it is not exact for {pixels} pixels")
    sizes = [(stream.width, stream.height) for stream in video.container.streams.video]
    if len(set(sizes)) < len(sizes):
        raise DeclinedError("it may take another of the video streams, which have the same size")


DAMAGE = ("Error sending packet", "run_.load()")
"""What its messages about one damaged packet have in them: where in its threads it is noticed is left to chance."""


def reason_of(error: Exception) -> str:
    """The sentence in decord's message, the same on every run: without clock, source lines, file name, stack trace."""
    if any(words in str(error) for words in DAMAGE):
        return "a packet that it cannot decode"
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    for noise in (r"^\[[\d:]+\] \S+:\d+: ", r"^Check failed: ", r".*\(-?\d+ vs\. -?\d+\) ", r"^\[[^\]]*\] ?"):
        first = re.sub(noise, "", first)
    return first
