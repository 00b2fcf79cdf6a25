"""Videos that name other files or addresses, in every way we know, and a watch that tells when one is opened."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.stages.clips import write_clip

NONBLOCK = os.O_NONBLOCK
IN_OPEN = 0x20
ZEROS = bytes(4000)
"""Behind a text they make it look like a video to whoever asks whether it is one."""

TEXTS = {
    "hls": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\n{target}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{target}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet>'
    '<Representation id="1" bandwidth="1"><BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "asf_reference": "[Reference]\nRef1={target}\n",
    "asx": '<asx version="3.0"><entry><ref href="{target}"/></entry></asx>',
    "smil": '<smil><body><video src="{target}"/></body></smil>',
    "ram": "{target}\n",
    "pls": "[playlist]\nFile1={target}\nNumberOfEntries=1\n",
    "vobsub": "# VobSub index file, v7 (do not modify this line!)\n"
    "id: en, index: 0\ntimestamp: 00:00:01:000, filepos: 0\n",
    "imf": '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016">'
    "<Id>urn:uuid:0</Id><Path>{target}</Path></CompositionPlaylist>",
}
"""Kinds of playlists; FFmpeg follows most of them."""


@dataclass(slots=True)
class Watched:
    """A file and an address that nobody must touch."""

    path: Path
    port: int
    num_connections: int = 0
    _descriptor: int = field(default=-1, repr=False)

    def num_touched(self) -> int:
        """How often the file was opened or the address was called so far."""
        num_events = 0
        try:
            while data := os.read(self._descriptor, 4096):
                while data:
                    (length,) = struct.unpack_from("I", data, 12)
                    data, num_events = data[16 + length :], num_events + 1
        except BlockingIOError:
            return num_events + self.num_connections
        return num_events + self.num_connections


@contextmanager
def watched(folder: Path) -> Iterator[Watched]:
    """A good clip that counts who opens it, and a server that counts who calls."""
    target = write_clip(folder / "target.ts", 20)
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(NONBLOCK)
    if descriptor < 0 or libc.inotify_add_watch(descriptor, os.fsencode(target), IN_OPEN) < 0:
        pytest.skip("inotify cannot be had here")
    with socket.create_server(("127.0.0.1", 0)) as server:
        watch = Watched(target, server.getsockname()[1], _descriptor=descriptor)

        def serve() -> None:
            try:
                while True:
                    connection, _ = server.accept()
                    watch.num_connections += 1
                    connection.close()
            except OSError:
                return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield watch
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            os.close(descriptor)


def write_playlists(folder: Path, watch: Watched) -> list[Path]:
    """Every kind, naming the watched file as it is, by its path and by address; each also disguised."""
    targets = ("target.ts", str(watch.path), f"file:{watch.path}", f"http://127.0.0.1:{watch.port}/x.ts")
    written = []
    for kind, text in TEXTS.items():
        for number, target in enumerate(targets):
            content = text.format(target=target, port=watch.port).encode()
            for disguise, tail in (("", b""), ("zeros", ZEROS)):
                path = folder / f"{kind}_{number}{disguise}.mp4"
                path.write_bytes(content + tail)
                written.append(path)
    (folder / "target.sub").write_bytes(watch.path.read_bytes())
    return written


def box(name: bytes, content: bytes) -> bytes:
    """A part of an MP4 file."""
    return struct.pack(">I4s", 8 + len(content), name) + content


def with_new_box(data: bytes, path: tuple[bytes, ...], content: bytes) -> bytes:
    """Boxes ``data``, in which the content of the box at ``path`` is another; those around it grow with it."""
    out, offset = b"", 0
    while offset < len(data):
        size, name = struct.unpack_from(">I4s", data, offset)
        inside = data[offset + 8 : offset + size]
        if name == path[0]:
            inside = with_new_box(inside, path[1:], content) if path[1:] else content
        out += box(name, inside)
        offset += size
    return out


def write_with_reference(path: Path, target: Path) -> Path:
    """A QuickTime file that says its frames are in another file."""
    write_clip(path, 20, container="mov")
    text = str(target).encode()
    alias = bytes(150) + struct.pack(">HH", 2, len(text)) + text + bytes(len(text) % 2)  # 2: its whole path
    reference = box(b"alis", struct.pack(">I", 0) + alias + struct.pack(">HH", 0xFFFF, 0))
    where = (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref")
    path.write_bytes(with_new_box(path.read_bytes(), where, struct.pack(">II", 0, 1) + reference))
    return path


def chunk(name: bytes, content: bytes) -> bytes:
    """A part of an AVI file."""
    return struct.pack("<4sI", name, len(content)) + content + bytes(len(content) % 2)


def write_with_subtitles(path: Path, playlist: str) -> Path:
    """An AVI file whose subtitles, which FFmpeg opens by content, are a playlist."""
    data = write_clip(path, 20, codec="mpeg4").read_bytes()
    header_end = 20 + struct.unpack_from("<I", data, 16)[0]
    movie = data.index(b"LIST", data.index(b"movi", header_end) - 8)
    movie_end = movie + 8 + struct.unpack_from("<I", data, movie + 4)[0]
    stream = chunk(b"strh", b"txts" + struct.pack("<IIHHIIIIIIII", 0, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0) + bytes(8))
    header = chunk(b"LIST", data[20:header_end] + chunk(b"LIST", b"strl" + stream + chunk(b"strf", b"")))
    subtitles = b"GAB2\0" + struct.pack("<HIHI", 2, 0, 4, len(playlist)) + playlist.encode()
    movie_list = chunk(b"LIST", b"movi" + chunk(b"01tx", subtitles) + data[movie + 12 : movie_end])
    path.write_bytes(chunk(b"RIFF", b"AVI " + header + movie_list))
    return path
