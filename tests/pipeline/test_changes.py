"""Going through sources and catalog side by side finds what looking each path up would find."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from index_store.catalog import FileRow
from pipeline.changes import find_changes
from stages.walk import ListedFile

PATHS = [
    os.fsdecode(b"/v/" + name)
    for name in (b"a", b"a.mp4", b"a/b", b"b\xff", "é".encode(), b"\xffc", "\U0001f600".encode())
]
FACTS = st.tuples(st.integers(1, 2), st.just(5), st.sampled_from([7, 2**63 + 1]))


def as_stored(path: str, facts: tuple[int, int, int]) -> FileRow:
    size_bytes, mtime_ns, inode = facts
    raw = os.fsencode(path)
    try:
        stored: str | bytes = raw.decode()
    except UnicodeDecodeError:
        stored = raw
    return (stored, size_bytes, mtime_ns, inode if inode < 2**63 else inode - 2**64)


def in_order(row: FileRow) -> tuple[bool, bytes]:
    """As SQLite sorts: text by its UTF-8, then bytes."""
    return isinstance(row[0], bytes), os.fsencode(row[0])


@given(
    known=st.dictionaries(st.sampled_from(PATHS), FACTS),
    there=st.dictionaries(st.sampled_from(PATHS), FACTS),
    size=st.integers(1, 4),
)
def test_every_path_is_sorted_into_its_place(
    known: dict[str, tuple[int, int, int]], there: dict[str, tuple[int, int, int]], size: int
) -> None:
    rows = sorted((as_stored(path, facts) for path, facts in known.items()), key=in_order)
    files: list[ListedFile] = [(path, *there[path]) for path in sorted(there)]
    batches = [(0, files[start : start + size]) for start in range(0, len(files), size)]
    found = find_changes(iter(rows), batches, lambda path, number: path != PATHS[0])
    both = known.keys() & there.keys()
    assert found.num_unchanged == sum(known[path] == there[path] for path in both)
    assert {now.path for _, now in found.changed} == {path for path in both if known[path] != there[path]}
    assert all(os.fsdecode(row[0]) == now.path for row, now in found.changed)
    assert {now.path for now in found.new} == there.keys() - known.keys() - {PATHS[0]}
    assert {os.fsdecode(row[0]) for row in found.missing} == known.keys() - there.keys()
    assert found.num_found.get(0, 0) == len(both)
