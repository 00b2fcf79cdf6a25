"""The checks of ``tbpipe doctor`` that look at one store. They only read."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from index_store.errors import DamageError, NoSpaceError, NotWritableError
from index_store.layout import FORMAT_VERSION
from index_store.settings import StoreSettings
from index_store.snapshot import Snapshot
from index_store.store import Store
from index_store.verify import verify
from pipeline.jobs.doctor import Check, TroubleError, attempt, free_bytes
from pipeline.printing import size

_LEAST_FREE_BYTES = 1 << 30
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "fuse.sshfs", "ceph", "lustre", "glusterfs"}
_NUM_SEARCHED = 20
_ROUNDING = 1e-5


def check_store(directory: Path) -> Iterator[Check]:
    """Every check of a store; only the first where there is none."""
    opened = attempt("store", lambda: _opened(directory))
    yield opened
    if opened.state == "failed":
        return
    store = Store.open(directory)
    yield attempt("disk", lambda: _disk(store.directory, store.settings))
    yield attempt("integrity", lambda: _integrity(store))
    yield attempt("weights", lambda: _weights(store.settings))
    yield attempt("index", lambda: _index(store))
    yield attempt("self-test", lambda: _search(store))
    yield attempt("videos", lambda: _videos(store))


def _opened(directory: Path) -> str:
    settings = Store.open(directory).settings
    return f"format {FORMAT_VERSION}, {settings.model.name}, fingerprint {settings.fingerprint[:16]}"


def _disk(directory: Path, settings: StoreSettings) -> str:
    free = free_bytes(directory)
    found = f"{size(free)} free, room for {free // settings.bytes_per_video} videos"
    if free < _LEAST_FREE_BYTES:
        raise TroubleError(found, "free some space, or move the store to a larger disk", NoSpaceError.exit_code)
    kind = _file_system(directory)
    if kind in _NETWORK:
        remedy = "keep the store on a local disk: SQLite's log does not work between machines"
        raise TroubleError(f"{found}; on a network file system ({kind})", remedy, state="note")
    if not os.access(directory, os.W_OK):
        remedy = "nothing, if you only search; otherwise change the permissions or the mount"
        raise TroubleError(f"{found}; it can only be read", remedy, NotWritableError.exit_code, "note")
    return found


def _file_system(directory: Path) -> str:
    """The kind of file system that a directory lies on; "" where the system does not tell."""
    try:
        lines = Path("/proc/self/mounts").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    mounts = {fields[1].replace("\\040", " "): fields[2] for fields in map(str.split, lines)}
    resolved = directory.resolve()
    return next((mounts[str(path)] for path in (resolved, *resolved.parents) if str(path) in mounts), "")


def _integrity(store: Store) -> str:
    report = verify(store.directory)
    if report.problems:
        found = f"{len(report.problems)} problems, first: {report.problems[0]}"
        raise TroubleError(found, _command("repair", store), DamageError.exit_code)
    notes = [note for note in report.notes if not note.startswith("the index")]
    if notes:
        raise TroubleError("; ".join(notes), "nothing, unless it stays so", state="note")
    return "sizes and catalog are as written; 'tbpipe verify --read-data' reads every byte"


def _weights(settings: StoreSettings) -> str:
    pretrained = settings.model.pretrained
    if Path(pretrained).is_absolute() and not Path(pretrained).exists():
        remedy = "give the file with --pretrained; its SHA-256 is checked"
        raise TroubleError(f"{pretrained} is gone", remedy, state="note")
    return pretrained


def _index(store: Store) -> str:
    with store.snapshot() as snapshot:
        newest = snapshot.generation()
        if newest is None:
            raise TroubleError("there is none", _command("index", store), state="note")
        found = f"generation {newest.id}: {newest.num_vectors} vectors, {newest.factory}"
        if newest.commit_number != snapshot.commit_number:
            raise TroubleError(f"{found}; older than the store", _command("index", store), state="note")
        return found


def _search(store: Store) -> str:
    """Stored embeddings must find themselves, or an equal one."""
    from stages.search import open_index

    with store.snapshot() as snapshot:
        if snapshot.generation() is None or not snapshot.num_searchable:
            return "nothing to search yet"
        index = open_index(snapshot)
        vectors = _some_vectors(snapshot)
        scores = index.search(vectors, 1).scores[:, 0]
    own = np.einsum("nd,nd->n", vectors, vectors)
    num_found = int(np.count_nonzero(scores >= own - _ROUNDING))
    found = f"{num_found} of {len(vectors)} stored embeddings find themselves"
    if num_found < len(vectors) and index.is_exact:
        raise TroubleError(found, _command("verify --read-data", store), DamageError.exit_code)
    return found if index.is_exact else f"{found} (the index is approximate: {index.factory})"


def _some_vectors(snapshot: Snapshot) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """The embeddings of the first videos that the store has, float32 [n, D]."""
    row_bytes = 4 * snapshot.settings.embed_dim
    _, vectors = next(iter(snapshot.read_pooled(block_bytes=_NUM_SEARCHED * row_bytes)))
    return vectors


def _videos(store: Store) -> str:
    with store.snapshot() as snapshot:
        counts = snapshot.counts()
    found = ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "none yet"
    if counts["quarantined"]:
        raise TroubleError(found, f"{_command('quarantine', store)} says why for each", state="note")
    return found


def _command(name: str, store: Store) -> str:
    return f"tbpipe {name} --store {shlex.quote(str(store.directory))}"
