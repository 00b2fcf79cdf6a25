"""Finished measurements: one JSON object a line, on disk before the next peer runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks import lines
from benchmarks.peers.plan import PEERS, Kind
from index_store.errors import InputError

NAME = "peers.jsonl"
Status = Literal["measured", "not installable", "failed", "not run"]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one peer."""

    name: str
    """Of the Peer."""
    status: Status
    reason: str = ""
    """Why it was not measured."""
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    """CPU seconds by part; see the module of its kind."""
    agreement: Mapping[str, float] = field(default_factory=dict)
    """How its output compares with the reference; see the module of its kind."""
    same: bool = False
    """Whether that counts as the same output."""
    scale: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the scale of its kind."""


def read_results(work: Path) -> list[Result]:
    """The lines so far. Raises InputError for lines that mean something else."""
    path = work / NAME
    if not path.exists():
        return []
    found = []
    for number, fields in lines.read(path):
        try:
            found.append(Result(**fields))
        except TypeError as error:
            raise InputError(
                f"{path}, line {number} is not a result of this benchmark ({error}); move it away"
            ) from error
    return found


def append(work: Path, result: Result) -> None:
    """Add a line, durably."""
    lines.append(work / NAME, asdict(result))


def by_name(results: Sequence[Result], scale: Mapping[str, Any]) -> dict[str, Result]:
    """Name -> its last result at this scale."""
    return {result.name: result for result in results if result.scale == scale}


def last_scales(results: Sequence[Result]) -> dict[Kind, Mapping[str, Any]]:
    """Kind -> the scale at which it was measured last, so that running one kind keeps the other tables."""
    return {PEERS[result.name].kind: result.scale for result in results if result.name in PEERS}
