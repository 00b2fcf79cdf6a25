"""Results -> one table: for people, as Markdown and as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.methods.cost import NUM_ALONE, Cost
from benchmarks.methods.plan import Row, Scale
from benchmarks.methods.results import Result
from index_store.atomic import write_bytes

HEADINGS = (
    "method",
    "form",
    "R@1",
    "R@5",
    "v2t R@1",
    "broad R@1",
    "us a pair",
    "KB a query",
    "prepared: us",
    "KB",
    "training, min",
)


def write(rows: Sequence[Row], scale: Scale, results: Mapping[str, Result], work: Path) -> None:
    """Print the table, and write methods.md and methods.json. ``results``: by Row.key."""
    _show(rows, scale, results)
    write_bytes(work / "methods.md", to_markdown(rows, scale, results).encode())
    write_bytes(work / "methods.json", to_json(rows, scale, results).encode())


def facts(rows: Sequence[Row], scale: Scale, results: Mapping[str, Result]) -> str:
    """What the numbers are made of; a table that lacks rows says so."""
    missing = [row.key for row in rows if row.key not in results]
    cut = f" NOT COMPLETE: no result yet for {'; '.join(missing)}." if missing else ""
    return (
        f"R@k in percent of {scale.test_videos} captions of rendered near-duplicates, seed {scale.test_seed}, from "
        f"text to video (v2t: video to text), K = {scale.top_k}; broad: the same text tower alone. Trained: "
        f"{scale.steps} steps on {scale.videos} videos, one seed, all from one text tower, clip4clip tightTransf with "
        "half the batch; shipped: the weights that come with tbpipe. Cost with the small model (12 frames, 36 patches, "
        "width 128), one thread: CPU time of recalling, reading and scoring all queries in one run, without the text "
        f"tower, over the pairs; bytes that one query reads when asked alone (mean of {NUM_ALONE}). Prepared: from "
        f"what 'tbpipe prepare' keeps.{cut}"
    )


def to_markdown(rows: Sequence[Row], scale: Scale, results: Mapping[str, Result]) -> str:
    """The table as a file for people."""
    lines = ["# Methods on rendered near-duplicates, small model", "", facts(rows, scale, results), ""]
    lines += [_line(HEADINGS), _line(["---"] * len(HEADINGS))]
    return "\n".join([*lines, *map(_line, _cells(rows, results))]) + "\n"


def to_json(rows: Sequence[Row], scale: Scale, results: Mapping[str, Result]) -> str:
    """The same for programs: the scale, and a list of the finished rows in the table's order."""
    found = [asdict(results[row.key]) for row in rows if row.key in results]
    for fields in found:
        del fields["scale"]
    missing = [row.key for row in rows if row.key not in results]
    return json.dumps({"scale": asdict(scale), "missing": missing, "rows": found}, indent=1) + "\n"


def _show(rows: Sequence[Row], scale: Scale, results: Mapping[str, Result]) -> None:
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140
    console = Console(width=width, highlight=False)
    table = Table(*HEADINGS)
    for cells in _cells(rows, results):
        table.add_row(*map(Text, cells))
    console.print(table)
    console.print(Text(facts(rows, scale, results)))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(rows: Sequence[Row], results: Mapping[str, Result]) -> Iterator[tuple[str, ...]]:
    """The rows as text, those without a result in their places."""
    for row in rows:
        result = results.get(row.key)
        if result is None:
            yield (row.label, row.form, *["-"] * (len(HEADINGS) - 2))
            continue
        found = (result.t2v.at_1, result.t2v.at_5, result.v2t.at_1, result.t2v.broad_at_1)
        training = f"{result.training_seconds / 60:.1f}" if result.training_seconds else "-"
        yield (
            row.label,
            row.form,
            *(f"{value:.1f}" for value in found),
            *_of_cost(result.cost),
            *_of_cost(result.prepared),
            training,
        )


def _of_cost(cost: Cost | None) -> tuple[str, str]:
    return ("-", "-") if cost is None else (f"{1e6 * cost.seconds_per_pair:.0f}", f"{cost.bytes_per_query / 1e3:.0f}")
