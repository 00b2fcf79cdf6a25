"""How a benchmark measures: CPU seconds of this process and its children, interleaved repetitions, one line of JSON."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ratio:
    """One claim: ``value`` compared with ``limit``."""

    name: str
    value: float
    limit: float
    at_most: bool
    """True: the value must not exceed the limit; False: it must reach it."""
    detail: str = ""

    @property
    def holds(self) -> bool:
        """Whether the claim is true in this run."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def show(self) -> None:
        """Print the claim for people on stderr and for programs on stdout."""
        sign = "<=" if self.at_most else ">="
        print(
            f"{'ok  ' if self.holds else 'MISS'} {self.name}: {self.value:.3f} ({sign} {self.limit:g})  {self.detail}",
            file=sys.stderr,
        )
        record = {
            "name": self.name,
            "value": self.value,
            "limit": self.limit,
            "at_most": self.at_most,
            "holds": self.holds,
        }
        print(json.dumps({**record, "detail": self.detail, "cores": os.cpu_count()}), flush=True)


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def best_of(
    repetitions: int, *actions: Callable[[], object], clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """The least time of each action; they take turns, so that a busy moment of the machine hits all of them."""
    best = [float("inf")] * len(actions)
    for _ in range(repetitions):
        for place, action in enumerate(actions):
            before = clock()
            action()
            best[place] = min(best[place], clock() - before)
    return best
