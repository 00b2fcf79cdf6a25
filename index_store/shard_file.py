"""One shard file looked at without trust: whether it is what was written, and which of its rows still are.

FeatureReader serves a shard that is whole; this is for one that may not be.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from index_store.catalog import ShardRecord
from index_store.features import Array, dataset_specs, record_checksum
from index_store.records import VideoFeatures
from index_store.settings import StoreSettings

MISSING = "is missing"
FORBIDDEN = "may not be read"

_BLOCK_BYTES = 1 << 20


def file_fault(path: Path, size_bytes: int, sha256: str, read_data: bool) -> str:
    """What is wrong with a file: its size, or with ``read_data`` any byte of it; "" when nothing is."""
    try:
        found = path.stat().st_size
        if found != size_bytes:
            return f"has {found} bytes, {size_bytes} were written"
        if read_data and file_sha256(path) != sha256:
            return "is not what was written (its SHA-256 differs)"
    except FileNotFoundError:
        return MISSING
    except PermissionError:
        return FORBIDDEN
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return ""


class ShardRows:
    """The rows of a shard file that may be damaged; made by ``shard_rows``."""

    def __init__(self, descriptor: int, record: ShardRecord, settings: StoreSettings) -> None:
        self._descriptor = descriptor
        by_name = {dataset.name: dataset for dataset in record.datasets}
        # checksums use this order, which need not be that of the file
        self._datasets = [by_name[spec.name] for spec in dataset_specs(settings)]

    def read(self, row: int) -> dict[str, Array] | None:
        """One row of every dataset, whatever it holds; None where the file ends before or cannot be read."""
        found = {}
        for dataset in self._datasets:
            try:
                content = os.pread(self._descriptor, dataset.row_bytes, dataset.offset + row * dataset.row_bytes)
            except OSError:
                return None
            if len(content) != dataset.row_bytes:
                return None
            found[dataset.name] = np.frombuffer(content, dataset.dtype).reshape(dataset.shape[1:])
        return found

    def is_intact(self, row: int, checksum: str) -> bool:
        """Whether a row is what was committed with this checksum."""
        found = self.read(row)
        return found is not None and record_checksum(list(found.values())) == checksum

    def features(self, row: int) -> VideoFeatures | None:
        """One row as features; None where it cannot be read."""
        found = self.read(row)
        if found is None:
            return None
        scales = found.pop("token_scales", None)
        return VideoFeatures(token_scales=scales, **found)


@contextlib.contextmanager
def shard_rows(path: Path, record: ShardRecord, settings: StoreSettings) -> Iterator[ShardRows]:
    """Read rows of a file that may be damaged or missing."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        descriptor = -1  # every read fails
    try:
        yield ShardRows(descriptor, record, settings)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
