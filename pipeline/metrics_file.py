"""What a refresh did, as a Prometheus textfile: for node_exporter's collector, which reads ``*.prom`` of a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from index_store.errors import from_os_error

_LAST_SUCCESS = "tbpipe_refresh_last_success_timestamp_seconds"


@dataclass(frozen=True, slots=True)
class Metric:
    """One number, or one for each value of a label."""

    name: str
    help: str
    value: float | Mapping[str, float] | Mapping[str, int]
    label: str = ""

    def lines(self) -> list[str]:
        """In the text format of Prometheus."""
        values = self.value if isinstance(self.value, Mapping) else {"": self.value}
        samples = [
            f'{self.name}{{{self.label}="{_escaped(key)}"}} {value:.15g}' if self.label else f"{self.name} {value:.15g}"
            for key, value in values.items()
        ]
        return [f"# HELP {self.name} {self.help}", f"# TYPE {self.name} gauge", *samples]


def write_metrics(path: Path, metrics: list[Metric], succeeded_at: float | None) -> None:
    """Replace the file at once; without a success now, the time of the last one stays what it was.

    ``succeeded_at``: seconds since 1970. Raises StoreError, NoSpaceError, NotWritableError.
    """
    if succeeded_at is None:
        succeeded_at = _last_success(path)
    if succeeded_at is not None:
        metrics = [*metrics, Metric(_LAST_SUCCESS, "End of the last refresh that was done.", succeeded_at)]
    content = "".join(line + "\n" for metric in metrics for line in metric.lines())
    temporary = path.with_name(f".{path.name}.tmp")  # the collector reads whatever ends in .prom
    try:
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise from_os_error(error, path) from error


def _last_success(path: Path) -> float | None:
    try:
        found = re.search(rf"^{_LAST_SUCCESS} ([0-9.e+]+)$", path.read_text("utf-8", "replace"), re.MULTILINE)
        return float(found[1]) if found else None
    except (OSError, ValueError):
        return None


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
