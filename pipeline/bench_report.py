"""What ``tbpipe bench`` found -> tables for people, one JSON object for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.printing import print_json, printable, remark
from pipeline.tables import Table, Text, console

if TYPE_CHECKING:
    from stages.bench.records import BenchReport, Clock, Growth, Limit, StageRow

_PIPE_COLUMNS = 180
"""So wide that hardly anything is folded."""
_WIDE_COLUMNS = 140
_SMALL = 0.1
"""Ratios below get a third digit."""
_A_SECOND = {"cpu": "/CPU s", "wall": "/s"}


def show_bench(report: BenchReport, plot: Path | None, as_json: bool) -> None:
    """Print limits, stages and growth; what was left out is a remark."""
    for skipped in report.skipped:
        remark(f"not measured: {skipped.stage}: {skipped.reason}")
    if as_json:
        print_json(_fields(report))
        return
    machine = report.machine
    threads = f"{machine.cores} cores, {machine.threads} thread{'s' * (machine.threads > 1)} used"
    print(f"{printable(machine.processor)}, {threads}; {printable(machine.device)}; {machine.versions}")
    print(printable(report.about))
    out = console(_PIPE_COLUMNS)
    out.print(_limits(report.limits))
    out.print(_stages(report.stages, out.width >= _WIDE_COLUMNS))
    if report.growth:
        out.print(_growth(report.growth))
    if plot is not None:
        print(f"picture: {printable(str(plot))}")


def _limits(limits: Sequence[Limit]) -> Table:
    table = Table("limit of this machine", title=Text("measured now"), title_justify="left")
    table.add_column("rate", justify="right")
    table.add_column("how")
    for limit in limits:
        table.add_row(limit.name, _rate(limit.rate, limit.unit, limit.clock), limit.detail)
    return table


def _stages(rows: Sequence[StageRow], has_room: bool) -> Table:
    """``has_room``: for a last column that says what was worked on."""
    table = Table(title=Text("every stage beside its limit"), title_justify="left")
    table.add_column("stage", no_wrap=True)
    for name in ("rate", "limit", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what bounds it, by count, for one")
    if has_room:
        table.add_column("on what")
    for row in rows:
        rate, limit = (_rate(value, row.unit, row.clock) for value in (row.rate, row.limit))
        ratio = f"{row.ratio:.2f}" if row.ratio >= _SMALL else f"{row.ratio:.3f}"
        table.add_row(row.stage, rate, limit, ratio, _bound(row), *([row.detail] if has_room else []))
    return table


def _bound(row: StageRow) -> str:
    """The parts of the limit, the largest first, with their shares."""
    parts = sorted((part for part in row.parts if not part.is_hidden), key=lambda part: -part.seconds)
    total = sum(part.seconds for part in parts)
    named = []
    for part in parts:
        share = f" {part.seconds / total:.0%}" if len(parts) > 1 else ""
        named.append(f"{part.limit}{share} ({_amount(part.amount, part.unit)})")
    return "; ".join(named)


def _growth(growth: Sequence[Growth]) -> Table:
    table = Table("stage", "what grows", title=Text("cost of one query"), title_justify="left")
    table.add_column("cost at each size", overflow="fold")
    table.add_column("grows at last as", justify="right")
    table.add_column("by count", justify="right")
    table.add_column("on what")
    for grown in growth:
        costs = ", ".join(f"{point.size}: {_short(point.seconds)}" for point in grown.points)
        kind = "CPU " if grown.clock == "cpu" else ""
        exponents = (f"size^{value:.2f}" for value in (grown.exponent, grown.counted_exponent))
        table.add_row(grown.stage, grown.variable, f"{costs} ({kind}time)", *exponents, grown.detail)
    return table


def _rate(value: float, unit: str, clock: Clock) -> str:
    return f"{_number(value)} {unit}{_A_SECOND[clock]}"


def _amount(value: float, unit: str) -> str:
    """With the prefix that leaves few digits: 529 KB, 27.8 MFLOP; what has no prefix is counted."""
    if not unit.startswith("G"):
        return f"{_number(value)} {unit}"
    for prefix, factor in (("G", 1.0), ("M", 1e3), ("K", 1e6)):
        if value * factor >= 1 or prefix == "K":
            return f"{_number(value * factor)} {prefix}{unit[1:]}"
    raise AssertionError("unreachable")


def _number(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _short(seconds: float) -> str:
    """Seconds for people: 2.1 s, 4.2 ms, 17 us."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _fields(report: BenchReport) -> dict[str, object]:
    """The report, and with each stage what follows from its numbers."""
    stages = [{**dataclasses.asdict(row), "ratio": row.ratio, "bound": row.bound} for row in report.stages]
    return {**dataclasses.asdict(report), "stages": stages}
