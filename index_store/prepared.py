"""What methods make of videos alone, computed once: one file for each shard, row for row.

A file has the safetensors format (a JSON header, then contiguous tensors), so that other programs can read it; here
its rows are fetched one by one with ``pread``. Each row has a checksum. A file is written under a temporary name and
renamed when it is whole; it names the SHA-256 of its shard and the digest of everything else that it was computed with.
What does not fit in any of these is not there: whoever reads computes it as if nothing had been prepared.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from index_store.atomic import remove, replacing, write_bytes
from index_store.catalog import DatasetRecord, ShardRecord
from index_store.errors import DamageError, StoreError, from_os_error
from index_store.features import Array, FeatureReader, plan_reads, write_at
from index_store.layout import Layout, is_temporary
from index_store.lock import writer_lock

if TYPE_CHECKING:
    from index_store.snapshot import Snapshot

FORMAT = "tbpipe-prepared-2"
"""Grows when the files change, and when a method's numbers do. 1: rows had BLAKE2b checksums."""

CHECKSUMS = "row_checksums"
"""Name of the tensor uint8 [N, 16] beside the fields; all 0 = this row was not prepared."""

_ABOUT = "about.json"
_CHECKSUM_BYTES = 16
_ALIGNMENT_BYTES = 4096
_READ_BYTES = 4 << 20
"""Read and checked at once: what was just read is still in the cache of a core."""
_MOST_HEADER_BYTES = 1 << 20
_MOST_FILES = 4096
"""Whose checksums are held, some 3 KB each."""
_SUFFIX = ".safetensors"
_DTYPES = {"F32": "<f4", "BOOL": "|b1", "U8": "|u1", "I64": "<i8"}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class PreparedKey:
    """What a set of prepared videos was computed with."""

    method: str
    digest: str
    """SHA-256, hex, of everything that changes a number: store, method, weights, options, kind of device."""

    @property
    def directory_name(self) -> str:
        """Of its directory under ``prepared/``."""
        return f"{self.method}-{self.digest[:16]}"


@dataclass(frozen=True, slots=True)
class PreparedAbout:
    """What people want to know about a set: the content of its ``about.json``. Only ``info`` reads it."""

    method: str
    digest: str
    fingerprint: str
    """The store's."""
    weights: str
    """Path of the weights file; empty without."""
    weights_sha256: str
    """Of that file."""
    device: str
    format: str = FORMAT


@dataclass(frozen=True, slots=True, eq=False)
class PreparedRows:
    """The fields of n videos."""

    fields: dict[str, Array]
    """Each [n, ...]; rows that are not there hold anything."""
    is_there: NDArray[np.bool_]
    """bool [n], False = this video has to be computed."""


class PreparedReader:
    """Reads the prepared rows of one set. Not for two threads at once."""

    def __init__(self, directory: Path, key: PreparedKey, snapshot: Snapshot) -> None:
        self._directory, self._key, self._snapshot = directory, key, snapshot
        self._files: dict[int, _File | None] = {}
        self._reader = FeatureReader(lambda name: directory / name, self._record)
        self._first: _File | None = None
        self._first = next(filter(None, map(self._file, self._shard_ids())), None)

    @property
    def is_empty(self) -> bool:
        """Nothing that fits is there."""
        return self._first is None

    @property
    def row_bytes(self) -> int:
        """Of the fields of one video."""
        return 0 if self._first is None else sum(field.row_bytes for field in self._first.fields)

    @property
    def same(self) -> Mapping[str, str]:
        """Field -> the field that it is the same as, which alone is stored."""
        return {} if self._first is None else self._first.same

    def close(self) -> None:
        """Close every file."""
        self._reader.close()

    def has_file(self, shard_id: int) -> bool:
        """Whether there is a file for a shard that fits it and this set."""
        return self._file(shard_id) is not None

    def count(self, shard_id: int, rows: NDArray[np.int64]) -> int:
        """How many of these rows of a shard are there; what they hold is not looked at."""
        self._forget_many()
        file = self._file(shard_id)
        return 0 if file is None else int(file.is_there[rows].sum())

    def empty(self, num_rows: int) -> dict[str, Array]:
        """Arrays for the fields of so many videos."""
        assert self._first is not None
        return {name: np.empty((num_rows, *shape), dtype) for name, dtype, shape in self._first.specs}

    def read(self, locations: Sequence[tuple[int, int]], out: Mapping[str, Array] | None = None) -> PreparedRows:
        """The rows at ``locations`` (shard, row), in this order. Those that are missing or damaged are not there.

        ``out``: arrays of at least as many rows, made by ``empty``, which are used anew.
        """
        self._forget_many()
        fields = {name: array[: len(locations)] for name, array in (out or self.empty(len(locations))).items()}
        is_there = np.empty(len(locations), np.bool_)
        step = max(1, _READ_BYTES // max(1, self.row_bytes))
        for start in range(0, len(locations), step):
            part = slice(start, start + step)
            is_there[part] = self._read(locations[part], {name: array[part] for name, array in fields.items()})
        return PreparedRows(fields, is_there)

    def _read(self, locations: Sequence[tuple[int, int]], fields: Mapping[str, Array]) -> NDArray[np.bool_]:
        """Fill the fields of some rows; which of them are sound."""
        files = {shard: self._file(shard) for shard in dict.fromkeys(shard for shard, _ in locations)}
        is_there = np.array([_is_there(files[shard], row) for shard, row in locations], np.bool_)
        places = np.flatnonzero(is_there).tolist()
        plan = plan_reads([locations[place] for place in places], places)
        try:
            self._reader.read(plan, fields)
        except (DamageError, StoreError):  # gone since it was looked at, or its disk fails
            return np.zeros_like(is_there)
        for place in places:
            shard, row = locations[place]
            file = files[shard]
            assert file is not None
            found = row_checksum([out[place] for out in fields.values()])
            is_there[place] = found == file.checksums[row].tobytes()
        return is_there

    def _forget_many(self) -> None:
        """Hold the checksums of some files only; not while rows are being read."""
        if len(self._files) > _MOST_FILES:
            self._files.clear()

    def _record(self, shard_id: int) -> ShardRecord:
        file = self._file(shard_id)
        assert file is not None
        return file.record

    def _file(self, shard_id: int) -> _File | None:
        if shard_id not in self._files:
            shard = self._snapshot.shard(shard_id)
            file = None if shard is None else _open_file(self._directory, self._key.digest, shard)
            fits = file is None or self._first is None or file.specs == self._first.specs
            self._files[shard_id] = file if fits else None
        return self._files[shard_id]

    def _shard_ids(self) -> Iterator[int]:
        """Of the files in the directory."""
        for path in sorted(self._directory.iterdir()):
            if path.suffix == _SUFFIX and path.stem.isdecimal():
                yield int(path.stem)


class PreparedWriter:
    """The one who writes a set; made by ``prepared_writer``."""

    def __init__(self, directory: Path, key: PreparedKey, snapshot: Snapshot) -> None:
        self._directory, self._key, self._snapshot = directory, key, snapshot

    def reader(self) -> PreparedReader:
        """What is there now."""
        return PreparedReader(self._directory, self._key, self._snapshot)

    @contextlib.contextmanager
    def file(self, shard: ShardRecord) -> Iterator[PreparedFile]:
        """A new file for ``shard``, which takes the place of the old one at the end of the block."""
        path = self._directory / file_name(shard.id)
        try:
            with replacing(path) as temporary:
                file = PreparedFile(temporary, self._key.digest, shard)
                try:
                    yield file
                finally:
                    file.close()
        except OSError as error:
            raise from_os_error(error, path) from error

    def size_bytes(self) -> int:
        """Of everything in the set."""
        return _size_bytes(self._directory)

    def remove_others(self) -> int:
        """Remove what belongs to no shard of the store; returns how many files."""
        known = {_ABOUT, *(file_name(shard.id) for shard in self._snapshot.shards())}
        others = [path for path in sorted(self._directory.iterdir()) if path.name not in known]
        for path in others:
            remove(path)
        return sum(not is_temporary(path) for path in others)


class PreparedFile:
    """One file that is being written; the first rows that are put say what fields there are."""

    def __init__(self, path: Path, digest: str, shard: ShardRecord) -> None:
        self._digest, self._shard = digest, shard
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._datasets: dict[str, DatasetRecord] = {}

    def put(self, rows: Sequence[int], fields: Mapping[str, Array], same: Mapping[str, str]) -> None:
        """The fields [n, ...] of these rows of the shard; ``same``: fields that are the same as another one."""
        if not self._datasets:
            self._begin(fields, same)
        arrays = {name: np.ascontiguousarray(array) for name, array in fields.items()}
        for number, row in enumerate(rows):
            parts = [arrays[name][number] for name in arrays]
            self._put(CHECKSUMS, row, row_checksum(parts))
            for name, part in zip(arrays, parts, strict=True):
                self._put(name, row, part.data.cast("B") if part.ndim else part.tobytes())

    def close(self) -> None:
        """Close; nothing can be put any more."""
        os.close(self._descriptor)

    def _put(self, name: str, row: int, data: bytes | memoryview) -> None:
        dataset = self._datasets[name]
        assert len(data) == dataset.row_bytes
        write_at(self._descriptor, data, dataset.offset + row * dataset.row_bytes)

    def _begin(self, fields: Mapping[str, Array], same: Mapping[str, str]) -> None:
        """Write the header and give the file its size; rows that are never put stay 0."""
        num_rows, position = self._shard.num_rows, 0
        shapes = [(name, _NAMES[array.dtype], array.shape[1:]) for name, array in fields.items()]
        header: dict[str, Any] = {
            "__metadata__": {
                "format": FORMAT,
                "digest": self._digest,
                "shard_sha256": self._shard.sha256,
                "same": json.dumps(dict(same), sort_keys=True),
            }
        }
        for name, kind, shape in [*shapes, (CHECKSUMS, "U8", (_CHECKSUM_BYTES,))]:
            size = num_rows * _row_bytes(kind, shape)
            offsets = [position, position + size]
            header[name] = {"dtype": kind, "shape": [num_rows, *shape], "data_offsets": offsets}
            position += size
        header["__metadata__"]["checksum"] = _header_checksum(header)
        text = json.dumps(header).encode()
        text += b" " * (-(8 + len(text)) % _ALIGNMENT_BYTES)
        os.ftruncate(self._descriptor, 8 + len(text) + position)
        write_at(self._descriptor, len(text).to_bytes(8, "little") + text, 0)
        self._datasets = {dataset.name: dataset for dataset in _datasets(header, 8 + len(text))}


@contextlib.contextmanager
def prepared_writer(
    layout: Layout, snapshot: Snapshot, about: PreparedAbout, lock_timeout_seconds: float = 0.0
) -> Iterator[PreparedWriter]:
    """Write a set, alone; extract and index may write to the store meanwhile. Raises StoreLockedError."""
    key = PreparedKey(about.method, about.digest)
    directory = layout.prepared_directory / key.directory_name
    try:
        layout.prepared_directory.mkdir(exist_ok=True)
        with writer_lock(layout.prepared_lock_path, lock_timeout_seconds):
            directory.mkdir(exist_ok=True)
            content = (json.dumps(asdict(about), indent=1, sort_keys=True) + "\n").encode()
            if not _holds(directory / _ABOUT, content):
                write_bytes(directory / _ABOUT, content)
            yield PreparedWriter(directory, key, snapshot)
    except OSError as error:
        raise from_os_error(error, directory) from error


def open_prepared(layout: Layout, snapshot: Snapshot, key: PreparedKey) -> PreparedReader | None:
    """What is prepared under ``key``; None where nothing is."""
    directory = layout.prepared_directory / key.directory_name
    try:
        reader = PreparedReader(directory, key, snapshot)
    except OSError:  # not there, or not for us
        return None
    return None if reader.is_empty else reader


def has_prepared(layout: Layout, method: str) -> bool:
    """Whether anything is prepared for a method: by looking at names alone."""
    try:
        return any(path.name.rpartition("-")[0] == method for path in layout.prepared_directory.iterdir())
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class PreparedInfo:
    """What a set takes, and what of it can be used."""

    name: str
    """Of its directory under ``prepared/``."""
    about: PreparedAbout | None
    """None where ``about.json`` is missing or broken."""
    size_bytes: int
    num_prepared: int
    """Of the store's distinct videos."""
    num_distinct: int
    """Videos of the store; copies count once."""


def prepared_sets(layout: Layout, snapshot: Snapshot) -> list[PreparedInfo]:
    """Every set in the store's directory, by name."""
    if not layout.prepared_directory.is_dir():
        return []
    rows = snapshot.rows_by_shard()
    found = []
    for directory in sorted(path for path in layout.prepared_directory.iterdir() if path.is_dir()):
        about = read_about(directory)
        num_prepared = 0
        if about is not None:
            reader = PreparedReader(directory, PreparedKey(about.method, about.digest), snapshot)
            num_prepared = sum(reader.count(shard, of_shard) for shard, of_shard in rows.items())
            reader.close()
        num_distinct = sum(map(len, rows.values()))
        found.append(PreparedInfo(directory.name, about, _size_bytes(directory), num_prepared, num_distinct))
    return found


def file_name(shard_id: int) -> str:
    """Of the prepared rows of a shard: ``00000042.safetensors``."""
    return f"{shard_id:08d}{_SUFFIX}"


def row_checksum(fields: Sequence[Array]) -> bytes:
    """XXH3-128 over one video's fields in the order of the file.

    It finds damage, not forgery. Of 125 KB, which every candidate of every query has: 8 us; BLAKE2b: 150 to 370 us.
    """
    digest = xxhash.xxh3_128()
    for field in fields:
        digest.update((field if field.flags.c_contiguous else np.ascontiguousarray(field)).data)
    return digest.digest()


@dataclass(frozen=True, slots=True, eq=False)
class _File:
    """A file whose header fits."""

    record: ShardRecord
    """With the file's own name, size and datasets."""
    same: dict[str, str]
    checksums: NDArray[np.uint8]
    """uint8 [N, 16]."""
    is_there: NDArray[np.bool_]
    """bool [N]."""

    @property
    def fields(self) -> list[DatasetRecord]:
        """All datasets but the checksums."""
        return [dataset for dataset in self.record.datasets if dataset.name != CHECKSUMS]

    @property
    def specs(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """(name, dtype, shape of a row) of the fields."""
        return [(field.name, field.dtype, field.shape[1:]) for field in self.fields]


def _is_there(file: _File | None, row: int) -> bool:
    return file is not None and bool(file.is_there[row])


def _open_file(directory: Path, digest: str, shard: ShardRecord) -> _File | None:
    """The file of a shard; None for none, or one that is short, broken, or made from something else."""
    path = directory / file_name(shard.id)
    try:
        with path.open("rb") as stream:
            size_bytes = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(_MOST_HEADER_BYTES, size_bytes):
                return None
            header = json.loads(stream.read(length))
            metadata = header["__metadata__"]
            wanted = {"format": FORMAT, "digest": digest, "shard_sha256": shard.sha256}
            wanted["checksum"] = _header_checksum(header)
            if any(metadata[name] != value for name, value in wanted.items()):
                return None
            datasets = tuple(_datasets(header, 8 + length))
            if any(dataset.shape[0] != shard.num_rows for dataset in datasets) or size_bytes != _end(datasets):
                return None
            (of_checksums,) = [dataset for dataset in datasets if dataset.name == CHECKSUMS]
            stream.seek(of_checksums.offset)
            checksums = np.frombuffer(stream.read(shard.num_rows * _CHECKSUM_BYTES), np.uint8)
            checksums = checksums.reshape(shard.num_rows, _CHECKSUM_BYTES)
            same = dict(json.loads(metadata["same"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
    record = ShardRecord(shard.id, path.name, shard.num_rows, size_bytes, digest, "", datasets)
    return _File(record, same, checksums, (checksums != 0).any(1))


def _header_checksum(header: Mapping[str, Any]) -> str:
    """BLAKE2b-128, hex, over everything in a header but this."""
    metadata = {name: value for name, value in header["__metadata__"].items() if name != "checksum"}
    text = json.dumps({**header, "__metadata__": metadata}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=_CHECKSUM_BYTES).hexdigest()


def _datasets(header: Mapping[str, Any], start: int) -> Iterator[DatasetRecord]:
    """Where the tensors of a safetensors header lie in a file whose numbers begin at ``start``."""
    for name, entry in header.items():
        if name != "__metadata__":
            shape = tuple(map(int, entry["shape"]))
            row_bytes = _row_bytes(entry["dtype"], shape[1:])
            begin, end = entry["data_offsets"]
            if end - begin != shape[0] * row_bytes:
                raise ValueError(f"{name} does not fit its own shape")
            yield DatasetRecord(name, _DTYPES[entry["dtype"]], shape, start + begin, row_bytes)


def _end(datasets: Sequence[DatasetRecord]) -> int:
    return max(dataset.offset + dataset.shape[0] * dataset.row_bytes for dataset in datasets)


def _row_bytes(kind: str, shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(_DTYPES[kind]).itemsize


def read_about(directory: Path) -> PreparedAbout | None:
    """What the ``about.json`` of a set says; None where it is missing or broken."""
    try:
        return PreparedAbout(**json.loads((directory / _ABOUT).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _size_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content
