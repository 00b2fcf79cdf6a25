"""The three files of one index generation, and the manifest that vouches for the other two.

index.faiss    the CPU form of the index, inner product; any FAISS reads it
ids.npy        int64 [rows], the video id of each row; -1 = a row that no video has any more
manifest.json  sizes and SHA-256 of both, fingerprint, factory, commit number
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index_store.errors import DamageError, StoreError
from index_store.layout import FORMAT_VERSION

INDEX_FILE = "index.faiss"
IDS_FILE = "ids.npy"
MANIFEST_FILE = "manifest.json"

READ_BYTES = 1 << 22
"""What is read and hashed at once."""
_REMEDY = "run 'tbpipe index' to build the index again"


@dataclass(frozen=True, slots=True)
class FileDigest:
    """What a file must look like."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Recall:
    """How much of the exact answer an approximate index gives, measured on vectors of its own."""

    at: int
    """k: of the k nearest vectors, the share that is among the k found."""
    value: float
    num_queries: int


@dataclass(frozen=True, slots=True)
class IndexManifest:
    """The content of ``manifest.json``."""

    format_version: int
    fingerprint: str
    """Of the store whose vectors these are."""
    commit_number: int
    """The commit of the store whose videos the index holds."""
    factory: str
    """What FAISS was asked to build."""
    search_parameters: str
    """FAISS parameter string such as ``nprobe=8``; empty when the factory has none."""
    num_vectors: int
    """Videos that can be found; the index may have rows of others, which are dead."""
    dim: int
    recall: Recall | None
    """None when the index is exact. Measured when it was last built anew."""
    index: FileDigest
    ids: FileDigest
    num_built: int
    """Vectors when it was last built anew, and trained; the rows behind them were added since."""

    def to_json(self) -> str:
        """JSON text with one field a line; the last one is the SHA-256 of the text without it."""
        fields = dataclasses.asdict(self)
        fields["checksum"] = hashlib.sha256(json.dumps(fields, indent=1).encode()).hexdigest()
        return json.dumps(fields, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> IndexManifest:
        """The manifest that ``to_json`` wrote; raises ValueError, TypeError or KeyError for anything else."""
        fields = json.loads(text)
        checksum = fields.pop("checksum", "")  # early manifests have none
        fields["index"], fields["ids"] = FileDigest(**fields["index"]), FileDigest(**fields["ids"])
        fields["recall"] = None if fields["recall"] is None else Recall(**fields["recall"])
        fields.setdefault("num_built", fields["num_vectors"])  # before indexes were updated, all were built anew
        manifest = cls(**fields)
        if checksum and text != manifest.to_json():
            raise ValueError("its checksum differs")
        return manifest

    def write(self, directory: Path) -> None:
        """Write it beside the files that it vouches for."""
        (directory / MANIFEST_FILE).write_text(self.to_json(), encoding="utf-8")


def read_manifest(directory: Path) -> IndexManifest:
    """The manifest of a generation. Raises DamageError where it is missing or broken, StoreError for a newer format."""
    path = directory / MANIFEST_FILE
    try:
        manifest = IndexManifest.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DamageError(f"{path} cannot be read ({first_line(error)}); {_REMEDY}") from error
    if manifest.format_version != FORMAT_VERSION:
        raise StoreError(
            f"{directory} has format {manifest.format_version}, this tbpipe reads {FORMAT_VERSION}; "
            "run 'tbpipe index' again"
        )
    return manifest


def read_ids(directory: Path, manifest: IndexManifest) -> NDArray[np.int64]:
    """The video id of each row, int64 [rows]. Raises DamageError unless the file is what was written."""
    path = directory / IDS_FILE
    check_file(path, manifest.ids)
    try:
        ids: NDArray[np.int64] = np.load(path, allow_pickle=False)
    except ValueError as error:  # the bytes are right, so they were written wrong
        raise DamageError(f"{path} is no array ({first_line(error)}); {_REMEDY}") from error
    if ids.ndim != 1 or ids.dtype != np.int64:
        raise DamageError(f"{path} holds {ids.dtype}{list(ids.shape)}, expected int64[rows]; {_REMEDY}")
    return ids


def write_ids(directory: Path, ids: NDArray[np.int64]) -> FileDigest:
    """Write ``ids.npy``."""
    with hashed(directory / IDS_FILE) as (write, digest):
        np.lib.format.write_array(_Written(write), ids, allow_pickle=False)
    return digest()


def check_file(path: Path, expected: FileDigest, every_byte: bool = True) -> None:
    """Raise DamageError unless the file is what was written, or (without ``every_byte``) as long."""
    with CheckedFile(path, expected) as file:
        while every_byte and file.read(READ_BYTES):
            pass


class CheckedFile:
    """Reads a file from its start to its end, and raises DamageError at the end unless it is what was written.

    At once where it is missing or has another length.
    """

    def __init__(self, path: Path, expected: FileDigest) -> None:
        self._path = path
        self._expected = expected
        self._digest = hashlib.sha256()
        try:
            self._handle = path.open("rb")
            size_bytes = path.stat().st_size
        except OSError as error:
            raise self._unreadable(error) from error
        if size_bytes != expected.size_bytes:
            self._handle.close()
            raise DamageError(f"{path} has {size_bytes} bytes, {expected.size_bytes} were written; {_REMEDY}")
        self._remaining = size_bytes

    def __enter__(self) -> CheckedFile:
        """Nothing more: it is open."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self._handle.close()

    def read(self, num_bytes: int) -> bytes:
        """The next ``num_bytes``, fewer at the end of the file and b"" behind it."""
        try:
            content = self._handle.read(min(num_bytes, self._remaining))
        except OSError as error:
            raise self._unreadable(error) from error
        self._digest.update(content)
        self._remaining -= len(content)
        is_end = not self._remaining or not content
        if is_end and (self._remaining or self._digest.hexdigest() != self._expected.sha256):
            raise DamageError(f"{self._path} is not what was written (its SHA-256 differs); {_REMEDY}")
        return content

    def _unreadable(self, error: OSError) -> DamageError:
        return DamageError(f"{self._path} cannot be read ({error.strerror}); {_REMEDY}")


@contextlib.contextmanager
def hashed(path: Path) -> Iterator[tuple[Callable[[bytes], int], Callable[[], FileDigest]]]:
    """A function that appends to the new file ``path`` and one that says, after the block, what was written."""
    digest = hashlib.sha256()
    size_bytes = 0
    with path.open("wb") as handle:

        def write(content: bytes) -> int:
            nonlocal size_bytes
            digest.update(content)
            size_bytes += len(content)
            return handle.write(content)

        yield write, lambda: FileDigest(size_bytes, digest.hexdigest())


class _Written:
    """What np.lib.format needs of a file."""

    def __init__(self, write: Callable[[bytes], int]) -> None:
        self.write = write


def first_line(error: Exception) -> str:
    """The end of a message of FAISS, which begins with a C++ signature."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].rsplit(": ", 1)[-1].strip()[:200]
