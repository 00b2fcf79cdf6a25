"""What the training loop asks of the system that it trains, so that one loop trains all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.rerankers.token_binder import FeatureKind
from stages.training.config import TrainConfig
from stages.training.lists import Batch
from stages.training.pairs import PairCorpus
from stages.training.ranks import Ranks

Positions = NDArray[np.int64]
"""Of videos in the corpus, [n]."""


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """What loop and objective share."""

    corpus: PairCorpus
    config: TrainConfig
    device: torch.device
    ranks: Ranks = field(default_factory=Ranks)


class Weights(Protocol):
    """What was trained."""

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        ...


class Objective(Protocol):
    """A system with its losses: one step's gradient, and where it ranks the right videos."""

    @property
    def module(self) -> nn.Module:
        """All that may learn; its state is what is kept and chosen from."""
        ...

    @property
    def kind(self) -> FeatureKind:
        """The features that it is trained for."""
        ...

    @property
    def reads_frames(self) -> bool:
        """True = videos are decoded at every step; False = their features are what they are."""
        ...

    @property
    def most_validated(self) -> int:
        """So many videos at most are asked for in a validation."""
        ...

    def rate(self, name: str, /) -> float:
        """Highest learning rate of the parameter with that name; 0 = it stays as it is."""
        ...

    def expect(self, coming: Iterable[Positions], /) -> None:
        """Told once, before the first batch: the positions of all batches that will come, in that order."""
        ...

    def gradients(self, batch: Batch, among: Positions, /) -> dict[str, float]:
        """Fill in the gradients of ``module``, in training mode and the same on all ranks; returns measurements.

        ``among``: what candidates are recalled from, ascending, the videos of the batch among them.
        """
        ...

    def after_step(self) -> dict[str, float]:
        """Keep the parameters within their bounds; returns more measurements."""
        ...

    def places(self, batch: Batch, among: Positions, /) -> Tensor:
        """How many of the videos ``among`` come before that of each caption, int64 [n, 2]: broad and focused view."""
        ...

    def remarks(self, positions: Positions, /) -> dict[str, float]:
        """What else is worth a line of the journal at every validation, measured on these videos."""
        ...

    def left_out(self) -> str:
        """What is to be said of videos that could not be used; empty when there are none."""
        ...

    def weights(self, state: Mapping[str, Tensor], /) -> Weights:
        """What a state of ``module`` is written as."""
        ...
