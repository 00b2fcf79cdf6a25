"""Finished rows: one JSON object a line, on disk before the next row begins."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import lines
from benchmarks.methods.cost import Cost
from benchmarks.methods.plan import Row, Scale, config_of
from index_store.errors import InputError
from stages.training.config import TrainConfig

NAME = "methods.jsonl"


@dataclass(frozen=True, slots=True)
class Found:
    """How well one direction works, percent of the queries."""

    at_1: float
    at_5: float
    broad_at_1: float
    """The same text tower without the method."""
    ceiling: float
    """With a right answer among the K candidates."""


@dataclass(frozen=True, slots=True)
class Result:
    """One line."""

    label: str
    form: str
    scale: Mapping[str, Any]
    """Fields of Scale."""
    config: Mapping[str, Any]
    """Fields of the TrainConfig; empty where nothing was trained."""
    t2v: Found
    v2t: Found
    cost: Cost
    """From the stored tokens."""
    prepared: Cost | None
    """From what ``tbpipe prepare`` made of them; None where that saves nothing."""
    bytes_prepared: int
    """Of a video; 0 where nothing is."""
    training_seconds: float
    """CPU time of the process that finished the training; 0 where nothing was trained."""

    @property
    def key(self) -> str:
        """Equal for two results of the same row."""
        return _key(self.label, self.form, self.scale, self.config)


def key_of(row: Row, scale: Scale) -> str:
    """The key that the result of this row has."""
    config = asdict(config_of(row, scale)) if row.form == "trained" else {}
    return _key(row.label, row.form, asdict(scale), config)


_DEFAULTS = asdict(TrainConfig())


def _key(label: str, form: str, scale: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """What an untrained row does not depend on is left out, and fields at their defaults."""
    used = scale if config else {name: scale[name] for name in ("test_videos", "test_seed", "top_k")}
    chosen = {name: value for name, value in config.items() if name not in _DEFAULTS or value != _DEFAULTS[name]}
    return json.dumps([label, form, used, chosen], sort_keys=True)


def read_results(directory: Path) -> list[Result]:
    """The lines so far. Raises InputError for lines that mean something else."""
    path = directory / NAME
    if not path.exists():
        return []
    found = []
    for number, fields in lines.read(path):
        try:
            found.append(_result(fields))
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path}, line {number} is not a result of this benchmark ({error}); move it away"
            ) from error
    return found


def append(directory: Path, result: Result) -> None:
    """Add a line, durably."""
    lines.append(directory / NAME, asdict(result))


def by_row(rows: Sequence[Row], scale: Scale, results: Sequence[Result]) -> dict[str, Result]:
    """Row.key -> its result at this scale, where there is one."""
    by_key = {result.key: result for result in results}
    keys = {row.key: key_of(row, scale) for row in rows}
    return {row: by_key[key] for row, key in keys.items() if key in by_key}


def _result(fields: Mapping[str, Any]) -> Result:
    prepared = None if fields["prepared"] is None else Cost(**fields["prepared"])
    parts = {"t2v": Found(**fields["t2v"]), "v2t": Found(**fields["v2t"]), "cost": Cost(**fields["cost"])}
    return Result(**{**fields, **parts, "prepared": prepared})
