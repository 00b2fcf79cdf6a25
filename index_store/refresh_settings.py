"""The ``[refresh]`` section of ``tbpipe.toml``: what ``tbpipe refresh`` does when the command line says no more."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from index_store.atomic import write_bytes
from index_store.errors import InputError, UsageError, from_os_error
from index_store.settings import expect_keys, read_toml

_SMALL_COUNT = 5
_DEFAULT_PERCENT = 10.0


@dataclass(frozen=True, slots=True)
class DeleteLimit:
    """How many videos one refresh may remove: a number, or a share of the videos that have features."""

    count: int | None = None
    percent: float | None = None

    @classmethod
    def parse(cls, value: object) -> DeleteLimit:
        """``20`` or ``"5%"``. Raises UsageError."""
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value) if isinstance(value, str) else None
        if match is not None and float(match[1]) <= 100:
            return cls(percent=float(match[1]))
        if isinstance(value, str) and re.fullmatch(r"\s*\d+\s*", value):
            return cls(count=int(value))
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(count=value)
        raise UsageError(f"max_deletes is {value!r}, expected a number of videos such as 20, or a share such as 5%")

    def allowed(self, num_videos: int) -> int:
        """How many of ``num_videos`` may go."""
        if self.count is not None:
            return self.count
        if self.percent is not None:
            return int(num_videos * self.percent / 100)
        return max(int(num_videos * _DEFAULT_PERCENT / 100), min(_SMALL_COUNT, num_videos // 2))

    def __str__(self) -> str:
        """As it was written."""
        if self.count is not None:
            return str(self.count)
        return f"{self.percent:g}%" if self.percent is not None else f"{_DEFAULT_PERCENT:g}%"


DEFAULT_DELETE_LIMIT = DeleteLimit()
"""10 %; of few videos up to 5, but no more than half of them."""


@dataclass(frozen=True, slots=True)
class StandingQueries:
    """A file of queries that is answered again when the videos have changed: one table ``[[refresh.queries]]``."""

    queries: Path
    """As ``tbpipe rerank --queries`` takes it; key ``file``."""
    output: Path
    """.trec, .run, .jsonl or .parquet."""
    method: str | None = None
    weights: Path | None = None
    top_k: int = 50


@dataclass(frozen=True, slots=True)
class RefreshSettings:
    """What ``[refresh]`` says; paths are absolute, those in the file are relative to its folder."""

    sources: tuple[Path, ...] = ()
    max_deletes: DeleteLimit = DEFAULT_DELETE_LIMIT
    factory: str | None = None
    """FAISS factory string; None: that of the newest index, Flat for the first."""
    queries: tuple[StandingQueries, ...] = ()


def read_refresh_settings(path: Path) -> RefreshSettings:
    """The ``[refresh]`` section of a ``tbpipe.toml``; the defaults where there is none.

    Raises InputError, naming the key, for a section that cannot be used.
    """
    section = read_toml(path).get("refresh", {}) if path.exists() else {}
    try:
        return _parse(section, path.absolute().parent)
    except UsageError as error:
        raise InputError(f"{path}: {error}") from error


def remember_sources(path: Path, sources: tuple[Path, ...]) -> bool:
    """Write ``[refresh] sources`` into an existing ``tbpipe.toml`` that has no such section; whether it was done.

    Raises NoSpaceError, NotWritableError.
    """
    if "refresh" in read_toml(path):
        return False
    text = path.read_text(encoding="utf-8").rstrip("\n")
    try:
        section = tomli_w.dumps({"refresh": {"sources": [str(source) for source in sources]}})
        content = f"{text}\n\n# What 'tbpipe refresh' looks through.\n{section}".encode()
    except UnicodeEncodeError:  # TOML is UTF-8, names of folders need not be
        return False
    try:
        write_bytes(path, content)
    except OSError as error:
        raise from_os_error(error, path) from error
    return True


def _parse(section: object, folder: Path) -> RefreshSettings:
    table = _table("refresh", section)
    expect_keys("refresh", table, ["sources", "max_deletes", "factory", "queries"], required=set())
    return RefreshSettings(
        sources=tuple(_path("refresh.sources", source, folder) for source in _list("refresh.sources", table)),
        max_deletes=DeleteLimit.parse(table["max_deletes"]) if "max_deletes" in table else DEFAULT_DELETE_LIMIT,
        factory=_text("refresh.factory", table["factory"]) if "factory" in table else None,
        queries=tuple(_queries(entry, folder) for entry in _list("refresh.queries", table)),
    )


def _queries(entry: object, folder: Path) -> StandingQueries:
    where = "refresh.queries"
    table = _table(where, entry)
    expect_keys(where, table, ["file", "output", "method", "weights", "top_k"], required={"file", "output"})
    top_k = table.get("top_k", 50)
    if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
        raise UsageError(f"{where}.top_k is {top_k!r}, expected a whole number above 0")
    return StandingQueries(
        queries=_path(f"{where}.file", table["file"], folder),
        output=_path(f"{where}.output", table["output"], folder),
        method=_text(f"{where}.method", table["method"]) if "method" in table else None,
        weights=_path(f"{where}.weights", table["weights"], folder) if "weights" in table else None,
        top_k=top_k,
    )


def _table(where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{where} is {value!r}, expected a table")
    return value


def _list(where: str, table: dict[str, Any]) -> list[object]:
    value = table.get(where.rpartition(".")[2], [])
    if not isinstance(value, list):
        raise UsageError(f"{where} is {value!r}, expected a list")
    return value


def _text(where: str, value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise UsageError(f"{where} is {value!r}, expected a text")
    return value


def _path(where: str, value: object, folder: Path) -> Path:
    return folder / Path(_text(where, value)).expanduser()
