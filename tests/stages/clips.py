"""Small real video files, made through PyAV, whose frames carry their own number in the picture."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, BITS = 96, 64, 8
BLOCK = WIDTH // BITS


def numbered_picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Upper half: the bits of ``number`` as black and white columns. Lower half: a ramp, darker to the right."""
    picture = np.empty((height, width, 3), np.uint8)
    block = width // BITS
    for bit in range(BITS):
        picture[: height // 2, bit * block : (bit + 1) * block] = 235 if number >> bit & 1 else 20
    picture[height // 2 :] = np.linspace(200, 40, width).astype(np.uint8)[None, :, None]
    return picture


def number_in(picture: NDArray[np.uint8]) -> int:
    """The number that an upright picture carries."""
    block = picture.shape[1] // BITS
    row = picture[picture.shape[0] // 4].astype(int).mean(axis=-1)
    return sum(int(row[bit * block + block // 2] > 128) << bit for bit in range(BITS))


def numbers_in(pictures: NDArray[np.uint8]) -> list[int]:
    return [number_in(picture) for picture in pictures]


def write_clip(
    path: Path,
    num_frames: int = 30,
    codec: str = "libx264",
    rate: int = 10,
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    container: str | None = None,
    rotation: int = 0,
    muxer: dict[str, str] | None = None,
) -> Path:
    """Encode ``num_frames`` numbered pictures. ``times``: when each is shown, in units of 1/rate s."""
    with av.open(str(path), "w", format=container, options=muxer or {}) as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = size if rotation % 180 == 0 else size[::-1]
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, rate)
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(num_frames):
            picture = np.rot90(
                numbered_picture(number, *size), -rotation // 90
            )  # upright once the player has turned it
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(format=pixels)
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def write_audio(path: Path) -> Path:
    """One second of silence, no video."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path
