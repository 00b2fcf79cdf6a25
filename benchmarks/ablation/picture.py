"""The tables as one picture: a panel each, with error bars."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablation.plan import Scale
from benchmarks.ablation.report import Summary, facts
from index_store.atomic import replacing
from index_store.errors import ComponentMissingError

_COLUMNS = 3
_PANEL_INCHES = (4.6, 3.0)
_LETTERS_PER_INCH = 14
_LEAST_HEIGHT = 4.0
"""Percent."""


def draw(summaries: Sequence[Summary], scale: Scale, path: Path) -> Path:
    """Draw a PNG file, whole or not at all, and return its path. Raises ComponentMissingError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ComponentMissingError(f"{path.name} needs matplotlib: pip install 'tbpipe[plot]'") from error
    columns = min(_COLUMNS, len(summaries))
    rows = -(-len(summaries) // columns)
    width, height = columns * _PANEL_INCHES[0], rows * _PANEL_INCHES[1] + 1
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, summary in zip(panels, summaries, strict=False):
        _draw_panel(panel, summary)
    for panel in panels[len(summaries) :]:
        panel.set_axis_off()
    figure.suptitle(textwrap.fill(facts(summaries, scale), round(_LETTERS_PER_INCH * width)), fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path


def _draw_panel(panel: Any, summary: Summary) -> None:
    """Ours on the left axis; the paper's, which are of other videos, on one of their own with as many percent."""
    panel.set_title(f"{summary.name}: {summary.title}", fontsize="medium")
    places = range(len(summary.rows))
    panel.set_xticks(places, [row.label for row in summary.rows])
    panel.margins(x=0.15)
    panel.set_ylabel("focused R@1")
    means = [row.focused.mean for row in summary.rows]
    bars = [row.focused.deviation or 0.0 for row in summary.rows]
    is_scale = all(row.label.isdecimal() for row in summary.rows)
    panel.errorbar(places, means, yerr=bars, fmt="o-" if is_scale else "o", capsize=3)
    paper = [row.paper for row in summary.rows if row.paper is not None]
    half = _half_height(means, bars, paper)
    _centre(panel, means, half)
    if paper:
        other = panel.twinx()
        other.plot(places, paper, "x--", color="grey")
        other.set_ylabel("the paper's", color="grey")
        other.tick_params(axis="y", colors="grey")
        _centre(other, paper, half)


def _half_height(means: Sequence[float], bars: Sequence[float], paper: Sequence[float]) -> float:
    """Half of the percent that both axes show; never so few that noise looks like a trend."""
    spans = [max(values) - min(values) for values in (means, paper) if values]
    return max([_LEAST_HEIGHT, *spans]) / 2 + max(bars, default=0.0) + 0.5


def _centre(panel: Any, values: Sequence[float], half: float) -> None:
    if values:
        middle = (max(values) + min(values)) / 2
        panel.set_ylim(middle - half, middle + half)
