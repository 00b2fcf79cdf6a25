"""The process that decodes: takes one file after the other from a socket, answers with facts and a memory file.

Started by stages.decode_pool as a new process (never a fork), without torch. Pixels are written to an anonymous memory
file whose descriptor goes through the socket: nothing has a name, so nothing can be left behind, however anybody dies.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import hashlib
import json
import os
import resource
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_store.settings import SamplingSettings
from stages.decoders import load_decoder
from stages.errors import DecodeError
from stages.video import FrameBatch, decode_open_file, open_regular

HASH_BLOCK_BYTES = 1 << 20
ALARM_GRACE_SECONDS = 10
_LENGTH = struct.Struct("!Q")
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker is told once, when it starts."""

    sampling: SamplingSettings
    decoders: tuple[str, ...]
    timeout_seconds: float
    memory_bytes: int
    parent_pid: int


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker's first message: it has loaded its libraries."""


@dataclass(frozen=True, slots=True)
class Request:
    """One file to decode."""

    path: str
    """As os.fsdecode gives it."""
    known_hashes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request. Pixels travel beside it, as the descriptor of a memory file."""

    content_hash: str = ""
    size_bytes: int = 0
    mtime_ns: int = 0
    inode: int = 0
    frames_shape: tuple[int, ...] | None = None
    """[n, H, W, 3]; None = no frames come with it."""
    timestamps_seconds: tuple[float, ...] = ()
    duration_seconds: float = 0.0
    decoder: str = ""
    note: str = ""
    is_partial: bool = False
    reason_code: str = ""
    reason_detail: str = ""
    resident_bytes: int = 0
    """Memory of the worker after this file."""


Message = WorkerSettings | Ready | Request | Answer


def send_message(connection: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> None:
    """Send one message, with descriptors that the other process shall share."""
    data = json.dumps([type(message).__name__, asdict(message)]).encode()  # also for names that are not UTF-8
    shared = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([_LENGTH.pack(len(data))], shared)
    connection.sendall(data)


def receive_message(connection: socket.socket) -> tuple[Message, list[int]]:
    """The next message and the descriptors that came with it. Raises EOFError when the other side is gone."""
    header, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, 1)
    try:
        header += _read(connection, _LENGTH.size - len(header))
        message = _parsed(_read(connection, _LENGTH.unpack(header)[0]))
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return message, descriptors


def _parsed(data: bytes) -> Message:
    kind, fields = json.loads(data)
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    if kind == WorkerSettings.__name__:
        return WorkerSettings(**{**values, "sampling": SamplingSettings(**values["sampling"])})
    if kind == Request.__name__:
        return Request(**values)
    return Answer(**values) if kind == Answer.__name__ else Ready()


def _read(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(min(size - len(data), 1 << 20))
        if not piece:
            raise EOFError("the other process closed the connection")
        data += piece
    return bytes(data)


def main(descriptor: int) -> None:
    """Serve requests on the inherited socket until the other side closes it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides when a worker ends, so that a stop can commit first
    connection = socket.socket(fileno=descriptor)
    settings, _ = receive_message(connection)
    assert isinstance(settings, WorkerSettings)
    _die_with(settings.parent_pid)
    _load(settings.decoders)
    _limit_memory(settings.memory_bytes)
    send_message(connection, Ready())
    while True:
        try:
            request, _ = receive_message(connection)
        except EOFError:
            return
        assert isinstance(request, Request)
        _forget_words()
        # Kills this process even where C code hangs with the interpreter's lock, and with nobody left to watch.
        signal.alarm(int(settings.timeout_seconds) + ALARM_GRACE_SECONDS)
        answer, pixels = answer_to(request, settings)
        signal.alarm(0)
        _send_answer(connection, answer, pixels)
        del pixels


def answer_to(request: Request, settings: WorkerSettings) -> tuple[Answer, NDArray[np.uint8] | None]:
    """Hash and decode one file; every failure becomes part of the answer."""
    answer, pixels = Answer(), None
    try:
        with open_regular(Path(request.path)) as descriptor:
            before = os.fstat(descriptor)
            answer = replace(answer, size_bytes=before.st_size, mtime_ns=before.st_mtime_ns, inode=before.st_ino)
            answer = replace(answer, content_hash=hash_of(descriptor))
            try:
                if answer.content_hash not in request.known_hashes:
                    batch = decode_open_file(descriptor, Path(request.path), settings.sampling, settings.decoders)
                    pixels, answer = batch.frames, with_batch(answer, batch)
            finally:
                check_unchanged(descriptor, before)
    except DecodeError as error:
        return with_error(answer, error.reason_code, error.detail), None
    except MemoryError as error:
        return with_error(answer, "out_of_memory", str(error)), None
    except OSError as error:
        return with_error(answer, "unreadable", error.strerror or str(error)), None
    except Exception as error:  # one file, whatever its bytes do to a library, must not end the run
        return with_error(answer, "decoder_crashed", f"{type(error).__name__}: {error}"), None
    return answer, pixels


def hash_of(descriptor: int) -> str:
    """SHA-256 of an open file, hex."""
    digest, offset = hashlib.sha256(), 0
    while block := os.pread(descriptor, HASH_BLOCK_BYTES, offset):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()


def check_unchanged(descriptor: int, before: os.stat_result) -> None:
    """Raise DecodeError when the file was written to since ``before``: hash and frames may be of different contents."""
    after = os.fstat(descriptor)
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise DecodeError("changed_while_reading", f"{before.st_size} bytes at first, {after.st_size} bytes later")


def with_batch(answer: Answer, batch: FrameBatch) -> Answer:
    """The answer of a file that was decoded."""
    return replace(
        answer,
        frames_shape=batch.frames.shape,
        timestamps_seconds=tuple(batch.timestamps_seconds.tolist()),
        duration_seconds=batch.duration_seconds,
        decoder=batch.decoder,
        note=batch.note,
        is_partial=batch.is_partial,
    )


def with_error(answer: Answer, reason_code: str, detail: str) -> Answer:
    """The answer of a file that failed; what is known of the file stays, but no hash of a moving target."""
    error = DecodeError(reason_code, detail)
    hash_is_valid = reason_code != "changed_while_reading"
    return Answer(
        answer.content_hash if hash_is_valid else "",
        answer.size_bytes,
        answer.mtime_ns,
        answer.inode,
        reason_code=error.reason_code,
        reason_detail=error.detail,
    )


def _send_answer(connection: socket.socket, answer: Answer, pixels: NDArray[np.uint8] | None) -> None:
    answer = replace(answer, resident_bytes=_resident_bytes())
    if pixels is None:
        send_message(connection, answer)
        return
    descriptor = memory_file(pixels.nbytes)
    try:
        view = np.ascontiguousarray(pixels).reshape(-1).data
        written = 0
        while written < len(view):
            written += os.pwrite(descriptor, view[written:], written)
        send_message(connection, answer, [descriptor])
    finally:
        os.close(descriptor)


def memory_file(size_bytes: int) -> int:
    """Descriptor of a nameless file of that size; in memory on Linux, an unlinked temporary file elsewhere."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("tbpipe-frames", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size_bytes)
    return descriptor


def _die_with(parent_pid: int) -> None:
    """Let the kernel kill this process when its parent dies. Not on Linux, the closed socket and the alarm do."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            os._exit(1)


def _load(decoders: Sequence[str]) -> None:
    """Import the libraries before there is a memory limit, and before a file's time counts."""
    for name in decoders:
        try:
            load_decoder(name).version()
        except ImportError:
            continue  # decode() notes it for each file


def _limit_memory(memory_bytes: int) -> None:
    """Make allocations fail beyond the limit (on Linux: private memory, not shared libraries)."""
    if sys.platform == "linux" and memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


def _resident_bytes() -> int:
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _forget_words() -> None:
    """Empty the file behind stderr: libraries print a lot about broken files, and only the last words can matter."""
    with contextlib.suppress(OSError):
        os.ftruncate(2, 0)
        os.lseek(2, 0, os.SEEK_SET)
