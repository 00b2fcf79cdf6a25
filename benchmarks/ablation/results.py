"""Finished trials: one JSON object a line, on disk before the next trial begins."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import lines
from benchmarks.ablation.plan import Scale, Trial
from index_store.errors import InputError
from stages.training.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Recalls:
    """What one direction found on the test videos."""

    broad: Mapping[str, float]
    """R@1, R@5, R@10 in percent."""
    focused: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Result:
    """One line."""

    table: str
    label: str
    scale: Mapping[str, Any]
    """Fields of Scale."""
    config: Mapping[str, Any]
    """Fields of the TrainConfig that tbpipe had when the trial ran."""
    steps: int
    num_videos: int
    """Training videos, those for validation among them."""
    num_test_videos: int
    t2v: Recalls
    v2t: Recalls
    seconds: float
    """Of the process that finished the trial."""

    @property
    def key(self) -> str:
        """Equal for two results of the same trial."""
        return _key(self.scale, self.config)


def key_of(scale: Scale, config: TrainConfig) -> str:
    """The key that the result of this training has."""
    return _key(asdict(scale), asdict(config))


_DEFAULTS = asdict(TrainConfig())


def _key(scale: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Fields at their defaults are left out: results stay when TrainConfig gets another field."""
    chosen = {name: value for name, value in config.items() if name not in _DEFAULTS or value != _DEFAULTS[name]}
    return json.dumps([scale, chosen], sort_keys=True)


def results_path(directory: Path, part: tuple[int, int]) -> Path:
    """Where the process that does part i of n writes: two never write to one file."""
    number, count = part
    return directory / ("results.jsonl" if count == 1 else f"results-{number}-of-{count}.jsonl")


def append(path: Path, result: Result) -> None:
    """Add a line, durably; a line that a kill has cut stays a line of its own."""
    lines.append(path, asdict(result))


def read_results(directory: Path) -> list[Result]:
    """The lines of all processes, without those that a kill has cut. Raises InputError for lines that mean another."""
    return [result for path in sorted(directory.glob("results*.jsonl")) for result in _read(path)]


def _read(path: Path) -> list[Result]:
    found = []
    for number, fields in lines.read(path):
        try:
            found.append(Result(**fields | {name: Recalls(**fields[name]) for name in ("t2v", "v2t")}))
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path}, line {number} is not a result of this benchmark ({error}); move it away"
            ) from error
    return found


def missing(trials: Sequence[Trial], scale: Scale, results: Sequence[Result]) -> list[Trial]:
    """The trials that have no result yet."""
    finished = {result.key for result in results}
    return [trial for trial in trials if key_of(scale, trial.config) not in finished]
