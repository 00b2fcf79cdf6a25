"""The yardsticks: what this machine does at best with products, memory, disk and hashing.

Each is one plain call on data of a size at which the machine is at its best. Names are what the report shows.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from index_store.errors import StoreError
from stages.bench.measure import Watch, Yardstick
from stages.bench.records import Clock, Machine

GIGA = 1e9
MEMORY = "memory"
CACHED = "page cache"
IN_ORDER = "disk, in order"
AT_RANDOM = "disk, at random"
HASHING = "SHA-256"
WRITING = "writing"
UPLOAD = "upload"

_SIDE = {"cpu": 1024, "cuda": 8192}
"""Of the matrices of a product: larger ones are not faster."""
_SLOW_SIDE = 256
"""Of those of a precision that the processor does not have itself, which may take a thousand times as long."""
_MEMORY_BYTES = {"cpu": 128 << 20, "cuda": 4 << 30}
"""More than any cache."""
_BUFFER_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20
_HASHED_BYTES = 16 << 20
_THREADS = 4
"""That read from a disk at once: one alone waits most of the time."""
_ONLY_CACHED = getattr(os, "RWF_NOWAIT", 0)


def matmul(dtype: torch.dtype) -> str:
    """Name of the yardstick of products in this precision."""
    return f"{str(dtype).removeprefix('torch.')} products"


def watch_for(device: torch.device) -> Watch:
    """A watch that waits for this device."""
    return Watch() if device.type == "cpu" else Watch(lambda: torch.cuda.synchronize(device))


def clock_of(device: torch.device) -> Clock:
    """CPU seconds say nothing about a GPU."""
    return "cpu" if device.type == "cpu" else "wall"


def describe(device: torch.device) -> Machine:
    """This machine."""
    names = [torch.cuda.get_device_name(device)] if device.type == "cuda" else ["no GPU used"]
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        device=names[0],
        versions=f"Python {platform.python_version()}, torch {torch.__version__}",
    )


def _processor(description: Path = Path("/proc/cpuinfo")) -> str:
    """As Linux names it; elsewhere the kind."""
    try:
        lines = description.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def compute_yardsticks(device: torch.device, dtypes: Sequence[torch.dtype]) -> Iterator[Yardstick]:
    """Products in each precision, and reading memory, on the device."""
    for dtype in dtypes:
        yield _products(device, dtype)
    yield _memory(device)
    if device.type == "cuda":
        yield _upload(device)


def _products(device: torch.device, dtype: torch.dtype) -> Yardstick:
    native = device.type == "cuda" or dtype == torch.float32 or has_fast(dtype)
    side = _SIDE[device.type] if native else _SLOW_SIDE
    left, right = (torch.full((side, side), 0.5, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(left)
    amount = 2 * side**3 / GIGA
    detail = f"{side} x {side} x {side}"
    return Yardstick(
        matmul(dtype), "GFLOP", amount, lambda: torch.mm(left, right, out=out), clock_of(device), detail=detail
    )


def has_fast(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies such numbers itself."""
    from stages.models.clip import has_native_bfloat16

    return dtype == torch.bfloat16 and has_native_bfloat16()


def _memory(device: torch.device) -> Yardstick:
    """A matrix times a vector reads every number once and hardly computes."""
    columns = 4096
    matrix = torch.full((_MEMORY_BYTES[device.type] // (4 * columns), columns), 0.5, device=device)
    vector, out = matrix[0].clone(), torch.empty(len(matrix), device=device)
    amount = 4 * matrix.numel() / GIGA
    return Yardstick(
        MEMORY,
        "GB",
        amount,
        lambda: torch.mv(matrix, vector, out=out),
        clock_of(device),
        detail="read once, a matrix times a vector",
    )


def _upload(device: torch.device) -> Yardstick:
    host = torch.empty(_MEMORY_BYTES["cpu"], dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(host, device=device)
    return Yardstick(
        UPLOAD,
        "GB",
        host.numel() / GIGA,
        lambda: there.copy_(host, non_blocking=True),
        "wall",
        detail="from pinned memory",
    )


def hashing() -> Yardstick:
    """What every file of a store is checked with."""
    data = bytes(_HASHED_BYTES)
    return Yardstick(HASHING, "GB", len(data) / GIGA, lambda: hashlib.sha256(data).digest())


# -- disk --------------------------------------------------------------------------------------------------------------


class ScratchFile:
    """A file of zeros and the yardsticks that read and write it, whole or in pieces of ``piece_bytes``."""

    def __init__(self, path: Path, size_bytes: int, piece_bytes: int) -> None:
        self.path = path
        self.piece_bytes = piece_bytes
        self.num_pieces = max(2, size_bytes // piece_bytes)
        self._block = np.random.default_rng(0).bytes(piece_bytes)
        with path.open("wb") as file:
            for _ in range(self.num_pieces):
                file.write(self._block)
            file.flush()
            os.fsync(file.fileno())  # what is not on disk cannot be dropped from memory
        self._descriptor = os.open(path, os.O_RDONLY)
        self.buffer = np.empty((min(self.num_pieces, max(1, _BUFFER_BYTES // piece_bytes)), piece_bytes), np.uint8)
        """What was read last, piece by piece, round and round."""
        self._order = np.random.default_rng(1).permutation(self.num_pieces).tolist()
        self._threads = ThreadPoolExecutor(_THREADS, "tbpipe-bench-read")

    def close(self) -> None:
        """Close the file; it stays."""
        self._threads.shutdown()
        os.close(self._descriptor)

    @property
    def size_bytes(self) -> int:
        """Of the file."""
        return self.num_pieces * self.piece_bytes

    def yardsticks(self) -> Iterator[Yardstick]:
        """Writing and reading it: from memory by CPU seconds, from the disk by the wall."""
        gigabytes = self.size_bytes / GIGA
        yield Yardstick(WRITING, "GB", gigabytes, self._write, detail="into the page cache")
        yield Yardstick(CACHED, "GB", gigabytes, self._read_in_order, detail=f"pread of {self.piece_bytes} bytes each")
        if self.can_be_dropped:
            drop = self.drop
            yield Yardstick(IN_ORDER, "GB", gigabytes, self._read_in_order, "wall", drop)
            yield Yardstick(
                AT_RANDOM,
                "GB",
                gigabytes,
                self._read_at_random,
                "wall",
                drop,
                detail=f"pread of {self.piece_bytes} bytes each, {_THREADS} threads",
            )

    @property
    def can_be_dropped(self) -> bool:
        """Whether the page cache can be emptied of it: not where it lies in memory itself."""
        self._read_piece(0)
        self.drop()
        return drops(self._descriptor)

    def drop(self) -> None:
        """Take it out of the page cache."""
        drop(self._descriptor)

    def _read_piece(self, number: int) -> None:
        read_exactly(self._descriptor, self.buffer[number % len(self.buffer)].data, number * self.piece_bytes)

    def _read_in_order(self) -> None:
        for number in range(self.num_pieces):
            self._read_piece(number)

    def _read_at_random(self) -> None:
        list(self._threads.map(self._read_piece, self._order))

    def _write(self) -> None:
        copy = self.path.with_name(f"{self.path.name}.copy")
        with copy.open("wb", buffering=0) as file:
            for _ in range(self.num_pieces):
                file.write(self._block)
        copy.unlink()


def read_exactly(descriptor: int, target: memoryview, offset: int) -> None:
    """Fill ``target`` from ``offset`` on. Raises StoreError where the file ends before."""
    done = 0
    while done < len(target):
        count = os.preadv(descriptor, [target[done:]], offset + done)
        if count == 0:
            raise StoreError(f"a file ended {len(target) - done} bytes early while it was measured; run again")
        done += count


def drop(descriptor: int) -> None:
    """Take a file out of the page cache, where the system lets one."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def announce(descriptor: int, offset: int, num_bytes: int) -> None:
    """Let the disk begin with what will be read."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, num_bytes, os.POSIX_FADV_WILLNEED)


def drops(descriptor: int) -> bool:
    """Whether the start of a file that was just dropped is really gone from memory."""
    if not hasattr(os, "posix_fadvise") or not _ONLY_CACHED:
        return False
    try:
        return os.preadv(descriptor, [bytearray(_BLOCK_BYTES)], 0, _ONLY_CACHED) == 0
    except BlockingIOError:
        return True
    except OSError:  # this file system cannot be asked
        return False
