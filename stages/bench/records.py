"""What a benchmark found, for printing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Clock = Literal["cpu", "wall"]
"""CPU seconds, of which other programs take none; or seconds on the wall, for disks and GPUs."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What this machine can do at most."""

    name: str
    rate: float
    """Units a second, by ``clock``."""
    unit: str
    clock: Clock
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """What one unit of a stage's work needs of one limit."""

    limit: str
    amount: float
    unit: str
    """Of ``amount``: that of the limit."""
    seconds: float
    """At the rate that was measured in the same turns."""
    is_hidden: bool = False
    """True: it takes place while a longer part does, so it adds nothing."""


@dataclass(frozen=True, slots=True)
class StageRow:
    """A stage beside its limit."""

    stage: str
    unit: str
    clock: Clock
    rate: float
    """Units a second."""
    limit: float
    """Units a second, if nothing but ``parts`` took time."""
    parts: tuple[Part, ...]
    detail: str = ""

    @property
    def ratio(self) -> float:
        """Rate / limit."""
        return self.rate / self.limit

    @property
    def bound(self) -> str:
        """What most of the limit is made of."""
        return max(self.parts, key=lambda part: part.seconds).limit


@dataclass(frozen=True, slots=True)
class Skipped:
    """What was not measured, and why."""

    stage: str
    reason: str


@dataclass(frozen=True, slots=True)
class GrowthPoint:
    """The cost of one size."""

    size: int
    seconds: float
    """Of one unit of work."""
    limit_seconds: float
    """The same by count."""


@dataclass(frozen=True, slots=True)
class Growth:
    """How the cost of a stage grows with one size while the others stay."""

    stage: str
    variable: str
    """What is changed."""
    unit: str
    """What a cost is of."""
    clock: Clock
    points: tuple[GrowthPoint, ...]
    exponent: float
    """Cost ~ size ^ exponent between the two largest sizes; 1 = in proportion, 0 = not at all.

    Of small sizes the cost is mostly what is done once.
    """
    counted_exponent: float
    """The same of what is needed by count."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured."""

    processor: str
    cores: int
    threads: int
    """That a product may use."""
    device: str
    versions: str


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Everything."""

    machine: Machine
    about: str
    """What the stages worked on."""
    limits: tuple[Limit, ...]
    stages: tuple[StageRow, ...]
    skipped: tuple[Skipped, ...]
    growth: tuple[Growth, ...]
