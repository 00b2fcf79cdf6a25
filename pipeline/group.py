"""Where errors become one line on stderr and an exit code, and signals an orderly end."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import signal
import sys
import threading
from typing import Any, NoReturn

import click

from index_store.errors import TbpipeError
from pipeline.stop import TerminatedError

_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _NobodyReadsError(Exception):
    """The reader of our stdout has gone. click would take a BrokenPipeError for a failure of its own."""


class Group(click.Group):
    """Turns errors into one line on stderr and their exit code."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run the command line and leave with its exit code."""
        before = signal.signal(signal.SIGTERM, _terminate)
        try:
            self._run(*args, **kwargs)
        except SystemExit as leave:
            if not args and not kwargs and isinstance(leave.code, int):  # this is the program, not a call within one
                if leave.code in _STOPPED:
                    _leave_at_once(leave.code)
                if "torch" in sys.modules:
                    _leave_soon(leave.code)
            raise
        finally:
            signal.signal(signal.SIGTERM, before)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it has printed must have arrived before its exit code says that it has."""
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            raise _NobodyReadsError from None

    def _run(self, *args: Any, **kwargs: Any) -> NoReturn:
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.Abort:
            _leave("interrupted; everything finished before is committed", 130)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except TbpipeError as error:
            _leave(str(error), error.exit_code)
        except KeyboardInterrupt:
            _leave("interrupted; everything finished before is committed", 130)
        except TerminatedError:
            _leave("terminated; everything finished before is committed", 143)
        except _NobodyReadsError:
            _print_nothing_more()
            sys.exit(128 + signal.SIGPIPE)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
                _print_nothing_more()
                _leave("the disk is full where the output goes; free some space, or print elsewhere", 14)
            if os.environ.get("TBPIPE_DEBUG"):
                raise
            name = type(error).__name__
            _leave(
                f"a bug in tbpipe: {name}: {error}; the store is intact. TBPIPE_DEBUG=1 shows where; please report it",
                1,
            )
        sys.exit(code if isinstance(code, int) else 0)


def _terminate(signal_number: int, frame: object) -> NoReturn:
    raise TerminatedError


def _print_nothing_more() -> None:
    """Python would try what is left of stdout again at its end, and fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave(message: str, code: int) -> NoReturn:
    from pipeline.printing import printable

    click.echo(f"tbpipe: {printable(message)}", err=True)
    sys.exit(code)


def _leave_soon(code: int) -> None:
    """End as Python does, but without taking the libraries apart: with torch loaded, 0.8 CPU s and 200 MB.

    Returns where something is left to do or to say, which is then Python's own affair.
    """
    if threading.active_count() > 1:
        return
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return
    os._exit(code)


def _leave_at_once(code: int) -> NoReturn:
    """Without taking everything apart: with torch loaded that is seconds, and whoever sent the signal waits."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
