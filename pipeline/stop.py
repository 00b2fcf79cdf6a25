"""Ctrl-C and SIGTERM: the first one asks the run to commit and leave, the second Ctrl-C leaves at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from index_store.errors import InterruptedRunError


class TerminatedError(BaseException):
    """SIGTERM outside of work that can be asked to end: unwinds, so that temporary files are removed."""


class StopRequest:
    """Remembers which signal asked the run to stop; 0 while none did."""

    def __init__(self) -> None:
        self.signal_number = 0

    def __call__(self) -> bool:
        """Whether a signal has come."""
        return self.signal_number != 0

    def error(self, message: str) -> InterruptedRunError:
        """The error that a stopped run ends with: exit code 130 or 143."""
        return InterruptedRunError(message, self.signal_number or signal.SIGINT)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """While inside, SIGINT and SIGTERM only set the request; a second SIGINT raises KeyboardInterrupt as usual."""
    request = StopRequest()

    def remember(signal_number: int, frame: FrameType | None) -> None:
        if request() and signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal_number = signal_number

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
