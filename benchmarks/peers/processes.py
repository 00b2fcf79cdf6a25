"""CPU seconds of a command and of every process that it starts, also of those that outlive their parents."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from index_store.errors import TbpipeError

_ROOT = Path(__file__).resolve().parents[2]
_PROGRAMS = Path(__file__).resolve().parent / "programs"
_TIMEOUT_SECONDS = 1800.0
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 10.0
_SET_CHILD_SUBREAPER = 36
_LINES_SHOWN = 2


class CommandFailedError(TbpipeError):
    """A program of a peer ended with an error; the message has its last line."""


def run_program(python: Path, program: str, job: Path, threads: int) -> float:
    """CPU seconds of one of the programs on a job, on that many threads and without any hub. Raises CommandFailedError.

    What it prints is in ``log.txt`` beside the job.
    """
    offline = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    offline["RAY_worker_niceness"] = "0"  # with Ray's 15 its workers hardly run beside anything else
    settings = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    environment = {**os.environ, **offline, **settings, "PYTHONPATH": str(_ROOT), "PYTHONWARNINGS": "ignore"}
    command = [str(python), str(_PROGRAMS / program), str(job)]
    return count_cpu_seconds(command, environment, job.parent / "log.txt", _TIMEOUT_SECONDS)


def count_cpu_seconds(command: Sequence[str], environment: Mapping[str, str], log: Path, timeout: float) -> float:
    """Run the command, its output into ``log``, and count; what it leaves running is ended.

    Two counts, of which the larger one holds: what the system says of children that were waited for, and, where there
    is /proc, what each process had used when it was last looked at. The first one misses processes that nobody waits
    for (Ray's workers), the second one the last moments of each. Raises CommandFailedError.
    """
    others = frozenset(_descendants())
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    used: dict[tuple[int, int], float] = {}
    with log.open("wb") as output, _adopting_orphans():
        process = subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            ends = time.monotonic() + timeout
            while process.poll() is None and time.monotonic() < ends:
                used.update(_used_by(_descendants(others)))
                time.sleep(_POLL_SECONDS)
            timed_out = process.poll() is None
        finally:
            _end(process, others, used)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if timed_out or process.returncode:
        what = f"was stopped after {timeout:.0f} s" if timed_out else f"ended with {process.returncode}"
        raise CommandFailedError(f"{what}: {last_line(log)} (all of it is in {log})")
    waited_for = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return max(waited_for, sum(used.values()))


def last_line(log: Path) -> str:
    """The last lines of what a command printed, cut to a length that fits a table."""
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    return " ".join(lines[-_LINES_SHOWN:])[-300:] or "it printed nothing"


@contextmanager
def _adopting_orphans() -> Iterator[None]:
    """Processes whose parents end become children of this one, on Linux; elsewhere they are not counted."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else lambda *_: None
    prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _end(process: subprocess.Popen[bytes], others: frozenset[int], used: dict[tuple[int, int], float]) -> None:
    """Wait for the command and what it has started; first they are asked to end, then they are ended."""
    for number, patience in ((0, 0.5), (signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, _GRACE_SECONDS)):
        left = _descendants(others)
        for pid in left if number else []:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        ends = time.monotonic() + patience
        while left and time.monotonic() < ends:
            used.update(_used_by(left))
            time.sleep(_POLL_SECONDS)
            _reap(process, others)
            left = _descendants(others)
    if process.poll() is None:  # a system without /proc
        process.kill()
        process.wait()


def _reap(process: subprocess.Popen[bytes], others: frozenset[int]) -> None:
    """Take notice of the children that have ended, adopted ones too."""
    process.poll()
    for pid in _children().get(os.getpid(), []):
        if pid != process.pid and pid not in others:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _descendants(others: frozenset[int] = frozenset()) -> list[int]:
    """Every process below this one but ``others``, in no order; none where there is no /proc."""
    children, found, todo = _children(), list[int](), [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return [pid for pid in found if pid not in others]


def _children() -> dict[int, list[int]]:
    """Process -> its children, of all processes here."""
    found: dict[int, list[int]] = {}
    for pid, fields in _stats(entry.name for entry in Path("/proc").glob("[0-9]*")):
        found.setdefault(int(fields[1]), []).append(pid)
    return found


def _used_by(pids: Sequence[int]) -> dict[tuple[int, int], float]:
    """(process, start) -> its own CPU seconds; the start, because the system uses numbers again."""
    ticks = os.sysconf("SC_CLK_TCK")
    return {
        (pid, int(fields[19])): (int(fields[11]) + int(fields[12])) / ticks for pid, fields in _stats(map(str, pids))
    }


def _stats(names: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """Process and the fields of its stat behind the name, as proc(5) lists them: state, parent, ..."""
    for name in names:
        with suppress(OSError):  # it has ended
            text = Path("/proc", name, "stat").read_text("utf-8", errors="replace")
            yield int(name), text[text.rindex(")") + 2 :].split()
