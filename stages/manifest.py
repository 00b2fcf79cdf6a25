"""Lists of videos: CSV, TSV or JSONL with a column ``path`` and, if wanted, ``key``."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from index_store.errors import InputError
from stages.keys import printable_name

MANIFEST_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl"})


def read_manifest(manifest: Path) -> Iterator[tuple[Path, str]]:
    """(path, key) of every line; paths are relative to the manifest's folder, an empty key means none was given.

    Raises InputError, naming the line, for what is no manifest, and for one without videos.
    """
    rows = _jsonl_rows(manifest) if manifest.suffix.lower() == ".jsonl" else _csv_rows(manifest)
    empty = True
    for line, path, key in rows:
        if not path or "\0" in path:
            raise InputError(
                f"{manifest}, line {line}: 'path' is empty or has a NUL in it; write one video path a line"
            )
        empty = False
        yield manifest.parent / path, key or printable_name(Path(path).as_posix().lstrip("/"))
    if empty:
        raise InputError(
            f"{manifest} lists no video; expected a column 'path' (and, if wanted, 'key') and a line for each video"
        )


def _csv_rows(manifest: Path) -> Iterator[tuple[int, str, str]]:
    delimiter = "\t" if manifest.suffix.lower() == ".tsv" else ","
    try:
        with manifest.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            if "path" not in (reader.fieldnames or []):
                raise InputError(
                    f"{manifest}: no column 'path' in its first line, found {reader.fieldnames}; add that header"
                )
            for row in reader:
                yield reader.line_num, row["path"] or "", row.get("key") or ""
    except csv.Error as error:
        raise InputError(
            f"{manifest}: not readable as CSV ({error}); expected a header with 'path' and a line for each video"
        ) from error
    except OSError as error:
        raise InputError(f"{manifest}: {error.strerror}; check the manifest's path and permissions") from error


def _jsonl_rows(manifest: Path) -> Iterator[tuple[int, str, str]]:
    expected = 'expected one object a line, such as {"path": "a/b.mp4", "key": "b"}'
    try:
        with manifest.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise InputError(f"{manifest}, line {number}: not JSON ({error}); {expected}") from error
                if (
                    not isinstance(row, dict)
                    or not isinstance(row.get("path"), str)
                    or not isinstance(row.get("key", ""), str)
                ):
                    raise InputError(f"{manifest}, line {number}: no text under 'path'; {expected}")
                yield number, row["path"], row.get("key", "")
    except OSError as error:
        raise InputError(f"{manifest}: {error.strerror}; check the manifest's path and permissions") from error
