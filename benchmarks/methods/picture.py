"""The table as one picture: what is found against what a pair costs."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.methods.plan import Row, Scale
from benchmarks.methods.report import facts
from benchmarks.methods.results import Result
from index_store.atomic import replacing
from index_store.errors import ComponentMissingError

_MARKERS = {"zero-shot": "o", "trained": "s", "shipped": "D"}
_INCHES = (9.0, 6.5)
_LETTERS = 150


def draw(rows: Sequence[Row], results: Mapping[str, Result], scale: Scale, path: Path) -> Path:
    """Draw a PNG file, whole or not at all, and return its path. Raises ComponentMissingError without matplotlib.

    A method that can be prepared stands where it does prepared: that is how it would be used.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ComponentMissingError(f"{path.name} needs matplotlib: pip install 'tbpipe[plot]'") from error
    figure = Figure(figsize=_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    for form, marker in _MARKERS.items():
        here = [row for row in rows if row.form == form and row.key in results]
        costs = [results[row.key].prepared or results[row.key].cost for row in here]
        across = [1e6 * cost.seconds_per_pair for cost in costs]
        up = [results[row.key].t2v.at_1 for row in here]
        panel.plot(across, up, marker, label=form)
        for row, x, y in zip(here, across, up, strict=True):
            panel.annotate(row.label, (x, y), xytext=(5, 4), textcoords="offset points", fontsize="small")
    panel.set_xscale("log")
    panel.margins(x=0.15, y=0.1)
    panel.set_xlabel("CPU us a (query, video) pair, prepared where that is possible")
    panel.set_ylabel("R@1, text to video")
    panel.legend()
    figure.suptitle(textwrap.fill(facts(rows, scale, results), _LETTERS), fontsize="x-small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path
