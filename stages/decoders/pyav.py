"""PyAV: opens a video, lists its frames, decodes chosen ones, and salvages what it can of a damaged file.

Decoding is planned: the wanted frames are grouped by the key frame before them, each group is decoded once from
there to its last wanted frame, and pictures that nothing refers to are not decoded unless wanted. On the 53 corpus
clips that decord can read, with bit-identical pictures: 17.6 CPU s including the listing, decord 24.7.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from index_store.settings import SamplingSettings
from stages.decoders.base import DeclinedError
from stages.errors import DecodeError
from stages.sampling import FrameTable, choose_frames

FORMATS = (
    *(
        "mov",
        "mp4",
        "m4a",
        "3gp",
        "3g2",
        "mj2",
        "ismv",
        "f4v",
        "matroska",
        "webm",
        "avi",
        "flv",
        "live_flv",
        "kux",
        "asf",
        "asf_o",
    ),
    *(
        "mpegts",
        "mpegtsraw",
        "mpeg",
        "mpegvideo",
        "mpeg1video",
        "mpeg2video",
        "m4v",
        "h261",
        "h263",
        "h264",
        "hevc",
        "vvc",
        "evc",
    ),
    *(
        "av1",
        "obu",
        "ivf",
        "ogg",
        "mxf",
        "gxf",
        "wtv",
        "dv",
        "rm",
        "nut",
        "nuv",
        "nsv",
        "swf",
        "amv",
        "4xm",
        "roq",
        "smk",
        "bink",
    ),
    *(
        "film_cpk",
        "mjpeg",
        "mjpeg_2000",
        "mpjpeg",
        "vc1",
        "vc1test",
        "cavsvideo",
        "dirac",
        "avs2",
        "avs3",
        "r3d",
        "yuv4mpegpipe",
    ),
    *("gif", "apng", "webp", "jpegxl_anim", "gif_pipe", "png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe"),
    *("jpegxl_pipe", "j2k_pipe", "ppm_pipe", "pgm_pipe", "mp3", "wav", "aac", "flac", "ac3", "eac3", "mp2"),
)
"""Formats that hold their own data. Left out on purpose: everything that names other files or addresses (hls, dash,
concat, sdp, image2, ...) and devices. Audio formats are in, so that their error is "no video stream"."""

OPEN_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(FORMATS)}

NO_SAMPLES = "its video track has no samples, or none of a codec that is known"
"""One text for both: of some broken files FFmpeg finds now the one, now the other."""

SKIPPABLE_CODECS = {"h264", "mpeg4", "mpeg1video", "mpeg2video"}
"""Codecs in which a picture that is marked as not referred to is never needed by another one."""


@dataclass(frozen=True, slots=True)
class OpenVideo:
    """An open file and the list of its frames."""

    path: str
    """What libraries are to open: a name that leads to the file that was checked, whatever its real name is."""
    table: FrameTable
    ticks: NDArray[np.int64] | None
    """int64 [n], time of each frame in units of the stream's time base; None when the file has no times."""
    seek_ticks: list[int]
    """For each frame, its decoding time: that is what the indexes in most files hold, so seeking to it works."""
    width: int
    """Of the coded picture, before it is turned upright."""
    height: int
    num_hidden: int
    """Frames that an edit list hides: not in the table."""
    container: InputContainer = field(repr=False)
    stream: VideoStream = field(repr=False)


@contextmanager
def open_video(path: str) -> Iterator[OpenVideo]:
    """Open ``path`` and list the frames of its main video stream. Raises DecodeError when there are none."""
    try:
        container = av.open(path, options=OPEN_OPTIONS)
    except av.error.MemoryError as error:
        raise DecodeError("out_of_memory", f"opening it needs too much memory ({error.strerror})") from error
    except (av.FFmpegError, ValueError, UnicodeError) as error:
        raise DecodeError("not_a_video", describe(error)) from error
    with container:
        if not len(container.streams):
            raise DecodeError("not_a_video", "it has no streams")
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream) or stream.disposition & av.stream.Disposition.attached_pic:
            kinds = sorted({other.type for other in container.streams})
            raise DecodeError("no_video_stream", f"its streams are: {', '.join(kinds)}")
        if stream.codec_context is None:  # whatever the types say
            raise DecodeError("no_frame", NO_SAMPLES)
        stream.thread_count = 1
        yield list_frames(path, container, stream)


@dataclass(frozen=True, slots=True, order=True)
class Listed:
    """What is known of a frame before it is decoded, in ticks."""

    pts: int
    duration: int
    is_key: bool
    dts: int


def list_frames(path: str, container: InputContainer, stream: VideoStream) -> OpenVideo:
    """Read all packets, decode none."""
    shown: list[Listed] = []
    num_hidden, num_without_time = 0, 0
    for packet in salvaged_packets(container, stream):
        if packet.is_discard:
            num_hidden += 1
            continue
        num_without_time += packet.pts is None
        pts = len(shown) if packet.pts is None else packet.pts
        shown.append(Listed(pts, packet.duration or 0, packet.is_keyframe, pts if packet.dts is None else packet.dts))
    if not shown:
        raise DecodeError("no_frame", NO_SAMPLES)
    is_timed = not num_without_time and len({frame.pts for frame in shown}) == len(shown)
    if num_without_time:
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        shown = [replace(frame, pts=index, duration=1) for index, frame in enumerate(shown)]
    else:
        rate = 1 / float(stream.time_base or Fraction(1, 1000))
    shown.sort()
    codec = stream.codec_context
    return OpenVideo(
        path,
        frame_table(shown, rate),
        np.array([frame.pts for frame in shown], np.int64) if is_timed else None,
        [frame.dts for frame in shown],
        codec.width,
        codec.height,
        num_hidden,
        container,
        stream,
    )


def frame_table(shown: list[Listed], ticks_per_second: float) -> FrameTable:
    """The table of frames that are sorted by time. The last one's duration is kept within reason, as headers lie."""
    starts = np.array([frame.pts - shown[0].pts for frame in shown], np.int64) / ticks_per_second
    last = shown[-1].duration / ticks_per_second
    if len(shown) > 1:
        gaps = np.diff(starts)
        last = min(last, 10 * float(gaps.max())) or float(np.median(gaps))
    return FrameTable(starts, np.array([frame.is_key for frame in shown]), float(starts[-1]) + last)


def packets_of(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet[VideoStream]]:
    """The packets of one stream. PyAV fails on those of streams that begin later in the file: they are passed over."""
    while True:
        try:
            yield from container.demux(stream)
            return
        except IndexError:
            continue


def salvaged_packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet[VideoStream]]:
    """The packets with data; damage between two packets ends the list, as nothing after it can be found."""
    try:
        for packet in packets_of(container, stream):
            if packet.size:
                yield packet
    except av.error.MemoryError:
        raise
    except av.FFmpegError:
        return


class PyAv:
    """Decoder on PyAV's own FFmpeg."""

    def version(self) -> str:
        """See Decoder.version."""
        return f"pyav {av.__version__}"

    def fetch(self, video: OpenVideo, frames: NDArray[np.int64]) -> NDArray[np.uint8]:
        """See Decoder.fetch."""
        try:
            pictures = fetch_by_time(video, frames) if video.ticks is not None else None
            return fetch_by_count(video, frames) if pictures is None else pictures
        except av.error.MemoryError as error:
            raise MemoryError(describe(error)) from error
        except av.FFmpegError as error:
            raise DeclinedError(describe(error)) from error


DECODER = PyAv()


class Pictures:
    """The pictures that were asked for, in one array that is made when the first one is known."""

    def __init__(self, video: OpenVideo, frames: NDArray[np.int64]) -> None:
        self._video = video
        self._rows = {int(frame): row for row, frame in enumerate(frames)}
        self._missing = set(self._rows)
        self._array: NDArray[np.uint8] | None = None

    def __contains__(self, frame: int) -> bool:
        return frame in self._rows

    def add(self, frame: int, picture: VideoFrame) -> None:
        """Keep ``picture`` if it is one of those asked for."""
        if frame not in self._missing:
            return
        pixels = upright(picture, self._video)
        if self._array is None:
            self._array = np.empty((len(self._rows), *pixels.shape), np.uint8)
        self._array[self._rows[frame]] = pixels
        self._missing.remove(frame)

    @property
    def is_complete(self) -> bool:
        """True = all are there."""
        return not self._missing

    def array(self) -> NDArray[np.uint8]:
        """uint8 [m, H, W, 3]. Raises DeclinedError when a picture is missing."""
        if self._missing or self._array is None:
            raise DeclinedError(
                f"{len(self._rows) - len(self._missing)} of {len(self._rows)} chosen frames could be decoded"
            )
        return self._array


def fetch_by_time(video: OpenVideo, frames: NDArray[np.int64]) -> NDArray[np.uint8] | None:
    """The frames with the listed times; None when the decoded frames do not carry them, as in AVI with B-frames."""
    assert video.ticks is not None
    pictures = Pictures(video, frames)
    for seek_to, group in groups_by_key_frame(video, frames):
        video.container.seek(seek_to, stream=video.stream, backward=True)
        wanted = {int(video.ticks[frame]): int(frame) for frame in group}
        last, before = max(wanted), None
        for frame in decoded_frames(video, wanted):
            if frame.pts is None or (before is not None and frame.pts <= before):
                return None
            before = frame.pts
            if frame.pts in wanted:
                pictures.add(wanted[frame.pts], frame)
            if frame.pts >= last:
                break
    return pictures.array() if pictures.is_complete else None


def groups_by_key_frame(video: OpenVideo, frames: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(decoding time of a key frame, the wanted frames from it up to the next key frame)."""
    keys = np.flatnonzero(video.table.is_key)
    if not keys.size:
        keys = np.zeros(1, np.int64)
    owner = np.maximum(np.searchsorted(keys, frames, side="right") - 1, 0)
    for number in np.unique(owner):
        yield video.seek_ticks[keys[number]], frames[owner == number]


def decoded_frames(video: OpenVideo, wanted: Container[int] | None) -> Iterator[VideoFrame]:
    """Decoded frames from the current position on; given the wanted times, without most that are not needed."""
    codec = video.stream.codec_context
    may_skip = wanted is not None and codec.name in SKIPPABLE_CODECS
    for packet in packets_of(video.container, video.stream):
        if may_skip and wanted is not None:
            codec.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
        for frame in packet.decode():
            if frame.is_corrupt:
                raise DeclinedError("a damaged picture")
            yield frame


def fetch_by_count(video: OpenVideo, frames: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The i-th decoded frames of the whole stream, for files whose times cannot be relied on."""
    pictures = Pictures(video, frames)
    with reopened(video) as again:
        for index, frame in enumerate(decoded_frames(again, None)):
            pictures.add(index, frame)
            if pictures.is_complete:
                break
    return pictures.array()


@contextmanager
def reopened(video: OpenVideo) -> Iterator[OpenVideo]:
    """The same video at its beginning: not every format can seek back to it."""
    with av.open(video.path, options=OPEN_OPTIONS) as container:
        stream = container.streams[video.stream.index]
        assert isinstance(stream, VideoStream)
        stream.thread_count = 1
        yield replace(video, container=container, stream=stream)


def readable_frames(video: OpenVideo, pictures: Pictures) -> NDArray[np.int64]:
    """Indices of all frames of a damaged file that can be decoded, going on after errors; fills ``pictures``."""
    index_of = {int(tick): index for index, tick in enumerate(video.ticks)} if video.ticks is not None else None
    readable: list[int] = []
    with reopened(video) as again:
        for count, frame in enumerate(undamaged_frames(again)):
            index = count if index_of is None else index_of.get(-1 if frame.pts is None else frame.pts)
            if index is not None and index < len(video.table):
                readable.append(index)
                pictures.add(index, frame)
    return np.unique(np.array(readable, np.int64))


def undamaged_frames(video: OpenVideo) -> Iterator[VideoFrame]:
    """Every frame that decodes and is not marked as damaged."""
    for packet in chain(salvaged_packets(video.container, video.stream), [None]):
        try:
            yield from (frame for frame in video.stream.codec_context.decode(packet) if not frame.is_corrupt)
        except av.error.MemoryError:
            raise
        except av.FFmpegError:
            continue


def salvage(video: OpenVideo, sampling: SamplingSettings) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """What can be had of a damaged file: the chosen frames, or, where some are lost, a choice among what is left.

    Returns their indices int64 [m] and pictures uint8 [m, H, W, 3]. Raises DeclinedError when there is none.
    """
    frames = choose_frames(video.table, sampling)
    pictures = Pictures(video, frames)
    readable = readable_frames(video, pictures)
    if not readable.size:
        raise DeclinedError("no frame could be decoded")
    if not pictures.is_complete:
        frames = readable[choose_frames(video.table.only(readable), sampling)]
        pictures = Pictures(video, frames)
        readable_frames(video, pictures)
    return frames, pictures.array()


def upright(frame: VideoFrame, video: OpenVideo) -> NDArray[np.uint8]:
    """uint8 [H, W, 3], RGB, turned as the file says, scaled to the size of the stream when the frame's own differs."""
    if (frame.width, frame.height) != (video.width, video.height):
        frame = frame.reformat(width=video.width, height=video.height)
    pixels: NDArray[np.uint8] = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    quarters = round(frame.rotation / 90) % 4
    if not quarters:
        return pixels
    turned = np.empty((*(pixels.shape[:2] if quarters == 2 else pixels.shape[1::-1]), 3), np.uint8)
    for channel in range(3):  # four times as fast as all at once
        turned[..., channel] = np.rot90(np.ascontiguousarray(pixels[..., channel]), quarters)
    return turned


def describe(error: Exception) -> str:
    """What the library said, without the name of the file."""
    return str(getattr(error, "strerror", None) or error)
