"""Progress on stderr: a bar with rate and time left on a terminal, nothing otherwise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[float], None]


@contextmanager
def progress_bar(title: str, total: int | None, unit: str, quiet: bool = False) -> Iterator[Advance]:
    """Give a function that moves the bar on by n; the bar is gone when the block ends."""
    if quiet or not sys.stderr.isatty():
        yield lambda count: None
        return
    from pipeline.bar import Bar  # loads rich, which takes longer than many a command

    with Bar(title, total, unit) as bar:
        yield bar.advance


@contextmanager
def named_steps(total: int, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Give a function that says which step begins: for steps of which each takes another time."""
    if quiet or not sys.stderr.isatty():
        yield lambda name: None
        return
    from pipeline.bar import Steps

    with Steps(total) as steps:
        yield steps.begin
