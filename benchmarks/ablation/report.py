"""Results -> the tables: mean and spread over the seeds, the best row, and whether the paper's trend is ours."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from benchmarks.ablation.plan import TABLES, Scale, config_of
from benchmarks.ablation.results import Result, key_of

_HEADINGS = ("", "seeds", "focused R@1", "focused R@5", "broad R@1", "focused R@1, v2t", "paper's R@1")


@dataclass(frozen=True, slots=True)
class Spread:
    """One number over the seeds, in percent."""

    mean: float
    deviation: float | None
    """Standard deviation of a sample; None of one seed."""

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Of one value or more."""
        return Spread(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.deviation is None else f"{self.mean:.1f} ± {self.deviation:.1f}"


@dataclass(frozen=True, slots=True)
class Row:
    """One setting. Text to video unless its name says otherwise."""

    label: str
    num_seeds: int
    focused: Spread
    """R@1."""
    focused_at_5: Spread
    broad: Spread
    """R@1."""
    focused_v2t: Spread
    """R@1."""
    paper: float | None
    """R@1."""


@dataclass(frozen=True, slots=True)
class Summary:
    """One table."""

    name: str
    title: str
    rows: tuple[Row, ...]
    """Those with a result, in the order of the plan."""
    missing: tuple[str, ...]
    """Labels of the others."""
    num_seeds: int
    """That were asked for."""
    sentence: str

    @property
    def best(self) -> Row:
        """The row with the highest mean of the focused view's R@1. There must be one."""
        return max(self.rows, key=lambda row: row.focused.mean)


def summarise(tables: Sequence[str], scale: Scale, num_seeds: int, results: Sequence[Result]) -> list[Summary]:
    """The tables, from the results of this scale and these seeds; others are left out."""
    by_key = {result.key: result for result in results}
    return [_summary(table, scale, num_seeds, by_key) for table in tables]


def _summary(table: str, scale: Scale, num_seeds: int, by_key: dict[str, Result]) -> Summary:
    rows, missing = [], []
    for label in TABLES[table].rows:
        keys = [key_of(scale, config_of(table, label, scale, seed)) for seed in range(num_seeds)]
        found = [by_key[key] for key in keys if key in by_key]
        if found:
            rows.append(_row(label, found, TABLES[table].paper.get(label)))
        else:
            missing.append(label)
    sentence = _sentence(table, rows, missing)
    return Summary(table, TABLES[table].title, tuple(rows), tuple(missing), num_seeds, sentence)


def _row(label: str, found: Sequence[Result], paper: float | None) -> Row:
    def spread(value: Callable[[Result], float]) -> Spread:
        return Spread.of([value(result) for result in found])

    return Row(
        label=label,
        num_seeds=len(found),
        focused=spread(lambda result: result.t2v.focused["R@1"]),
        focused_at_5=spread(lambda result: result.t2v.focused["R@5"]),
        broad=spread(lambda result: result.t2v.broad["R@1"]),
        focused_v2t=spread(lambda result: result.v2t.focused["R@1"]),
        paper=paper,
    )


def _sentence(table: str, rows: Sequence[Row], missing: Sequence[str]) -> str:
    """Whether the paper's best row is within one standard deviation of ours."""
    if missing:
        return f"No verdict: no result yet for {', '.join(missing)}."
    ours = max(rows, key=lambda row: row.focused.mean)
    theirs = max((row for row in rows if row.label in TABLES[table].paper_best), key=lambda row: row.focused.mean)
    what = "the paper's best row" if TABLES[table].paper else "what the paper uses (its numbers are not known here)"
    if ours.focused.deviation is None:
        wanted = " or ".join(TABLES[table].paper_best)
        return f"No verdict from one seed, which has no spread: {ours.label} is best here; {what} is {wanted}."
    if theirs is ours:
        return f"Agrees with the paper: {what} is best here too, {ours.label} with {ours.focused}."
    lead = ours.focused.mean - theirs.focused.mean
    verdict, within = ("Agrees", "within") if lead <= ours.focused.deviation else ("Disagrees", "not within")
    compared = f"{theirs.label} with {theirs.focused}, is {within} one standard deviation of our best"
    return f"{verdict} with the paper: {what}, {compared}, {ours.label} with {ours.focused}."


def facts(summaries: Sequence[Summary], scale: Scale) -> str:
    """What the numbers are made of; a cut run says that it is one."""
    asked = summaries[0].num_seeds
    counts = [row.num_seeds for summary in summaries for row in summary.rows]
    counts += [0 for summary in summaries for _ in summary.missing]
    seeds = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    is_cut = "" if min(counts) == asked else " (NOT COMPLETE)"
    return (
        f"{seeds} of {asked} training seeds a row{is_cut}; {scale.steps} steps a run on {scale.videos} videos "
        f"({', '.join(scale.families)}); tested on {scale.test_videos} videos, seed {scale.test_seed}. R@k in percent "
        "from text to video (v2t: video to text), mean ± standard deviation over the seeds. The paper's: MSR-VTT, "
        "ViT-B/32."
    )


def show(summaries: Sequence[Summary], scale: Scale) -> None:
    """Print the tables for people."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    console = Console(width=width, highlight=False)
    for summary in summaries:
        table = RichTable(*_HEADINGS, title=f"{summary.name}: {summary.title}", title_justify="left")
        for label, *cells in _cells(summary):
            is_best = bool(summary.rows) and label == summary.best.label
            name = f"{label} (best)" if is_best else label
            table.add_row(Text(name), *cells, style="bold" if is_best else None)
        console.print(table)
        console.print(Text(summary.sentence), "", sep="\n")
    console.print(Text(facts(summaries, scale)))


def to_markdown(summaries: Sequence[Summary], scale: Scale) -> str:
    """The tables as a file for people; the best rows are bold."""
    lines = ["# Ablations on rendered near-duplicates, small model", "", facts(summaries, scale)]
    for summary in summaries:
        lines += ["", f"## {summary.name}: {summary.title}", "", _line(_HEADINGS), _line(["---"] * len(_HEADINGS))]
        for cells in _cells(summary):
            is_best = bool(summary.rows) and cells[0] == summary.best.label
            lines.append(_line([f"**{cell}**" if is_best else cell for cell in cells]))
        lines += ["", summary.sentence]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(summary: Summary) -> Iterator[tuple[str, ...]]:
    """The rows as text, those without a result in their places."""
    rows = {row.label: row for row in summary.rows}
    for label in TABLES[summary.name].rows:
        row = rows.get(label)
        if row is None:
            yield (label, f"0 of {summary.num_seeds}", *["-"] * (len(_HEADINGS) - 2))
            continue
        spreads = [str(spread) for spread in (row.focused, row.focused_at_5, row.broad, row.focused_v2t)]
        paper = "-" if row.paper is None else f"{row.paper:.1f}"
        yield (label, f"{row.num_seeds} of {summary.num_seeds}", *spreads, paper)
