"""The training loop: steps, validation, early stop, and a state from which it goes on exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from index_store.errors import UsageError
from stages.training.journal import Journal
from stages.training.lists import Batch, draw_batch, draw_pool
from stages.training.objective import Objective, Positions, Setup, Weights
from stages.training.optimisers import SCHEDULES, is_decayed, make_optimiser
from stages.training.state import load_state, save_state

_GRADIENT_NORM = 1.0
_NEXT_RANK = 1_000_000_007
"""Between the seeds of two ranks' noise."""


@dataclass(frozen=True, slots=True)
class Validation:
    """How well the validation videos are found among all videos by their captions."""

    broad: dict[str, float]
    """R@1, R@5, R@10 in percent."""
    focused: dict[str, float]
    reciprocal_rank: float
    """Mean of 1 / focused rank: what the best weights are chosen by."""


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a run of training did."""

    steps: int
    planned_steps: int
    stopped_early: bool
    best_step: int
    first: Validation | None
    """Before the first step."""
    best: Validation | None
    """None without validation videos; then the last weights are kept."""
    interrupted: bool
    """Asked to stop before the end: run again, it goes on."""


class Trainer:
    """Trains what an objective holds. Seed, data, device and threads determine the weights.

    Several ranks part the texts and the candidate lists of every step among them and hold the same weights. These are
    those of one process but for the rounding of sums; with noise in a step, for the noise too.
    """

    def __init__(self, setup: Setup, objective: Objective) -> None:
        """Raises UsageError for batches of fewer captions than there are ranks, and where nothing would learn."""
        self.objective = objective
        self.config, self.corpus, self.device, self.ranks = setup.config, setup.corpus, setup.device, setup.ranks
        config = self.config
        self.train_on, self.validate_on = self.corpus.split(config.validation, config.seed, config.validation_run)
        smallest = min(config.batch_size, len(self.train_on))
        if smallest < self.ranks.size:
            raise UsageError(f"a batch of {smallest} captions cannot be parted among {self.ranks.size} processes")
        num_pairs = len(self.train_on)
        if config.epoch_of == "captions":
            num_pairs = sum(len(self.corpus.captions[position]) for position in self.train_on)
        self.num_steps = max(1, math.ceil(config.epochs * num_pairs / config.batch_size))
        self.optimiser = self._optimiser()
        self.step = 0
        self.best_step = 0
        self.best: dict[str, Tensor] = {}
        self.first_validation: Validation | None = None
        self.best_validation: Validation | None = None

    @property
    def module(self) -> nn.Module:
        """What learns."""
        return self.objective.module

    def run(
        self,
        journal: Journal,
        state: Path,
        on_step: Callable[[int], object],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> TrainReport:
        """Train to the end, or until no evaluation was better for a while. ``state``: where to go on from, and to.

        ``on_step`` is told how many steps were done; what it raises ends the run, which goes on from ``state`` later.
        ``should_stop`` is asked between two steps: the state is then kept, and the report says so.
        """
        self._begin(journal, state, on_step)
        interrupted = False
        while self.step < self.num_steps and not self._has_stalled():
            if interrupted := self.ranks.any(should_stop(), self.device):
                self._save(state)
                break
            measured = self._train_step()
            self.step += 1
            if self.ranks.is_first:
                journal.add("step", self.step, **measured)
            if self._is_evaluated_after(self.step):
                self._validate(journal)
                self._save(state)
            on_step(1)
        stopped_early = self.step < self.num_steps and not interrupted
        validations = self.first_validation, self.best_validation
        return TrainReport(self.step, self.num_steps, stopped_early, self.best_step, *validations, interrupted)

    def _begin(self, journal: Journal, state: Path, on_step: Callable[[int], object]) -> None:
        goes_on = self.ranks.any(state.exists(), self.device)
        if goes_on:
            load_state(state, self)
        if self.ranks.is_first:
            journal.cut(self.step if goes_on else -1)
        self.objective.expect(self._coming(with_first=not goes_on))
        if goes_on:
            on_step(self.step)
        else:
            self._validate(journal)

    def _coming(self, with_first: bool) -> Iterator[Positions]:
        """The positions of what will be read, step by step; ``with_first``: what is validated before the first one."""
        if with_first:
            yield self._validation_batch().positions
        for step in range(self.step, self.num_steps):
            yield self._batch(step).positions
            if self._is_evaluated_after(step + 1):
                yield self._validation_batch().positions

    def _is_evaluated_after(self, step: int) -> bool:
        return step % self.config.evaluate_every == 0 or step == self.num_steps

    def _save(self, state: Path) -> None:
        if self.ranks.is_first:
            save_state(state, self)

    def chosen(self) -> Mapping[str, Tensor]:
        """The best state of the module so far; the present one without validation videos."""
        return self.best or self.module.state_dict()

    def weights(self) -> Weights:
        """What that state is written as."""
        return self.objective.weights(self.chosen())

    # -- one step -----------------------------------------------------------------------------------------------------

    def _train_step(self) -> dict[str, float]:
        config = self.config
        for group in self.optimiser.param_groups:
            group["lr"] = SCHEDULES[config.schedule](group["peak"], self.step, self.num_steps, config.warmup)
        torch.manual_seed(config.seed * 1_000_003 + self.step + _NEXT_RANK * self.ranks.rank)  # of noise in the step
        self.module.train()
        self.optimiser.zero_grad(set_to_none=True)
        batch = self._batch(self.step)
        among = draw_pool(self.corpus, self.train_on, batch, config.pool, config.pool_run, config.seed, self.step)
        measured = self.objective.gradients(batch, among)
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), _GRADIENT_NORM)
        self.optimiser.step()
        return {**measured, **self.objective.after_step(), "norm": norm.item()}

    def _batch(self, step: int) -> Batch:
        config = self.config
        return draw_batch(self.corpus, self.train_on, config.batch_size, config.neighbours, config.seed, step)

    def _optimiser(self) -> torch.optim.Optimizer:
        """Each parameter at the rate that the objective gives it; what decays is the optimiser's own rule."""
        config = self.config
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, parameter in self.module.named_parameters():
            rate = self.objective.rate(name)
            parameter.requires_grad_(rate > 0)
            if rate > 0:
                decay = config.weight_decay if is_decayed(config.optimiser, name, parameter) else 0.0
                groups.setdefault((rate, decay), []).append(parameter)
        if not groups:
            raise UsageError("nothing would learn; give a learning_rate or a text_learning_rate above 0")
        told = [{"params": found, "peak": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]
        return make_optimiser(config.optimiser, told, config.learning_rate)

    # -- validation ---------------------------------------------------------------------------------------------------

    def _has_stalled(self) -> bool:
        return self.step - self.best_step >= self.config.patience * self.config.evaluate_every and bool(self.best)

    def _validate(self, journal: Journal) -> None:
        """Measure, and keep the weights if they are the best so far."""
        if not len(self.validate_on):
            return
        started = time.monotonic()
        found = self.validation()
        if self.first_validation is None:
            self.first_validation = found
        if self.best_validation is None or found.reciprocal_rank > self.best_validation.reciprocal_rank:
            self.best_validation, self.best_step = found, self.step
            self.best = {name: value.detach().cpu().clone() for name, value in self.module.state_dict().items()}
        seconds = time.monotonic() - started
        if self.ranks.is_first:
            journal.add(
                "validation",
                self.step,
                broad=found.broad,
                focused=found.focused,
                reciprocal_rank=found.reciprocal_rank,
                **self.objective.remarks(self.validate_on),
                seconds=seconds,
            )

    def validation(self) -> Validation:
        """The first caption of every validation video asks for it among all videos, as a user's query would.

        With a pool, among so many. Where frames are read, among the validation videos: the others would have to be
        decoded each time.
        """
        self.module.eval()
        config, batch, every = self.config, self._validation_batch(), np.arange(len(self.corpus))
        among = draw_pool(self.corpus, every, batch, config.pool, config.pool_run, config.seed, self.num_steps)
        broad, focused = self.objective.places(batch, among).cpu().T
        return Validation(_recall(broad), _recall(focused), (1 / (1 + focused.double())).mean().item())

    def _validation_batch(self) -> Batch:
        positions = self.validate_on[: self.objective.most_validated]
        return Batch(positions, [self.corpus.captions[position][0] for position in positions])


def _recall(places: Tensor) -> dict[str, float]:
    return {f"R@{cut}": 100 * (places < cut).double().mean().item() for cut in (1, 5, 10)}
