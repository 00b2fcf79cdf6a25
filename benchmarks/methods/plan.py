"""The rows of the table, and how each method is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from stages.rerankers import TOKEN_BINDER
from stages.synthetic.families import GROUP_SIZE
from stages.training.config import PRESETS, TrainConfig

Form = Literal["zero-shot", "trained", "shipped"]
"""Without training; trained here; TokenBinder with the weights that ship with tbpipe, which were trained for longer."""

_BASE = replace(PRESETS["small"], validation_run=GROUP_SIZE, validation=0.05, num_draws=50)
"""num_draws: a tenth of the published number of draws for the choice of patches, which is most of that training."""
_VALIDATIONS = 2
"""In a training, besides the one before it."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What all rows have in common."""

    videos: int
    """Training videos; some of them choose the best weights."""
    test_videos: int
    test_seed: int
    steps: int
    """Of each training."""
    top_k: int
    """K."""
    seed: int
    """Of each training."""
    start: str = ""
    """SHA-256 of the weights whose text tower every training begins with."""


@dataclass(frozen=True, slots=True)
class Row:
    """One method in one form."""

    label: str
    method: str
    """As ``--method`` takes it."""
    form: Form
    options: Mapping[str, Any] = field(default_factory=dict)
    """What its TrainConfig has that the others' have not."""

    @property
    def key(self) -> str:
        """Of the row within the table."""
        return f"{self.label}, {self.form}"


_ZERO_SHOT = ("broad", "clip4clip", "ts2-net", "x-clip", "wti", "late-interaction", "ucofia", "eercf")
_TRAINED: dict[str, dict[str, Any]] = {
    "broad": {"method": TOKEN_BINDER, "focused": False},
    "clip4clip meanP": {"method": "clip4clip", "temporal": "none"},
    "clip4clip seqTransf": {"method": "clip4clip"},
    "clip4clip tightTransf": {"method": "clip4clip-tight", "batch_size": _BASE.batch_size // 2},
    "ts2-net": {"method": "ts2-net"},
    "x-clip": {"method": "x-clip"},
    "ucofia": {"method": "ucofia"},
    "eercf": {"method": "eercf"},
    TOKEN_BINDER: {"method": TOKEN_BINDER},
}

ROWS: tuple[Row, ...] = (
    *(Row(name, name, "zero-shot") for name in _ZERO_SHOT),
    *(Row(label, options["method"], "trained", options) for label, options in _TRAINED.items()),
    Row(TOKEN_BINDER, TOKEN_BINDER, "shipped"),
)
"""broad is CLIP alone. wti and late-interaction have no training here; untrained, token-binder ranks as broad does."""


def config_of(row: Row, scale: Scale) -> TrainConfig:
    """The training of a row at this scale. Candidates come from as many videos as in the test."""
    config = replace(_BASE, **row.options)
    num_trained_on = scale.videos - round(config.validation * scale.videos)
    return replace(
        config,
        epochs=(scale.steps - 0.5) * config.batch_size / num_trained_on,  # is rounded up to whole steps
        evaluate_every=math.ceil(scale.steps / _VALIDATIONS),
        num_candidates=scale.top_k,
        micro_lists=max(1, min(_BASE.micro_lists, _BASE.micro_lists * _BASE.num_candidates // scale.top_k)),
        seed=scale.seed,
        pool=scale.test_videos,
    )
