"""The paper's tables, and the trials that fill them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stages.synthetic.families import FAMILIES, GROUP_SIZE, RELATIVE
from stages.training.config import PRESETS, TrainConfig

_BASE = replace(PRESETS["small"], validation_run=GROUP_SIZE)
"""Groups stay whole: a caption that compares is right within the whole group only."""
_VALIDATIONS = 4
"""In a trial. Training gives up after more than that without a better one, so every trial has all its steps."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What all trials of an ablation have in common."""

    videos: int
    """Training videos; TrainConfig.validation of them choose the best weights."""
    test_videos: int
    test_seed: int
    steps: int
    """Of training, in each trial."""
    start: str = ""
    """SHA-256 of the weights whose text tower every trial begins with; empty: the small model's own."""
    families: tuple[str, ...] = tuple(FAMILIES)
    """Of near-duplicates, in training and test."""


@dataclass(frozen=True, slots=True)
class Table:
    """One thing that is varied."""

    title: str
    rows: Mapping[str, Mapping[str, Any]]
    """Label -> what its TrainConfig has that the baseline's has not."""
    choice: str
    """Label of the form that the paper uses."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """Label -> the paper's R@1 from text to video, MSR-VTT, ViT-B/32; empty where no number is known."""

    @property
    def paper_best(self) -> tuple[str, ...]:
        """The labels of the paper's best rows; of a table without numbers, its choice."""
        return tuple(label for label, value in self.paper.items() if value == max(self.paper.values())) or (
            self.choice,
        )


@dataclass(frozen=True, slots=True)
class Trial:
    """One training run with its evaluation."""

    table: str
    """The first of the tables that need it."""
    label: str
    config: TrainConfig


def _candidates(number: int) -> dict[str, Any]:
    """K of training; lists of more candidates are scored fewer at once, in as much memory."""
    return {
        "num_candidates": number,
        "micro_lists": min(_BASE.micro_lists, _BASE.micro_lists * _BASE.num_candidates // number),
    }


TABLES: dict[str, Table] = {
    "M": Table(
        "query indicators",
        {str(number): {"num_indicators": number} for number in (2, 3, 4, 5, 6)},
        choice="4",
        paper={"2": 50.6, "3": 51.2, "4": 52.5, "5": 52.0, "6": 50.2},
    ),
    "K": Table(
        "candidates, in training and in use",
        {str(number): _candidates(number) for number in (5, 10, 15, 20, 40)},
        choice="10",
        paper={"5": 52.1, "10": 52.5, "15": 52.4, "20": 52.4, "40": 51.3},
    ),
    "blocks": Table(
        "of the fusion network",
        {str(number): {"num_blocks": number} for number in (1, 2, 3)},
        choice="1",
        paper={"1": 52.5, "2": 52.5, "3": 52.3},
    ),
    "head": Table(
        "what makes Delta",
        {"equivariant": {}, "positional": {"head": "positional"}},
        choice="positional",
    ),
    "gumbel": Table(
        "noise on the attention",
        {"0": {}, "1": {"gumbel": 1.0}},
        choice="1",
    ),
    "broad": Table(
        "the losses",
        {"broad and focused": {}, "broad only": {"focused": False}},
        choice="broad and focused",
    ),
    "listwise": Table(
        "what a score depends on",
        {"all candidates": {}, "one candidate": {"is_listwise": False}},
        choice="all candidates",
    ),
}
"""The baseline (M = 4, K = 10, one block, equivariant, no noise) is a row of each."""


def config_of(table: str, label: str, scale: Scale, seed: int) -> TrainConfig:
    """The training of a row with this seed, at this scale. Candidates come from as many videos as in the test.

    Relative captions are trained with whole groups, of which there are as many candidates as a group has videos, and
    from text to video only: what rank a video has, it alone does not show.
    """
    num_trained_on = scale.videos - round(_BASE.validation * scale.videos)
    relative = set(scale.families) & set(RELATIVE)
    base = replace(_BASE, num_candidates=GROUP_SIZE, pool_run=GROUP_SIZE, neighbours=0) if relative else _BASE
    return replace(
        base,
        epochs=(scale.steps - 0.5) * _BASE.batch_size / num_trained_on,  # is rounded up to whole steps
        evaluate_every=math.ceil(scale.steps / _VALIDATIONS),
        seed=seed,
        pool=scale.test_videos,
        v2t=not relative,
        **TABLES[table].rows[label],
    )


def plan(tables: Sequence[str], scale: Scale, num_seeds: int) -> list[Trial]:
    """Every distinct trial once. All tables for one seed, then for the next: a cut run has whole tables."""
    trials: dict[TrainConfig, Trial] = {}
    for seed in range(num_seeds):
        for table in tables:
            for label in TABLES[table].rows:
                config = config_of(table, label, scale, seed)
                trials.setdefault(config, Trial(table, label, config))
    return list(trials.values())
