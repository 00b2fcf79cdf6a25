"""Tables for people. Only whoever prints one imports this: rich takes longer to load than many a command to run."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Table", "Text", "fact_table", "print_table"]


def fact_table(title: str) -> Table:
    """Names on the left, what they are on the right."""
    table = Table(show_header=False, title=Text(title), title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


def print_table(table: Table) -> None:
    """On stdout; 120 wide where that is no terminal."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    Console(width=width, highlight=False).print(table)
