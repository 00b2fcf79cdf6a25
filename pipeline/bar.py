"""The progress bar on a terminal: done, rate, time so far and time left."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from typing_extensions import Self


class _Rate(ProgressColumn):
    """Things per second, or seconds per thing when it is slow."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text(f"- {self._unit}/s", style="progress.data.speed")
        text = f"{speed:.1f} {self._unit}/s" if speed >= 1 else f"{1 / speed:.1f} s/{self._unit}"
        return Text(text, style="progress.data.speed")


class _Drawn(AbstractContextManager[Any]):
    """Drawn on stderr while the block runs, and gone when it ends."""

    def __init__(self, title: str, total: int | None, *columns: ProgressColumn) -> None:
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task(title, total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()


class Bar(_Drawn):
    """How many things are done, how fast, and the time left."""

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
        super().__init__(title, total, TextColumn(title), BarColumn(), MofNCompleteColumn(), _Rate(unit), *times)

    def advance(self, count: float) -> None:
        """Move on by ``count``."""
        self._progress.advance(self._task, count)


class Steps(_Drawn):
    """How many steps are done, and the name of the one that runs."""

    def __init__(self, total: int) -> None:
        super().__init__("", total, MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._num_begun = 0

    def begin(self, name: str) -> None:
        """The step before has ended, this one begins."""
        self._progress.update(self._task, completed=self._num_begun, description=name)
        self._num_begun += 1
