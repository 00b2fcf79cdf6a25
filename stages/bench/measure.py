"""Yardsticks and stages, measured in turns: a busy moment of the machine hits both sides of a ratio."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.bench.records import Clock, Limit, Part, StageRow

_LEAST_SECONDS = 0.02
"""What is faster than that is run several times in a turn."""
_MOST_RUNS = 1000
PROCESSES = Path("/proc")
"""Where Linux tells what each process has used."""


def _nothing() -> None:
    """What has to be done before a run where nothing has."""


@dataclass(frozen=True, slots=True)
class Yardstick:
    """Something that the machine does at a rate that no stage can beat."""

    name: str
    unit: str
    amount: float
    """Units that one run does."""
    run: Callable[[], object]
    clock: Clock = "cpu"
    before: Callable[[], object] = _nothing
    """Not measured; done before each run."""
    in_children: bool = False
    """True: child processes work too, and go on living."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Need:
    """How much one unit of a stage's work needs of a yardstick, by its name."""

    yardstick: str
    amount: float


@dataclass(frozen=True, slots=True)
class Stage:
    """Work of ours."""

    name: str
    unit: str
    number: float
    """Units that one run does."""
    run: Callable[[], object]
    needs: tuple[tuple[Need, ...], ...]
    """One after the other; those of an inner tuple at the same time, so that the longest of them counts."""
    clock: Clock = "cpu"
    before: Callable[[], object] = _nothing
    in_children: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Watch:
    """Reads the clocks; ``wait`` is for a GPU to finish what it was given."""

    wait: Callable[[], object] = _nothing

    def seconds(self, action: Stage | Yardstick, runs: int) -> float:
        """What so many runs take, of CPU time or on the wall."""
        children = _living_children_seconds if action.in_children and action.clock == "cpu" else _zero
        self.wait()
        before = children()
        start = _now(action.clock)
        for _ in range(runs):
            action.run()
        self.wait()
        return _now(action.clock) - start + children() - before


def _now(clock: Clock) -> float:
    """Seconds: of this process and its children that have ended, or on the wall."""
    if clock == "wall":
        return time.perf_counter()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _zero() -> float:
    return 0.0


def knows_living_children() -> bool:
    """Whether this system tells what living child processes have used."""
    return PROCESSES.is_dir() and (PROCESSES / "self" / "stat").is_file()


def _living_children_seconds() -> float:
    """CPU seconds of child processes that are alive, to some hundredths."""
    ticks, own = 0, os.getpid()
    for file in PROCESSES.glob("[0-9]*/stat"):
        try:
            fields = file.read_text("utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[1]) == own:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure_limits(yardsticks: Iterable[Yardstick], repetitions: int, watch: Watch) -> list[Limit]:
    """The best rate of each."""
    found = []
    for yardstick in yardsticks:
        (seconds,) = best_of(repetitions, [yardstick], watch)
        rate = yardstick.amount / seconds
        found.append(Limit(yardstick.name, rate, yardstick.unit, yardstick.clock, yardstick.detail))
    return found


def limits_met(rows: Iterable[StageRow], yardsticks: Sequence[Yardstick]) -> list[Limit]:
    """The rates of yardsticks as they were measured beside some stages."""
    rates = {part.limit: part.amount / part.seconds for row in rows for part in row.parts}
    return [
        Limit(yardstick.name, rates[yardstick.name], yardstick.unit, yardstick.clock, yardstick.detail)
        for yardstick in yardsticks
        if yardstick.name in rates
    ]


def measure_stage(stage: Stage, yardsticks: Mapping[str, Yardstick], repetitions: int, watch: Watch) -> StageRow:
    """The best rate of a stage, and the best rates of what it needs, taken in turns with it."""
    names = list(dict.fromkeys(need.yardstick for together in stage.needs for need in together))
    seconds, *others = best_of(repetitions, [stage, *(yardsticks[name] for name in names)], watch)
    rates = {name: yardsticks[name].amount / other for name, other in zip(names, others, strict=True)}
    parts = tuple(part for together in stage.needs for part in _parts(together, yardsticks, rates))
    limit = sum(part.seconds for part in parts if not part.is_hidden)
    return StageRow(stage.name, stage.unit, stage.clock, stage.number / seconds, 1 / limit, parts, stage.detail)


def _parts(together: Sequence[Need], yardsticks: Mapping[str, Yardstick], rates: Mapping[str, float]) -> list[Part]:
    seconds = [need.amount / rates[need.yardstick] for need in together]
    longest = seconds.index(max(seconds))
    return [
        Part(need.yardstick, need.amount, yardsticks[need.yardstick].unit, taken, is_hidden=place != longest)
        for place, (need, taken) in enumerate(zip(together, seconds, strict=True))
    ]


def best_of(repetitions: int, actions: Sequence[Stage | Yardstick], watch: Watch) -> list[float]:
    """The least seconds of one run of each; they take turns."""
    best = [float("inf")] * len(actions)
    runs = [1] * len(actions)
    for _ in range(repetitions):
        for place, action in enumerate(actions):
            seconds, runs[place] = _run(action, runs[place], watch)
            best[place] = min(best[place], seconds)
    return best


def _run(action: Stage | Yardstick, runs: int, watch: Watch) -> tuple[float, int]:
    """Seconds of one run, and how many it took to measure them."""
    while True:
        action.before()
        seconds = watch.seconds(action, runs)
        if seconds >= _LEAST_SECONDS or action.before is not _nothing or runs >= _MOST_RUNS:
            return max(seconds, 1e-9) / runs, runs
        runs = min(_MOST_RUNS, max(2 * runs, int(1.2 * runs * _LEAST_SECONDS / max(seconds, 1e-9))))
