"""Tables for people. Only whoever prints one imports this: rich takes longer to load than many a command to run."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Table", "Text", "console", "fact_table", "print_table"]


def fact_table(title: str) -> Table:
    """Names on the left, what they are on the right."""
    table = Table(show_header=False, title=Text(title), title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


def print_table(table: Table) -> None:
    """On stdout; 120 wide where that is no terminal."""
    console(120).print(table)


def console(pipe_columns: int) -> Console:
    """Stdout: as wide as the terminal; in a file or a pipe, so wide."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else pipe_columns
    return _Console(width=width, highlight=False)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """What a reader who has gone means is decided in one place, for tables and everything else."""
        raise BrokenPipeError
