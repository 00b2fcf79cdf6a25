"""One index generation looked at without trust: its files against its manifest, its manifest against the catalog."""

from __future__ import annotations

from typing import NamedTuple

from index_store.catalog import GenerationRecord
from index_store.errors import DamageError, StoreError
from index_store.index_files import IDS_FILE, INDEX_FILE, MANIFEST_FILE, read_manifest
from index_store.shard_file import file_fault


class FileFault(NamedTuple):
    """What is wrong with a file."""

    name: str
    found: str


def generation_faults(record: GenerationRecord, read_data: bool) -> list[FileFault]:
    """What is wrong with a generation; with ``read_data`` every byte of it is read. [] when nothing is."""
    if not record.path.is_dir():
        return [FileFault("", "is missing")]
    try:
        manifest = read_manifest(record.path)
    except (DamageError, StoreError) as error:
        where = str(record.path / MANIFEST_FILE)
        return [FileFault(MANIFEST_FILE, str(error).removeprefix(where).split(";")[0].strip())]
    faults = []
    for field in ("num_vectors", "factory", "fingerprint", "commit_number"):
        here, there = getattr(manifest, field), getattr(record, field)
        if here != there:
            faults.append(FileFault(MANIFEST_FILE, f"{field} is {here}, the catalog says {there}"))
    for name, digest in ((INDEX_FILE, manifest.index), (IDS_FILE, manifest.ids)):
        found = file_fault(record.path / name, digest.size_bytes, digest.sha256, read_data)
        if found:
            faults.append(FileFault(name, found))
    return faults
