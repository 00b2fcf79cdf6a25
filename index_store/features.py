"""Feature shards: HDF5 files with contiguous datasets, written once, read by ``pread`` at the catalog's offsets.

HDF5 (through h5py, whose only door this is) lays out a shard and writes its structures in memory; the numbers go to
and from the file with plain system calls. So a full disk is an ordinary OSError instead of a library that cannot close
its file, reading needs no HDF5 lock, and any HDF5 program can still open the file.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from index_store.catalog import DatasetRecord, ShardRecord
from index_store.errors import DamageError, StoreError
from index_store.records import ShapeError, VideoFeatures
from index_store.settings import StoreSettings

if TYPE_CHECKING:
    import h5py  # loaded when a shard is written: whoever only reads saves the time and the memory

Array: TypeAlias = NDArray[Any]

_ALIGNMENT_BYTES = 4096
"""Datasets start on a page, which is what the page cache copies."""
_MAX_OPEN_SHARDS = 256
_ONLY_CACHED = getattr(os, "RWF_NOWAIT", 0)
"""Linux can read only what is in memory; elsewhere the first read is an ordinary one."""
_KEPT_BYTES = 1 << 17
"""Of an open shard, datasets up to this size (masks, timestamps) are kept: fetching such rows one by one costs more."""
_THREADED_BYTES = 1 << 23
_NUM_THREADS = 4
"""Measured on two cores, 64 videos of 614 KB in memory: 10.4 ms with one thread, 6.9 with four, 3 % more CPU time."""
_RUNS_ANNOUNCED = 64
"""Measured for the same from a cold disk: 57 ms announced, 93 ms one by one. In memory, announcing costs 7 %."""
_HASH_BLOCK_BYTES = 1 << 20
RESTORE_ADVICE = "restore it from a copy, or extract into a new store directory"


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """One dataset of a shard: its name, numpy dtype with byte order, and the shape of one video's row."""

    name: str
    dtype: str
    row_shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one video in this dataset."""
        return int(np.prod(self.row_shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """What was written: everything that the catalog must know about a shard but its id."""

    num_rows: int
    size_bytes: int
    sha256: str
    datasets: tuple[DatasetRecord, ...]
    checksums: tuple[str, ...]
    """BLAKE2b-128 of every row, hex, in row order."""

    def record(self, shard_id: int, name: str, fingerprint: str) -> ShardRecord:
        """The catalog's record of this shard."""
        return ShardRecord(shard_id, name, self.num_rows, self.size_bytes, fingerprint, self.sha256, self.datasets)


def dataset_specs(settings: StoreSettings) -> tuple[DatasetSpec, ...]:
    """The datasets of every shard made with these settings, in the order that checksums use."""
    frames, tokens, width = settings.token_shape
    quantised = settings.tokens.dtype == "int8"
    place_dtype = "|u1" if settings.place_bytes == 1 else "<u2"
    return (
        DatasetSpec("tokens", "|i1" if quantised else "<f2", (frames, tokens, width)),
        *([DatasetSpec("token_scales", "<f4", (frames, tokens))] if quantised else []),
        *([DatasetSpec("token_places", place_dtype, (frames, tokens))] if settings.tokens.places else []),
        DatasetSpec("frame_mask", "|b1", (frames,)),
        DatasetSpec("timestamps_seconds", "<f8", (frames,)),
        DatasetSpec("frame_embeddings", "<f2", (frames, width)),
        DatasetSpec("pooled", "<f4", (width,)),
    )


def write_shard(path: Path, settings: StoreSettings, features: Sequence[VideoFeatures]) -> ShardInfo:
    """Write the features as a new shard, row i = ``features[i]``; the same features always give the same bytes.

    The caller makes the file durable. Raises ShapeError when features were made with other settings, OSError when the
    disk refuses.
    """
    specs = dataset_specs(settings)
    rows = [_row_arrays(specs, index, video) for index, video in enumerate(features)]
    outline, datasets = _outline(settings, specs, len(rows))
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        os.ftruncate(descriptor, outline.size_bytes)
        for offset, piece in outline.pieces:
            write_at(descriptor, piece, offset)
        for column, dataset in enumerate(datasets):
            for index, row in enumerate(rows):
                write_at(descriptor, row[column].data.cast("B"), dataset.offset + index * dataset.row_bytes)
        sha256 = _file_sha256(descriptor)
    finally:
        os.close(descriptor)
    return ShardInfo(len(rows), outline.size_bytes, sha256, datasets, tuple(map(record_checksum, rows)))


def record_checksum(arrays: Sequence[Array]) -> str:
    """BLAKE2b-128, hex, over one video's rows in the order of ``dataset_specs``."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(array.data.cast("B"))
    return digest.hexdigest()


def _row_arrays(specs: Sequence[DatasetSpec], index: int, video: VideoFeatures) -> list[Array]:
    """One video's arrays in the order of the datasets, with the stored byte order."""
    arrays: list[Array] = []
    for spec in specs:
        array = getattr(video, spec.name)
        if array is None or array.shape != spec.row_shape or array.dtype != np.dtype(spec.dtype):
            found = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
            raise ShapeError(f"{spec.name} of video {index} is {found}, expected {spec.dtype}{list(spec.row_shape)}")
        arrays.append(np.ascontiguousarray(array, dtype=spec.dtype))
    return arrays


class _Outline(io.RawIOBase):
    """A file in memory that keeps only what was written to it, for an HDF5 file whose numbers are not."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, bytes]] = []
        self.size_bytes = 0
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to ``offset`` from the start, from here or from the end."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size_bytes}[whence]
        return self._position

    def tell(self) -> int:
        """The current position."""
        return self._position

    def write(self, data: Any) -> int:
        """Keep ``data`` at the current position."""
        piece = bytes(data)
        self.pieces.append((self._position, piece))
        self._position += len(piece)
        self.size_bytes = max(self.size_bytes, self._position)
        return len(piece)

    def readinto(self, buffer: Any) -> int:
        """Read at the current position; what was never written is zero."""
        view = memoryview(buffer).cast("B")
        start, stop = self._position, self._position + len(view)
        view[:] = bytes(len(view))
        for offset, piece in self.pieces:
            first, last = max(start, offset), min(stop, offset + len(piece))
            if first < last:
                view[first - start : last - start] = piece[first - offset : last - offset]
        self._position = stop
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the size; HDF5 only ever grows a new file."""
        self.size_bytes = self._position if size is None else size
        return self.size_bytes


def _outline(
    settings: StoreSettings, specs: Sequence[DatasetSpec], num_rows: int
) -> tuple[_Outline, tuple[DatasetRecord, ...]]:
    """An HDF5 file without its numbers, and where the numbers go."""
    import h5py

    outline = _Outline()
    with h5py.File(outline, "w", alignment_threshold=_ALIGNMENT_BYTES, alignment_interval=_ALIGNMENT_BYTES) as file:
        file.attrs["format_version"] = np.int64(settings.format_version)
        file.attrs["fingerprint"] = np.bytes_(settings.fingerprint)
        file.attrs["settings_json"] = np.bytes_(settings.canonical_json)
        datasets = tuple(_reserve(file, spec, num_rows) for spec in specs)
    return outline, datasets


def _reserve(file: h5py.File, spec: DatasetSpec, num_rows: int) -> DatasetRecord:
    """Give a dataset its place in the file without writing it."""
    import h5py

    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)  # no clock in the file
    shape = (num_rows, *spec.row_shape)
    dtype = h5py.h5t.py_create(np.dtype(spec.dtype), logical=True)
    dataset = h5py.h5d.create(file.id, spec.name.encode(), dtype, h5py.h5s.create_simple(shape), creation)
    return DatasetRecord(spec.name, spec.dtype, shape, dataset.get_offset(), spec.row_bytes)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """All of ``data`` at ``offset``; a full disk may take only a part of it before it refuses."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, memoryview(data)[done:], offset + done)


def _file_sha256(descriptor: int) -> str:
    """SHA-256 of the whole file, hex."""
    digest = hashlib.sha256()
    offset = 0
    while block := os.pread(descriptor, _HASH_BLOCK_BYTES, offset):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()


_Run: TypeAlias = tuple[int, int, int, int]
"""(shard, row, place, n): n rows of a shard, from ``row`` on, that belong in the result from ``place`` on."""


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """How to fetch a list of rows: every row once, in the order of the disk, neighbours in one call."""

    num_rows: int
    runs: list[_Run]
    copies: list[tuple[int, int]]
    """(from, to) places of rows that were asked for more than once."""


def plan_reads(locations: Sequence[tuple[int, int]], places: Sequence[int] | None = None) -> ReadPlan:
    """Plan to read the rows at ``locations`` (shard, row), which may repeat, into these ``places`` of a result.

    By default into the first ones, in that order.
    """
    runs: list[_Run] = []
    copies = []
    first = (-1, -1, -1, 0)  # of the run that goes on
    before, place_before = (-1, -1), -1
    for index in sorted(range(len(locations)), key=locations.__getitem__):
        location, place = locations[index], index if places is None else places[index]
        if location == before:
            if place != place_before:
                copies.append((place_before, place))
            continue
        before, place_before = location, place
        shard, row = location
        number = row - first[1]
        if shard == first[0] and number == first[3] and place - first[2] == number:
            first = (*first[:3], number + 1)
            runs[-1] = first
        else:
            first = (shard, row, place, 1)
            runs.append(first)
    return ReadPlan(len(locations), runs, copies)


class FeatureReader:
    """Reads rows of committed shards straight into arrays. Several threads may read at once."""

    def __init__(self, path_of: Callable[[str], Path], shard_by_id: Callable[[int], ShardRecord]) -> None:
        """path_of: where the file with a shard's name lies."""
        self._path_of = path_of
        self._shard_by_id = shard_by_id
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._open_lock = threading.Lock()
        self._threads = ThreadPoolExecutor(_NUM_THREADS, "tbpipe-read")  # starts none before it is used

    def read(self, plan: ReadPlan, out: Mapping[str, Array]) -> None:
        """Fill ``out``, an array [n, ...] for the name of each dataset that is wanted, with rows of these datasets.

        Raises DamageError when a shard is missing or not as long as the catalog says.
        """
        if not plan.runs:
            return
        results = [(name, array.data.cast("B")) for name, array in out.items()]
        if plan.num_rows * sum(array.nbytes // len(array) for array in out.values()) < _THREADED_BYTES:
            self._read_runs(plan.runs, results)
        else:
            step = -(-len(plan.runs) // _NUM_THREADS)
            parts = [plan.runs[start : start + step] for start in range(0, len(plan.runs), step)]
            list(self._threads.map(lambda part: self._read_runs(part, results), parts))
        for source, place in plan.copies:
            for array in out.values():
                array[place] = array[source]

    def close(self) -> None:
        """Close every shard."""
        self._threads.shutdown()
        self._open.clear()

    def _read_runs(self, runs: Sequence[_Run], results: Sequence[tuple[str, memoryview]]) -> None:
        shard, shard_id, num_announced = None, -1, 0
        for index, (run_shard, row, place, num_rows) in enumerate(runs):
            if shard is None or run_shard != shard_id:
                shard, shard_id = self._shard(run_shard), run_shard
                columns = [(*shard.dataset(name), result) for name, result in results]
            for dataset, kept, result in columns:
                size = dataset.row_bytes
                target = result[place * size : (place + num_rows) * size]
                if kept is not None:
                    target[:] = kept[row * size : (row + num_rows) * size]
                    continue
                done = shard.read_cached(dataset, row, target)
                if done < num_rows * size:
                    if index >= num_announced:  # not in memory: let the disk work on what comes next, too
                        num_announced = index + _RUNS_ANNOUNCED
                        self._announce([name for name, _ in results], runs[index + 1 : num_announced])
                    shard.read(dataset, row, target, done)

    def _announce(self, names: Sequence[str], runs: Iterable[_Run]) -> None:
        for shard_id, row, _, num_rows in runs:
            shard = self._shard(shard_id)
            for name in names:
                shard.announce(name, row, num_rows)

    def _shard(self, shard_id: int) -> _OpenShard:
        with self._open_lock:
            shard = self._open.get(shard_id)
            if shard is None:
                record = self._shard_by_id(shard_id)
                shard = self._open[shard_id] = _OpenShard(self._path_of(record.name), record)
                if len(self._open) > _MAX_OPEN_SHARDS:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(shard_id)
            return shard


class _OpenShard:
    """One open feature file. It closes when nobody reads from it, so another thread may drop it at any time."""

    def __init__(self, path: Path, record: ShardRecord) -> None:
        self._datasets = {dataset.name: dataset for dataset in record.datasets}
        self._used: dict[str, tuple[DatasetRecord, memoryview | None]] = {}
        self._path = path
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
            size_bytes = os.fstat(self._descriptor).st_size
        except FileNotFoundError as error:
            raise DamageError(f"{path} is missing; {RESTORE_ADVICE}") from error
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}; check its permissions and its disk") from error
        if size_bytes != record.size_bytes:
            raise DamageError(f"{path} has {size_bytes} bytes, {record.size_bytes} were written; {RESTORE_ADVICE}")

    def __del__(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def dataset(self, name: str) -> tuple[DatasetRecord, memoryview | None]:
        """Where it lies in the file; and all bytes of a small one, which is read once, or None."""
        if name not in self._used:
            dataset = self._datasets[name]
            content = memoryview(bytearray(_size_bytes(dataset))) if _is_small(dataset) else None
            if content is not None:
                self.read(dataset, 0, content)
            self._used[name] = dataset, content
        return self._used[name]

    def read_cached(self, dataset: DatasetRecord, row: int, target: memoryview) -> int:
        """Fill ``target`` with what is in memory of consecutive rows from ``row`` on; returns how many bytes."""
        try:
            return os.preadv(self._descriptor, [target], dataset.offset + row * dataset.row_bytes, _ONLY_CACHED)
        except OSError:  # nothing there, or a file system that cannot tell; read() meets and reports a real error
            return 0

    def announce(self, name: str, row: int, num_rows: int) -> None:
        """Let the system fetch rows ahead of ``read``; a small dataset is read as a whole."""
        dataset = self._datasets[name]
        if not _is_small(dataset):
            offset, size = dataset.offset + row * dataset.row_bytes, num_rows * dataset.row_bytes
            os.posix_fadvise(self._descriptor, offset, size, os.POSIX_FADV_WILLNEED)

    def read(self, dataset: DatasetRecord, row: int, target: memoryview, done: int = 0) -> None:
        """Fill ``target`` with consecutive rows from ``row`` on; its first ``done`` bytes are there already."""
        start = dataset.offset + row * dataset.row_bytes
        while done < len(target):
            try:
                more = os.preadv(self._descriptor, [target[done:]], start + done)
            except OSError as error:
                where = f"{self._path} cannot be read at byte {start + done}"
                raise DamageError(f"{where} ({error.strerror}); {RESTORE_ADVICE}") from error
            if not more:
                raise DamageError(f"{self._path} ends at byte {start + done}, inside row {row}; {RESTORE_ADVICE}")
            done += more


def _is_small(dataset: DatasetRecord) -> bool:
    """Whether it is kept once its shard is open."""
    return _size_bytes(dataset) <= _KEPT_BYTES


def _size_bytes(dataset: DatasetRecord) -> int:
    return dataset.shape[0] * dataset.row_bytes
