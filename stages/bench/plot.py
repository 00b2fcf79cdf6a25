"""The ratios as bars, and beside them what grows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from index_store.atomic import replacing
from index_store.errors import ComponentMissingError, UsageError
from stages.bench.records import BenchReport, Growth, StageRow

SUFFIXES = (".png", ".svg")
_WIDTH_INCHES, _ROW_INCHES, _REST_INCHES = 9.0, 0.3, 1.6
_GROWTH_INCHES = 4.0
_SMALLEST, _LARGEST = 0.01, 8.0
"""Ratios that the axis has at least; the words beside the longest bars need some room."""


def require_matplotlib(path: Path) -> None:
    """Raise UsageError for a picture of another kind, ComponentMissingError where nothing can be drawn."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot {path} is none of {', '.join(SUFFIXES)}")
    try:
        import matplotlib  # noqa: F401 (only tried)
    except ImportError as error:
        raise ComponentMissingError(f"{path.name} needs matplotlib: pip install 'tbpipe[plot]'") from error


def draw(report: BenchReport, path: Path) -> Path:
    """Draw a PNG or SVG file, whole or not at all, and return its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(report.stages)
    height = _REST_INCHES + max(_ROW_INCHES * rows, _GROWTH_INCHES if report.growth else 0.0)
    panels = 2 if report.growth else 1
    figure = Figure(figsize=(_WIDTH_INCHES * panels, height), layout="constrained")
    FigureCanvasAgg(figure)
    found = figure.subplots(1, panels, squeeze=False)[0]
    _draw_ratios(found[0], report.stages)
    if report.growth:
        _draw_growth(found[1], report.growth)
    machine = report.machine
    figure.suptitle(f"{machine.processor}, {machine.threads} thread(s), {machine.device}\n{report.about}", fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lower().removeprefix("."), dpi=120)
    return path


def _draw_ratios(panel: Any, rows: Sequence[StageRow]) -> None:
    """The first row on top; beside each bar what bounds it."""
    places = range(len(rows))
    panel.set_xscale("log")
    panel.barh(places, [row.ratio for row in rows], color="tab:blue")
    for place, row in enumerate(rows):
        panel.text(row.ratio, place, f" {row.ratio:.2g}  {row.bound}", va="center", fontsize="x-small", clip_on=True)
    panel.axvline(1.0, color="black", linewidth=1)
    panel.set_yticks(places, [row.stage for row in rows], fontsize="small")
    panel.invert_yaxis()
    smallest = min([row.ratio for row in rows], default=_SMALLEST)
    panel.set_xlim(min(_SMALLEST, smallest / 2), _LARGEST)
    panel.set_xlabel("rate / limit, and what most of the limit is")


def _draw_growth(panel: Any, growth: Sequence[Growth]) -> None:
    """Each cost relative to that of the smallest size, over the size relative to the smallest; by count, dashed."""
    for number, grown in enumerate(growth):
        colour = f"C{number}"
        first = grown.points[0]
        sizes = [point.size / first.size for point in grown.points]
        label = f"{grown.stage}: {grown.variable}, ~ size^{grown.exponent:.2f}"
        panel.plot(sizes, [point.seconds / first.seconds for point in grown.points], colour, marker="o", label=label)
        panel.plot(sizes, [point.limit_seconds / first.limit_seconds for point in grown.points], colour, ls="--", lw=1)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.grid(alpha=0.3)
    panel.set_xlabel("size / smallest size")
    panel.set_ylabel("cost / cost at the smallest size (dashed: by count)")
    panel.legend(fontsize="x-small")
