"""Prepared sets looked at without trust: which of their files hold something that is not what was written.

Nothing is lost with them: whoever reads a damaged row computes it from the shard. So this only saves that time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from index_store.layout import Layout
from index_store.prepared import FORMAT, PreparedKey, PreparedReader, file_name, read_about

if TYPE_CHECKING:
    from index_store.snapshot import Snapshot


class PreparedFault(NamedTuple):
    """A file of which something cannot be used."""

    path: str
    """Relative to the store."""
    record: str
    found: str


def prepared_faults(layout: Layout, snapshot: Snapshot) -> Iterator[PreparedFault]:
    """Every damaged file of the sets that this version and this store can use; reads them whole."""
    if not layout.prepared_directory.is_dir():
        return
    for directory in sorted(path for path in layout.prepared_directory.iterdir() if path.is_dir()):
        name = f"{layout.prepared_directory.name}/{directory.name}"
        about = read_about(directory)
        if about is None or PreparedKey(about.method, about.digest).directory_name != directory.name:
            yield PreparedFault(name, "about.json", "is missing or broken")
        elif about.format == FORMAT and about.fingerprint == snapshot.settings.fingerprint:
            yield from _faults(directory, name, PreparedKey(about.method, about.digest), snapshot)


def _faults(directory: Path, name: str, key: PreparedKey, snapshot: Snapshot) -> Iterator[PreparedFault]:
    reader = PreparedReader(directory, key, snapshot)
    try:
        for shard in snapshot.shards():
            file = directory / file_name(shard.id)
            if not file.is_file():
                continue
            rows = np.arange(shard.num_rows)
            path = f"{name}/{file.name}"
            if not reader.has_file(shard.id):
                yield PreparedFault(path, f"shard {shard.id}", "cannot be used: it is damaged, or of another shard")
                continue
            announced = np.array([reader.count(shard.id, rows[row : row + 1]) for row in rows.tolist()], np.bool_)
            found = reader.read([(shard.id, row) for row in rows.tolist()]).is_there
            wrong = np.flatnonzero(announced & ~found).tolist()
            if wrong:
                yield PreparedFault(path, f"rows {', '.join(map(str, wrong))}", "not what was written")
    finally:
        reader.close()
