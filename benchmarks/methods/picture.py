"""The table as one picture: what every row finds, and what a pair costs."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.methods.plan import Row, Scale
from benchmarks.methods.report import facts
from benchmarks.methods.results import Result
from index_store.atomic import replacing
from index_store.errors import ComponentMissingError

_COLOURS = {"zero-shot": "tab:grey", "trained": "tab:blue", "shipped": "tab:green"}
_WIDTH_INCHES, _ROW_INCHES, _REST_INCHES = 10.0, 0.28, 1.8
_LETTERS = 165


def draw(rows: Sequence[Row], results: Mapping[str, Result], scale: Scale, path: Path) -> Path:
    """Draw a PNG file, whole or not at all, and return its path. Raises ComponentMissingError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ComponentMissingError(f"{path.name} needs matplotlib: pip install 'tbpipe[plot]'") from error
    here = [row for row in rows if row.key in results]
    figure = Figure(figsize=(_WIDTH_INCHES, _REST_INCHES + _ROW_INCHES * len(here)), layout="constrained")
    FigureCanvasAgg(figure)
    found, cost = figure.subplots(1, 2, sharey=True)
    _draw_found(found, here, results)
    _draw_cost(cost, here, results)
    figure.suptitle(textwrap.fill(facts(rows, scale, results), _LETTERS), fontsize="x-small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path


def _draw_found(panel: Any, rows: Sequence[Row], results: Mapping[str, Result]) -> None:
    """R@1 as bars, R@5 as marks; the first row on top."""
    places = range(len(rows))
    colours = [_COLOURS[row.form] for row in rows]
    panel.barh(places, [results[row.key].t2v.at_1 for row in rows], color=colours, label="R@1")
    panel.plot([results[row.key].t2v.at_5 for row in rows], places, "k|", label="R@5")
    panel.set_yticks(places, [row.key for row in rows], fontsize="small")
    panel.invert_yaxis()
    panel.set_xlabel("text to video, percent")
    panel.legend(fontsize="small", loc="lower right")


def _draw_cost(panel: Any, rows: Sequence[Row], results: Mapping[str, Result]) -> None:
    """From the tokens, and from what is prepared where something can be."""
    prepared = [(place, results[row.key].prepared) for place, row in enumerate(rows)]
    kept = [(place, cost) for place, cost in prepared if cost is not None]
    across = [1e6 * results[row.key].cost.seconds_per_pair for row in rows]
    panel.plot(across, range(len(rows)), "ko", label="from tokens")
    panel.plot([1e6 * cost.seconds_per_pair for _, cost in kept], [place for place, _ in kept], "kx", label="prepared")
    panel.set_xscale("log")
    panel.grid(axis="y", alpha=0.3)
    panel.set_xlabel("CPU us a (query, video) pair")
    panel.legend(fontsize="small", loc="lower left")
