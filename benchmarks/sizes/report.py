"""Results -> one table, as Markdown and JSON, and one picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.sizes.run import Result
from index_store.atomic import replacing, write_bytes
from index_store.errors import ComponentMissingError

MOST_LOST = 0.3
"""Points of R@1 that int8 may lose."""


@dataclass(frozen=True, slots=True)
class Row:
    """One method with one way to keep tokens, over all seeds."""

    method: str
    dtype: str
    keep: str
    bytes_per_video: int
    num_queries: int
    at_1: float
    """R@1 in percent."""
    broad_at_1: float
    lost: float | None
    """Points of R@1 that float16 has more, of the same queries; None for float16 itself."""
    lost_error: float | None
    """Its standard error over the queries."""


def rows_of(results: Sequence[Result]) -> list[Row]:
    """One for each method and setting, in the order of the results; seeds are put together."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.method, result.dtype, result.keep), []).append(result)
    return [_row(group, groups.get((method, "float16", keep), [])) for (method, _, keep), group in groups.items()]


def _row(group: Sequence[Result], wide: Sequence[Result]) -> Row:
    first = group[0]
    right = "".join(result.right for result in group)
    broad = "".join(result.broad_right for result in group)
    others = {result.seed: result.right for result in wide}
    lost = error = None
    if first.dtype != "float16" and all(result.seed in others for result in group):
        pairs = zip("".join(others[result.seed] for result in group), right, strict=True)
        changes = [int(before) - int(after) for before, after in pairs]
        lost = 100 * sum(changes) / len(changes)
        spread = sum((100 * change - lost) ** 2 for change in changes) / max(1, len(changes) - 1)
        error = math.sqrt(spread / len(changes))
    return Row(
        *(first.method, first.dtype, first.keep, first.bytes_per_video, len(right)),
        *(100 * right.count("1") / len(right), 100 * broad.count("1") / len(broad), lost, error),
    )


def holds(rows: Sequence[Row]) -> bool:
    """Whether int8 loses no more than it may, where all tokens are kept."""
    return all(row.lost <= MOST_LOST for row in rows if row.keep == "all" and row.lost is not None)


def facts(rows: Sequence[Row], results: Sequence[Result]) -> str:
    """What the numbers are made of."""
    seeds = sorted({result.seed for result in results})
    return (
        f"R@1 in percent of {max(row.num_queries for row in rows):,} captions of rendered near-duplicates, "
        f"{results[0].num_videos:,} videos of seeds {', '.join(map(str, seeds))}, small model (12 frames, 37 "
        f"tokens, width 128), K = 20; the broad view alone: {rows[0].broad_at_1:.1f}. Lost: float16 - int8 of the same "
        "queries, in points, with its standard error. token-binder: the weights that ship, trained on all tokens."
    )


def to_markdown(rows: Sequence[Row], results: Sequence[Result]) -> str:
    """The table as a file for people."""
    lines = ["# Bytes of a video against R@1", "", facts(rows, results), ""]
    lines += ["| method | `--keep-tokens` | `--token-dtype` | KB a video | R@1 | lost |", "|---|---|---|---|---|---|"]
    for row in rows:
        lost = "" if row.lost is None else f"{row.lost:+.2f} ± {row.lost_error:.2f}"
        size = f"{row.bytes_per_video / 1000:.1f}"
        lines.append(f"| {row.method} | {row.keep} | {row.dtype} | {size} | {row.at_1:.1f} | {lost} |")
    return "\n".join(lines) + "\n"


def write(results: Sequence[Result], work: Path) -> list[Row]:
    """Write sizes.md, sizes.json and sizes.png, and print the table."""
    rows = rows_of(results)
    table = to_markdown(rows, results)
    print(table)
    write_bytes(work / "sizes.md", table.encode())
    content = {"facts": facts(rows, results), "rows": [asdict(row) for row in rows]}
    write_bytes(work / "sizes.json", json.dumps(content, indent=1).encode())
    draw(rows, facts(rows, results), work / "sizes.png")
    return rows


def draw(rows: Sequence[Row], title: str, path: Path) -> Path:
    """Draw a PNG file, whole or not at all, and return its path. Raises ComponentMissingError without matplotlib."""
    import textwrap

    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ComponentMissingError(f"{path.name} needs matplotlib: pip install 'tbpipe[plot]'") from error
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    for name, line in _curves(rows):
        across = [row.bytes_per_video / 1000 for row in line]
        panel.plot(across, [row.at_1 for row in line], "o-" if line[0].dtype == "float16" else "s--", label=name)
        if line[0].dtype == "float16":
            for row in line:
                panel.annotate(row.keep, (row.bytes_per_video / 1000, row.at_1), fontsize="x-small", va="bottom")
    panel.axhline(rows[0].broad_at_1, color="grey", linewidth=0.8, label="broad view")
    panel.set_xscale("log")
    panel.set_xlabel("KB a video")
    panel.set_ylabel("R@1, percent")
    panel.legend(fontsize="small")
    figure.suptitle(textwrap.fill(title, 130), fontsize="x-small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path


def _curves(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for method, dtype in dict.fromkeys((row.method, row.dtype) for row in rows):
        yield f"{method}, {dtype}", [row for row in rows if (row.method, row.dtype) == (method, dtype)]
