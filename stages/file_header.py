"""What the bytes of a file say before any decoder sees it: whether it is a text, a known container, cut off."""

from __future__ import annotations

import os

from stages.errors import DecodeError

HEADER_BYTES = 4096

PLAYLIST_STARTS = (
    *("ffconcat", "#extm3u", "[playlist]", "[reference]", "v=0", "rtsptext", "file '", "file:", "file /"),
    *("http://", "https://", "rtsp://", "rtmp://"),
)
PLAYLIST_MARKS = ("<mpd", "<smil", "<asx", "<playlist", "<smoothstreamingmedia", "<manifest", "<rss")

CONTAINER_STARTS = (
    *(b"\x1a\x45\xdf\xa3", b"RIFF", b"OggS", b"FLV\x01", b"GIF8", b"\x89PNG", b"\xff\xd8\xff"),
    *(
        b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
        b"\0\0\x01\xba",
        b"\0\0\x01\xb3",
        b"\0\0\0\x01",
        b".RMF",
        b"\x06\x0e\x2b\x34",
    ),
)
MOVIE_BOXES = {b"ftyp", b"styp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"pnot"}
MATROSKA_SEGMENT = b"\x18\x53\x80\x67"
NOT_CONTROL = bytes({*b"\t\n\r\f\b\x1b", *range(32, 127), *range(128, 256)})
"""What texts are made of, in any encoding that extends ASCII."""

MAX_BOXES = 100_000


def check_header(header: bytes) -> None:
    """Refuse a file that is empty or a text, as texts can point a decoder to other files. Raises DecodeError."""
    if not header:
        raise DecodeError("empty_file", "0 bytes")
    text = text_of(header)
    if text is None:
        return
    start = text.lstrip("\ufeff \t\r\n").lower()
    if start.startswith(PLAYLIST_STARTS) or any(mark in start for mark in PLAYLIST_MARKS):
        raise DecodeError("playlist", f"it starts with {text[:40]!r}")
    raise DecodeError("not_a_video", f"it is a text that starts with {text[:40]!r}")


def text_of(header: bytes) -> str | None:
    """The header as text, or None when it is not one: videos have zero bytes or other control characters early on."""
    if header.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = header.decode("utf-16", errors="replace")
        num_strange = sum(not (character.isprintable() or character in "\r\n\t\ufeff") for character in text)
        num_strange += text.count("\N{REPLACEMENT CHARACTER}")
    else:
        text = header.decode("utf-8", errors="replace")
        num_strange = len(header) if b"\0" in header else len(header.translate(None, delete=NOT_CONTROL))
    return text if num_strange <= 1 + len(text) // 100 else None


def is_known_container(header: bytes) -> bool:
    """True = the file begins as videos do, so that what cannot be read is damage."""
    return (
        header.startswith(CONTAINER_STARTS)
        or header[4:8] in MOVIE_BOXES
        or (header[:1] == b"G" and header[188:189] == b"G")
    )


def missing_bytes(descriptor: int, header: bytes) -> int:
    """How many bytes the container says the file should have beyond its end; 0 when it is whole or does not say."""
    size = os.fstat(descriptor).st_size
    if header[4:8] in MOVIE_BOXES:
        end = end_of_boxes(descriptor, size)
    elif header.startswith(b"\x1a\x45\xdf\xa3"):
        end = end_of_segment(header)
    elif header.startswith(b"RIFF") and header[8:12] == b"AVI ":
        end = 8 + int.from_bytes(header[4:8], "little")
    else:
        end = 0
    return max(0, end - size)


def end_of_boxes(descriptor: int, size: int) -> int:
    """Where the last top-level box of an MP4 or MOV file ends, if it holds frames or their index."""
    offset = 0
    for _ in range(MAX_BOXES):
        box = os.pread(descriptor, 16, offset)
        if len(box) < 8:
            break
        length = int.from_bytes(box[:4], "big")
        if length == 1:
            length = int.from_bytes(box[8:16], "big")
        if length < 8:
            break  # 0 = up to the end of the file
        offset += length
        if offset > size:
            return offset if box[4:8] in {b"mdat", b"moov", b"moof"} else 0
    return 0


def end_of_segment(header: bytes) -> int:
    """Where the segment of a Matroska or WebM file ends; 0 when it is of unknown length, as in a live recording."""
    start = header.find(MATROSKA_SEGMENT)
    if start < 0:
        return 0
    length = variable_length(header[start + 4 : start + 12])
    return 0 if length is None else start + 4 + length[1] + length[0]


def variable_length(data: bytes) -> tuple[int, int] | None:
    """(value, number of bytes) of an EBML number; None when all its bits are set, which means unknown."""
    if not data or not data[0]:
        return None
    width = 9 - data[0].bit_length()
    value = int.from_bytes(data[:width], "big") - (1 << (7 * width))
    return None if len(data) < width or value == (1 << (7 * width)) - 1 else (value, width)
