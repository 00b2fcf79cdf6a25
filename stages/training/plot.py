"""A picture of a training run: losses above, what the validation videos were found with below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from index_store.atomic import replacing


def draw(lines: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw the lines of a journal into a PNG file, whole or not at all, and return its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [line for line in lines if line["event"] == "step"]
    validations = [line for line in lines if line["event"] == "validation"]
    figure = Figure(figsize=(8, 7), layout="constrained")
    FigureCanvasAgg(figure)
    losses, recalls = figure.subplots(2, 1, sharex=True)
    for name in ("loss", "broad_loss", "focused_loss", "focused_loss_v2t"):
        values = [line[name] for line in steps if name in line]
        if values:
            losses.plot([line["step"] for line in steps], _smoothed(values), label=name.replace("_", " "))
    losses.set_ylabel("loss")
    losses.legend()
    for name, style in (("broad", "--"), ("focused", "-")):
        for cut in ("R@1", "R@5"):
            shown = [line[name][cut] for line in validations]
            recalls.plot([line["step"] for line in validations], shown, style, marker=".", label=f"{name} {cut}")
    recalls.set_xlabel("step")
    recalls.set_ylabel("% of the validation queries")
    recalls.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path


def _smoothed(values: Sequence[float], keep: float = 0.95) -> list[float]:
    """Running means, so that the trend shows."""
    smooth, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        smooth.append(total / weight)
    return smooth
