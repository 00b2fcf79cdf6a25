from __future__ import annotations

import os
from pathlib import Path

import pytest

from stages.errors import DecodeError
from stages.file_header import check_header, is_known_container, missing_bytes, variable_length
from tests.stages.clips import write_clip

EBML = b"\x1a\x45\xdf\xa3"
SEGMENT = b"\x18\x53\x80\x67"


def missing(path: Path, content: bytes) -> int:
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return missing_bytes(descriptor, content[:4096])
    finally:
        os.close(descriptor)


def box(kind: bytes, payload: bytes) -> bytes:
    return (8 + len(payload)).to_bytes(4, "big") + kind + payload


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (box(b"ftyp", b"isom") + box(b"mdat", b"x" * 100), 0),
        ((box(b"ftyp", b"isom") + box(b"mdat", b"x" * 100))[:-30], 30),
        ((box(b"ftyp", b"isom") + box(b"mdat", b"x") + box(b"free", b"x" * 50))[:-9], 0),  # nothing of worth is lost
        (box(b"ftyp", b"isom") + b"\0\0\0\1mdat" + (16 + 70).to_bytes(8, "big") + b"x" * 30, 40),  # 64-bit size
        (box(b"ftyp", b"isom") + b"\0\0\0\0mdat" + b"x" * 30, 0),  # up to the end of the file
        (EBML + b"\x81x" + SEGMENT + b"\x90" + b"x" * 16, 0),  # one-byte length 16
        (EBML + b"\x81x" + SEGMENT + b"\x40\x90" + b"x" * 16, 128),  # two-byte length 144
        (EBML + b"\x81x" + SEGMENT + b"\x01" + b"\xff" * 7 + b"x" * 16, 0),  # unknown length: a live recording
        (b"RIFF" + (4 + 100).to_bytes(4, "little") + b"AVI " + b"x" * 100, 0),
        (b"RIFF" + (4 + 100).to_bytes(4, "little") + b"AVI " + b"x" * 60, 40),
        (b"anything else" * 20, 0),
        (b"\0\0\0\x08moov", 0),
        (b"\0\0\0\x01moov", 0),
    ],
)
def test_missing_bytes(content: bytes, expected: int, tmp_path: Path) -> None:
    assert missing(tmp_path / "file", content) == expected


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "avi", "ts", "flv", "h264"])
def test_whole_files_miss_nothing(suffix: str, tmp_path: Path) -> None:
    path = write_clip(tmp_path / f"clip.{suffix}", 10, codec="mpeg4" if suffix == "avi" else "libx264")
    content = path.read_bytes()
    assert missing(path, content) == 0
    assert is_known_container(content[:4096])
    check_header(content[:4096])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x81", (1, 1)),
        (b"\x40\x02", (2, 2)),
        (b"\x01\0\0\0\0\0\1\0", (256, 8)),
        (b"\xff", None),
        (b"\x40", None),
        (b"", None),
        (b"\0", None),
    ],
)
def test_variable_length(data: bytes, expected: tuple[int, int] | None) -> None:
    assert variable_length(data) == expected


@pytest.mark.parametrize(
    "text", [b'{"a": 1}', "Ein Text mit Umlauten: äöü\n".encode("latin-1") * 40, "テキスト".encode() * 1000]
)
def test_texts_are_told_from_videos(text: bytes) -> None:
    with pytest.raises(DecodeError) as refusal:
        check_header(text[:4096])
    assert refusal.value.reason_code == "not_a_video"


def test_a_raw_video_that_begins_with_a_text_is_not_a_text() -> None:
    check_header(b"YUV4MPEG2 W96 H64 F25:1 Ip A0:0 C420jpeg\nFRAME\n" + bytes(range(256)) * 15)
