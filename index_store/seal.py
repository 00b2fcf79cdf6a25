"""The seal of the catalog: SQLite's pages have no checksums, so a file beside it has them, and enough to mend one.

``catalog.seal`` describes ``catalog.sqlite`` and its write-ahead log as the last writer left them: a checksum for every
block of 64 KiB, and for every group of blocks their XOR, from which one lost block of the group comes back. Blocks of
one group lie far apart, so that a damaged stretch of the disk takes one block of many groups and not many of one.

A writer takes the seal away before its first change and puts a new one when it has closed the catalog. So a store
without a seal is not damaged: its last writer was ended, and the next one seals it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from index_store.atomic import replacing, sync
from index_store.errors import DamageError, StoreError, from_os_error
from index_store.layout import Layout

FORMAT = "tbpipe-seal-1"
BLOCK_BYTES = 1 << 16

_GROUP_BLOCKS = 64
_MOST_GROUPS = 1024
"""64 MB of XOR at most: beyond 4 GB of catalog the groups get larger instead."""
_LENGTH_BYTES = 8
_DIGEST_BYTES = 16
_MOST_TRIES = 3


@dataclass(frozen=True, slots=True)
class SealedFile:
    """One file as the writer left it."""

    name: str
    size_bytes: int
    checksums: tuple[str, ...]
    """XXH3-128, hex, of every block; the last one may be short."""


@dataclass(frozen=True, slots=True)
class Seal:
    """The header of a seal."""

    files: tuple[SealedFile, ...]
    parity_checksums: tuple[str, ...]
    """XXH3-128, hex, of the XOR of each group; block i of all files together belongs to group i modulo their number."""
    settings: str = ""
    """The pinned settings as JSON: a second copy of what ``tbpipe.toml`` says under [store]."""
    format: str = FORMAT

    def blocks(self) -> Iterator[Block]:
        """Every block of every file, in order; their places count from 0."""
        place = 0
        for file in self.files:
            for number, checksum in enumerate(file.checksums):
                start = number * BLOCK_BYTES
                yield Block(place, file.name, start, min(BLOCK_BYTES, file.size_bytes - start), checksum)
                place += 1

    def group(self, block: Block) -> int:
        """The group that a block belongs to."""
        return block.place % len(self.parity_checksums)


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a sealed file."""

    place: int
    file: str
    start: int
    size_bytes: int
    checksum: str


@dataclass(frozen=True, slots=True)
class SealReport:
    """What comparing the catalog with its seal gave."""

    is_sealed: bool
    """False: there is no seal, the last writer was ended; nothing else is known then."""
    damaged: list[Block] = field(default_factory=list)
    """Blocks that are not what was sealed, or are missing."""
    wrong_sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """File name -> (bytes found, bytes sealed) where they differ."""
    faults: list[str] = field(default_factory=list)
    """What is wrong with the seal's own bytes."""
    seal: Seal | None = None
    """None: there is none, or nothing of it can be read."""
    parity_start: int = 0
    """Where the parity begins in its file."""

    @property
    def is_whole(self) -> bool:
        """Whether the catalog is known to be what its last writer left."""
        return self.seal is not None and not self.damaged and not self.wrong_sizes


def write_seal(layout: Layout, settings: str = "") -> None:
    """Seal the catalog as it is now; ``settings``: the store's, as JSON.

    Only for the holder of the writer lock, with no connection of its own open.
    """
    paths = [path for path in _sealed_paths(layout) if path.exists()]
    num_groups = _num_groups(sum(-(-path.stat().st_size // BLOCK_BYTES) for path in paths))
    parity = np.zeros((num_groups, BLOCK_BYTES), np.uint8)
    files = []
    place = 0
    for path in paths:
        checksums = []
        for block in _read_blocks(path):
            checksums.append(_checksum(block))
            parity[place % num_groups, : len(block)] ^= np.frombuffer(block, np.uint8)
            place += 1
        files.append(SealedFile(path.name, path.stat().st_size, tuple(checksums)))
    seal = Seal(tuple(files), tuple(_checksum(row.tobytes()) for row in parity), settings)
    header = json.dumps(asdict(seal), sort_keys=True, separators=(",", ":")).encode()
    header += _digest(header)
    length = len(header).to_bytes(_LENGTH_BYTES, "little")
    with replacing(layout.seal_path) as temporary, temporary.open("wb") as stream:
        stream.writelines((length, header, parity.tobytes(), header, length))


@contextlib.contextmanager
def unsealed_while_changing(layout: Layout, settings: str) -> Iterator[Callable[[], None]]:
    """Let a writer change the catalog: what is given must be called before each change, and takes the seal away.

    At the end, with the catalog closed, it is sealed again; not after damage was met, which a new seal would hide, and
    not where the disk refuses: the next writer tries again. A catalog that was not changed keeps its seal.
    """
    is_broken = False

    def before_change() -> None:
        nonlocal is_broken
        if not is_broken:
            break_seal(layout)
            is_broken = True

    try:
        yield before_change
    except DamageError:
        raise
    except BaseException:
        seal_again(layout, settings)
        raise
    seal_again(layout, settings)


def seal_again(layout: Layout, settings: str) -> None:
    """Seal a catalog that has no seal, if the disk has room for one. Only for the holder of the writer lock."""
    if not layout.seal_path.exists():
        with contextlib.suppress(OSError):
            write_seal(layout, settings)


def sealed_settings(layout: Layout) -> str:
    """The settings that the seal has, as JSON; "" where there is no seal, or nothing of it can be read."""
    try:
        seal = _read_seal(layout.seal_path).seal
    except (OSError, StoreError):
        return ""
    return "" if seal is None else seal.settings


def remove_seal(layout: Layout) -> None:
    """Take the seal away, durably: from now on the catalog may change."""
    try:
        layout.seal_path.unlink(missing_ok=True)
        sync(layout.directory)
    except OSError as error:
        raise from_os_error(error, layout.seal_path) from error


def break_seal(layout: Layout) -> None:
    """Compare the catalog with its seal, once more, and take the seal away: what comes after it would be lost damage.

    Raises DamageError, and leaves everything as it is, if the catalog is not what was sealed.
    """
    report = check_seal(layout)
    if report.is_sealed and not report.is_whole:
        where = describe_damage(layout, report)[0]
        raise DamageError(f"{where}; nothing was changed: run 'tbpipe repair --store {layout.directory}'")
    remove_seal(layout)


def check_seal(layout: Layout) -> SealReport:
    """Compare the catalog with its seal; reads both, whole.

    A writer may be at work meanwhile: damage counts only if the seal is still the same after it was found.
    Raises StoreError for a seal of a newer format.
    """
    for _ in range(_MOST_TRIES):
        before = _identity(layout.seal_path)
        report = _compare(layout)
        if not report.is_sealed or report.is_whole or before == _identity(layout.seal_path):
            return report
    return SealReport(is_sealed=False)


def describe_damage(layout: Layout, report: SealReport) -> list[str]:
    """What is wrong, a line for each file or block, with the bytes that differ where the rest of the group tells."""
    found = [
        f"{layout.directory / name} has {size} bytes, {sealed} were sealed"
        for name, (size, sealed) in report.wrong_sizes.items()
    ]
    found += [
        f"{layout.directory / block.file}: {describe_block(layout, report, block)} is not what was written"
        for block in report.damaged
    ]
    return found + [f"{layout.seal_path}: {fault}" for fault in report.faults]


def describe_block(layout: Layout, report: SealReport, block: Block) -> str:
    """Where a damaged block lies, to the byte if it can be restored."""
    text = f"block {block.start // BLOCK_BYTES} (bytes {block.start} to {block.start + block.size_bytes - 1})"
    right = restored_block(layout, report, block)
    if right is None:
        return text
    present = _read_block(layout.directory / block.file, block)
    different = [place for place, pair in enumerate(zip(right, present, strict=False)) if pair[0] != pair[1]]
    return f"byte {block.start + different[0]} in {text}" if len(different) == 1 else text


def restored_block(layout: Layout, report: SealReport, block: Block) -> bytes | None:
    """The bytes that a damaged block had, from the others of its group; None if another one of them is lost too."""
    seal = report.seal
    assert seal is not None
    group = seal.group(block)
    if sum(seal.group(other) == group for other in report.damaged) > 1:
        return None
    with layout.seal_path.open("rb") as stream:
        stream.seek(report.parity_start + group * BLOCK_BYTES)
        content = stream.read(BLOCK_BYTES)
    if _checksum(content) != seal.parity_checksums[group]:
        return None
    bits: NDArray[np.uint8] = np.frombuffer(content, np.uint8).copy()
    for other in seal.blocks():
        if seal.group(other) == group and other != block:
            present = _read_block(layout.directory / other.file, other)
            bits[: len(present)] ^= np.frombuffer(present, np.uint8)
    restored = bits.tobytes()[: block.size_bytes]
    return restored if _checksum(restored) == block.checksum else None


def restore_catalog(layout: Layout, report: SealReport) -> None:
    """Put back every damaged block, in place; only for the holder of the writer lock, when nobody reads.

    Killed in between, what is left to do is done by the next call. Raises DamageError, and changes nothing, when
    something cannot be restored.
    """
    assert report.seal is not None
    restored = [(block, restored_block(layout, report, block)) for block in report.damaged]
    lost = [block for block, content in restored if content is None]
    if lost:
        where = describe_block(layout, report, lost[0])
        raise DamageError(
            f"{layout.directory / lost[0].file}: {where} cannot be restored, another block of its group is damaged too "
            f"({len(lost)} such blocks); restore catalog.sqlite from a copy, or extract into a new directory"
        )
    try:
        for file in report.seal.files:
            _restore_file(layout.directory / file.name, file, restored)
        for path in _sealed_paths(layout):
            if path.name not in {file.name for file in report.seal.files}:
                path.unlink(missing_ok=True)
        sync(layout.directory)
    except OSError as error:
        raise from_os_error(error, layout.catalog_path) from error


def _restore_file(path: Path, file: SealedFile, restored: list[tuple[Block, bytes | None]]) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if os.fstat(descriptor).st_size != file.size_bytes:
            os.ftruncate(descriptor, file.size_bytes)
        for block, content in restored:
            if block.file == file.name and content is not None:
                os.pwrite(descriptor, content, block.start)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _compare(layout: Layout) -> SealReport:
    try:
        report = _read_seal(layout.seal_path)
    except FileNotFoundError:
        return SealReport(is_sealed=False)
    except OSError as error:
        raise StoreError(f"cannot read {layout.seal_path}: {error.strerror}; check its permissions") from error
    seal = report.seal
    if seal is None:
        return report
    sizes = {file.name: file.size_bytes for file in seal.files}
    for path in _sealed_paths(layout):
        found = path.stat().st_size if path.exists() else 0
        if found != sizes.get(path.name, 0):
            report.wrong_sizes[path.name] = (found, sizes.get(path.name, 0))
    report.damaged.extend(
        block
        for block in seal.blocks()
        if _checksum(_read_block(layout.directory / block.file, block)) != block.checksum
    )
    return report


def _read_seal(path: Path) -> SealReport:
    """The header, from whichever of its two copies is right, and what is wrong with the seal's own file."""
    content = path.read_bytes()
    first, last = _framed(content, content[:_LENGTH_BYTES], True), _framed(content, content[-_LENGTH_BYTES:], False)
    faults = [f"its {name} header is damaged" for name, copy in (("first", first), ("last", last)) if copy is None]
    header = first or last
    if header is None:
        return SealReport(is_sealed=True, faults=faults)
    fields = json.loads(header)
    if fields["format"] != FORMAT:
        raise StoreError(
            f"{path} has format {fields['format']}, this tbpipe reads {FORMAT}; use the tbpipe that made it"
        )
    files = tuple(SealedFile(file["name"], file["size_bytes"], tuple(file["checksums"])) for file in fields["files"])
    seal = Seal(files, tuple(fields["parity_checksums"]), fields.get("settings", ""))
    start = _LENGTH_BYTES + len(header) + _DIGEST_BYTES
    for group, checksum in enumerate(seal.parity_checksums):
        piece = content[start + group * BLOCK_BYTES : start + (group + 1) * BLOCK_BYTES]
        if _checksum(piece) != checksum:
            faults.append(f"its parity {group} is damaged")
    expected = 2 * start + BLOCK_BYTES * len(seal.parity_checksums)
    if len(content) != expected:
        faults.append(f"it has {len(content)} bytes, expected {expected}")
    return SealReport(is_sealed=True, faults=faults, seal=seal, parity_start=start)


def _framed(content: bytes, length_bytes: bytes, is_first: bool) -> bytes | None:
    """The header that this length belongs to; None unless its checksum is right."""
    length = int.from_bytes(length_bytes, "little")
    if not _DIGEST_BYTES < length <= len(content) - _LENGTH_BYTES:
        return None
    frame = content[_LENGTH_BYTES:][:length] if is_first else content[:-_LENGTH_BYTES][-length:]
    header, digest = frame[:-_DIGEST_BYTES], frame[-_DIGEST_BYTES:]
    return header if _digest(header) == digest else None


def _sealed_paths(layout: Layout) -> tuple[Path, Path]:
    return layout.catalog_path, layout.catalog_journal_paths[0]


def _num_groups(num_blocks: int) -> int:
    return max(1, min(-(-num_blocks // _GROUP_BLOCKS), _MOST_GROUPS))


def _read_blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(BLOCK_BYTES):
            yield block


def _read_block(path: Path, block: Block) -> bytes:
    """What is there of a block now; shorter, or nothing, where the file ends before or cannot be read."""
    try:
        with path.open("rb", buffering=0) as stream:
            return os.pread(stream.fileno(), block.size_bytes, block.start)
    except OSError:
        return b""


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _checksum(content: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(content)


def _digest(content: bytes) -> bytes:
    return xxhash.xxh3_128_digest(content)
