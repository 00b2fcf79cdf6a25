"""Whether a file counts as a video: its suffix says so, or its first bytes do."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_SUFFIXES = """
    .3g2 .3gp .asf .av1 .avi .divx .dv .f4v .flv .gif .h264 .h265 .hevc .ivf .m1v .m2ts .m2v .m4v .mjpeg .mjpg .mkv .mov
    .mp4 .mpe .mpeg .mpg .mpv .mts .mxf .obu .ogg .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv .y4m
"""
VIDEO_SUFFIXES = frozenset(_SUFFIXES.split())
_OTHER = """
    .bmp .csv .html .jpeg .jpg .json .jsonl .log .md .md5 .nfo .npy .npz .parquet .pdf .png .py .sha256 .srt .tsv .txt
    .vtt .wav .webp .xml .yaml .yml
"""
_OTHER_SUFFIXES = frozenset(_OTHER.split())
"""Never videos: what lies beside videos by the million is not opened."""

_SNIFF_BYTES = 16
_MAGIC: tuple[tuple[int, bytes], ...] = (
    (4, b"ftyp"),  # ISO media: mp4, mov, 3gp
    (4, b"moov"),
    (4, b"mdat"),
    (0, b"\x1a\x45\xdf\xa3"),  # EBML: Matroska, WebM
    (8, b"AVI "),
    (0, b"GIF8"),
    (0, b"OggS"),
    (0, b"FLV\x01"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),  # ASF
    (0, b"\x00\x00\x01\xba"),  # MPEG program stream
    (0, b"\x00\x00\x01\xb3"),  # MPEG video
    (0, b"DKIF"),  # IVF
)


def looks_like_video(path: str | Path) -> bool:
    """True when the suffix is a video's, or the first bytes of a regular file are."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in VIDEO_SUFFIXES or suffix in _OTHER_SUFFIXES:
        return suffix in VIDEO_SUFFIXES
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            head = file.read(_SNIFF_BYTES)
    except OSError:
        return False
    return any(head[offset : offset + len(magic)] == magic for offset, magic in _MAGIC)
