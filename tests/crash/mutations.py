"""Breaks the bytes of a video, each time differently and the same for the same random numbers."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

TAGS = re.compile(
    rb"moov|trak|mdia|minf|stbl|stsd|stts|ctts|stsc|stsz|stco|co64|stss|elst|edts|tkhd|mdhd|mvhd|hdlr|mvex|trex|moof|traf"
    rb"|tfhd|trun|sidx|avcC|hvcC|av1C|esds|mdat|RIFF|LIST|hdrl|avih|strh|strf|movi|idx1|OggS|\x1a\x45\xdf\xa3"
    rb"|\x18\x53\x80\x67|\x15\x49\xa9\x66|\x16\x54\xae\x6b|\x1f\x43\xb6\x75|\x1c\x53\xbb\x6b|\0\0\x01[\xb3\xba\xe0\x67]"
)
"""Names in containers and stream headers: behind them lie sizes, counts, times and offsets."""

BEHIND_TAG_BYTES = 80
EXTREME = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def flip_bits(data: bytearray, rng: random.Random, other: bytes) -> None:
    """Up to 200 bits, anywhere."""
    for _ in range(rng.choice((1, 3, 10, 50, 200))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def flip_header_bytes(data: bytearray, rng: random.Random, other: bytes) -> None:
    """Some of the first bytes."""
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(min(len(data), 1024))] = rng.randrange(256)


def extreme_number(data: bytearray, rng: random.Random, other: bytes) -> None:
    """Numbers behind a name become as large, as small or as negative as they can."""
    places = [found.end() for found in TAGS.finditer(data)] or [0]
    for _ in range(rng.randint(1, 4)):
        place = rng.choice(places) + rng.choice((0, rng.randrange(BEHIND_TAG_BYTES)))
        width = rng.choice((1, 2, 4, 8))
        value = rng.choice(EXTREME) % (1 << 8 * width)
        if place + width <= len(data):
            data[place : place + width] = value.to_bytes(width, rng.choice(("big", "little")))


def wrong_size(data: bytearray, rng: random.Random, other: bytes) -> None:
    """The four bytes before a name, in MP4 its length, become something else."""
    places = [found.start() for found in TAGS.finditer(data) if found.start() >= 4] or [4]
    place = rng.choice(places)
    size = rng.choice((*EXTREME[:2], *EXTREME[-4:], rng.randrange(2 * len(data)), 8, 9))
    data[place - 4 : place] = (size % (1 << 32)).to_bytes(4, "big")


def rename(data: bytearray, rng: random.Random, other: bytes) -> None:
    """A part gets the name of another part."""
    places = [(found.start(), found.group()) for found in TAGS.finditer(data)]
    if places:
        start, name = rng.choice(places)
        new = rng.choice(places)[1]
        data[start : start + len(name)] = new.ljust(len(name), b"\0")[: len(name)]


def cut_tail(data: bytearray, rng: random.Random, other: bytes) -> None:
    """A copy that was broken off."""
    del data[rng.randrange(1, len(data)) :]


def lose_middle(data: bytearray, rng: random.Random, other: bytes) -> None:
    """A piece is missing, everything after it has moved."""
    start = rng.randrange(len(data))
    del data[start : start + rng.randint(1, max(1, len(data) // 4))]
    data.extend(b"" if data else b"\0")


def overwrite(data: bytearray, rng: random.Random, other: bytes) -> None:
    """A piece is zeros, ones or noise, as after a disk has failed."""
    start, length = rng.randrange(len(data)), rng.choice((16, 512, 4096, len(data) // 3 + 1))
    length = min(length, len(data) - start)
    data[start : start + length] = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))


def insert(data: bytearray, rng: random.Random, other: bytes) -> None:
    """Noise in between."""
    start = rng.randrange(len(data))
    data[start:start] = rng.randbytes(rng.choice((1, 4, 188, 5000)))


def repeat(data: bytearray, rng: random.Random, other: bytes) -> None:
    """A piece comes again, maybe many times."""
    start = rng.randrange(len(data))
    piece = bytes(data[start : start + rng.choice((8, 100, 2000, 20000))])
    data[start:start] = piece * rng.choice((1, 2, 20))


def swap(data: bytearray, rng: random.Random, other: bytes) -> None:
    """Two pieces change places."""
    length = rng.choice((4, 64, 4096))
    if len(data) > 2 * length:
        one = rng.randrange(len(data) - 2 * length)
        two = rng.randrange(one + length, len(data) - length + 1)
        data[one : one + length], data[two : two + length] = data[two : two + length], data[one : one + length]


def splice(data: bytearray, rng: random.Random, other: bytes) -> None:
    """The beginning of one file and the end of another."""
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]
    data.extend(b"" if data else b"\0")


MUTATIONS: tuple[Callable[[bytearray, random.Random, bytes], None], ...] = (
    flip_bits,
    flip_header_bytes,
    extreme_number,
    extreme_number,
    wrong_size,
    rename,
    cut_tail,
    lose_middle,
    overwrite,
    insert,
    repeat,
    swap,
    splice,
)


def mutated(data: bytes, other: bytes, rng: random.Random) -> tuple[bytes, str]:
    """``data`` after one to three mutations, and their names. ``other``: a file to take pieces from."""
    content, names = bytearray(data), []
    for mutation in rng.choices(MUTATIONS, k=rng.choice((1, 1, 1, 2, 3))):
        mutation(content, rng, other)
        names.append(mutation.__name__)
    return bytes(content), "+".join(names)
