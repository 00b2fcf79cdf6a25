"""Decodes files in worker processes, in order, ahead of the consumer, within bounds of memory and time.

    map() in the caller's thread   takes tasks, hands out results in the order of the tasks
    one thread                     gives tasks to workers, collects answers, kills what hangs, replaces what died
    workers                        stages.decode_worker, one process each

A file that crashes, hangs or eats memory costs that file. Whether it is to blame is decided by a worker that has done
nothing else before: a file that fails in a used worker is tried once more in a new one, so that every run comes to the
same answer.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from index_store.errors import ComponentMissingError
from index_store.settings import SamplingSettings
from stages.decode_worker import Answer, Ready, Request, WorkerSettings, memory_file, receive_message, send_message
from stages.errors import DecodeError
from stages.video import DECODERS, FrameBatch

START_SECONDS = 120.0
"""A worker that has not loaded its libraries by then does not work."""

LAST_WORDS_BYTES = 4096

GONE_SECONDS = 5.0
"""A killed process that is not gone by then is left to the kernel."""

MAX_FAILED_STARTS = 3

BOOT = "import sys; sys.path[:] = sys.argv[2:]; from stages.decode_worker import main; main(int(sys.argv[1]))"

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class DecodeTask:
    """A file to decode."""

    path: Path
    known_hashes: frozenset[str] = frozenset()
    """SHA-256 (hex) of contents that are stored already: a file with one of them is hashed but not decoded."""


@dataclass(slots=True, eq=False)
class DecodeResult:
    """What became of a task. Neither frames nor error = known content."""

    task: DecodeTask
    content_hash: str
    """SHA-256, hex; empty when the file could not be read to its end unchanged."""
    size_bytes: int
    mtime_ns: int
    inode: int
    frames: FrameBatch | None = None
    """Its array is shared memory of the pool: copy what you keep, then call release()."""
    error: DecodeError | None = None

    def release(self) -> None:
        """Drop the frames; their memory is free when no other view of them is left."""
        self.frames = None


@dataclass(slots=True, eq=False)
class _Run:
    """One call of map()."""

    waiting: deque[_Job] = field(default_factory=deque)
    again: deque[_Job] = field(default_factory=deque)
    """Jobs that failed in a used worker and wait for a new one."""
    done: dict[int, DecodeResult] = field(default_factory=dict)
    num_taken: int = 0
    """Tasks taken from the caller."""
    next_out: int = 0
    """Number of the task whose result is handed out next."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A task at its place in the order of results."""

    run: _Run
    number: int
    task: DecodeTask


class _Worker:
    """A worker process and what it is doing."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.connection, theirs = socket.socketpair()
        self._stderr = memory_file(0)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", BOOT, str(theirs.fileno()), *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=[theirs.fileno()],
                env={"PATH": os.defpath, **os.environ, **ONE_THREAD},  # decord needs one, cron may give none
                start_new_session=True,  # Ctrl-C goes to the parent only
            )
        self.is_ready = False
        self.num_done = 0
        self.job: _Job | None = None
        self.deadline = time.monotonic() + START_SECONDS
        with contextlib.suppress(OSError):  # it died at once: the selector will say so
            send_message(self.connection, settings)

    @property
    def is_timed(self) -> bool:
        """True = it is starting or decoding, so its deadline counts."""
        return self.job is not None or not self.is_ready

    def start(self, job: _Job, timeout_seconds: float) -> None:
        """Give it a job."""
        self.job = job
        self.deadline = time.monotonic() + timeout_seconds
        with contextlib.suppress(OSError):
            send_message(self.connection, Request(os.fspath(job.task.path), tuple(job.task.known_hashes)))

    def kill(self) -> int:
        """End the process now; returns its exit status as subprocess does."""
        self.connection.close()
        self.process.kill()
        # It may hang in the kernel, for instance on a dead network disk.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GONE_SECONDS)
        os.close(self._stderr)
        return self.process.returncode or 0

    def last_words(self) -> str:
        """The end of what it wrote to stderr."""
        size = os.fstat(self._stderr).st_size
        text = os.pread(self._stderr, LAST_WORDS_BYTES, max(0, size - LAST_WORDS_BYTES)).decode(errors="replace")
        return " / ".join(text.strip().splitlines()[-3:])


class DecodePool:
    """Worker processes that decode. Use as a context manager; one map() at a time.

    ``timeout_seconds`` and ``memory_bytes`` are for one file in one worker, which is replaced after ``recycle_after``
    files. Decoded frames wait for the consumer up to ``lookahead_bytes``; beyond that, only the file that is due next
    is begun.
    """

    def __init__(
        self,
        sampling: SamplingSettings,
        num_workers: int = 1,
        timeout_seconds: float = 120.0,
        memory_bytes: int = 4 << 30,
        recycle_after: int = 500,
        lookahead_bytes: int = 1 << 30,
        decoders: tuple[str, ...] = DECODERS,
    ) -> None:
        self._settings = WorkerSettings(sampling, decoders, timeout_seconds, memory_bytes, os.getpid())
        self._num_workers = max(1, num_workers)
        self._recycle_after = max(1, recycle_after)
        self._lookahead_bytes = lookahead_bytes
        self._lookahead_tasks = max(32, 8 * self._num_workers)
        self._changed = threading.Condition(threading.RLock())
        self._run: _Run | None = None
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._failure: Exception | None = None
        self._held_bytes = 0
        self._mean_bytes = 0.0
        self._is_closed = False
        self._wake_receiver, self._wake_sender = os.pipe()
        os.set_blocking(self._wake_sender, False)
        self._thread = threading.Thread(target=self._serve, name="tbpipe-decode-pool", daemon=True)

    def __enter__(self) -> DecodePool:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers and wait for their end. A map() that is still running ends with RuntimeError."""
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            self._changed.notify_all()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._wake_receiver)
        os.close(self._wake_sender)

    @property
    def held_bytes(self) -> int:
        """Bytes of decoded frames that somebody still holds, or that wait to be handed out."""
        with self._changed:
            return self._held_bytes

    def map(self, tasks: Iterable[DecodeTask]) -> Iterator[DecodeResult]:
        """Decode the tasks; results in the order of the tasks, which are taken as they are needed.

        Raises ComponentMissingError when workers cannot start, RuntimeError when the pool is closed meanwhile.
        """
        run = _Run()
        with self._changed:
            if self._run is not None:
                raise RuntimeError("this pool is busy with another map()")
            self._run = run
        try:
            source = iter(tasks)
            while self._take(run, source):
                yield self._result(run)
        finally:
            with self._changed:
                run.waiting.clear()
                run.again.clear()
                run.done.clear()
                self._run = None

    def _take(self, run: _Run, source: Iterator[DecodeTask]) -> bool:
        """Fill up the list of waiting tasks; False when all results were handed out."""
        while run.num_taken - run.next_out < self._lookahead_tasks:
            task = next(source, None)
            if task is None:
                break
            with self._changed:
                run.waiting.append(_Job(run, run.num_taken, task))
                run.num_taken += 1
        self._wake()
        return run.next_out < run.num_taken

    def _result(self, run: _Run) -> DecodeResult:
        """Wait for the result that is due."""
        with self._changed:
            while run.next_out not in run.done:
                if self._failure is not None:
                    raise self._failure
                if self._is_closed:
                    raise RuntimeError("the decode pool was closed")
                self._changed.wait()
            run.next_out += 1
            return run.done.pop(run.next_out - 1)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_sender, b"x")

    # ---- everything below runs in the pool's thread -------------------------------------------------------------

    def _serve(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._wake_receiver, selectors.EVENT_READ)
        try:
            while not self._is_closed:
                self._assign(selector)
                for key, _ in selector.select(self._seconds_to_deadline()):
                    if key.fileobj == self._wake_receiver:
                        os.read(self._wake_receiver, 4096)
                    else:
                        self._hear(key.data, selector)
                self._stop_overdue(selector)
        except Exception as error:
            self._fail(error)
        finally:
            for worker in list(self._workers):
                self._remove(worker, selector)
            selector.close()

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def _assign(self, selector: selectors.BaseSelector) -> None:
        """Give waiting tasks to idle workers, and start workers where all are busy."""
        with self._changed:
            run = self._run
            if run is None or self._failure is not None:
                return
            num_idle = num_starting = 0
            for worker in self._workers:
                if not worker.is_ready:
                    num_starting += 1
                elif worker.job is None:
                    job = self._next_job(run, worker)
                    if job is None:
                        num_idle += 1
                    else:
                        worker.start(job, self._settings.timeout_seconds)
            num_wanted = len(run.again) + max(0, len(run.waiting) - num_idle) - num_starting
        for _ in range(min(num_wanted, self._num_workers - len(self._workers))):
            worker = _Worker(self._settings)
            self._workers.append(worker)
            selector.register(worker.connection, selectors.EVENT_READ, worker)

    def _next_job(self, run: _Run, worker: _Worker) -> _Job | None:
        if run.again and worker.num_done == 0:
            return run.again.popleft()
        return run.waiting.popleft() if run.waiting and self._may_start(run) else None

    def _may_start(self, run: _Run) -> bool:
        if run.waiting[0].number == run.next_out:
            return True
        num_busy = sum(worker.job is not None for worker in self._workers)
        return self._held_bytes + (num_busy + 1) * self._mean_bytes <= self._lookahead_bytes

    def _seconds_to_deadline(self) -> float | None:
        deadlines = [worker.deadline for worker in self._workers if worker.is_timed]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _hear(self, worker: _Worker, selector: selectors.BaseSelector) -> None:
        """Read what a worker sent; the end of its connection is its death."""
        try:
            worker.connection.settimeout(10)  # it has begun to send: the rest follows at once, or never
            message, descriptors = receive_message(worker.connection)
            worker.connection.settimeout(None)
        except (EOFError, OSError):
            self._bury(worker, selector)
            return
        if isinstance(message, Ready):
            worker.is_ready, self._failed_starts = True, 0
            return
        assert isinstance(message, Answer)
        assert worker.job is not None
        job, worker.job = worker.job, None
        worker.num_done += 1
        is_doubtful = message.reason_code in ("out_of_memory", "decoder_crashed")
        if is_doubtful and worker.num_done > 1:
            self._again(job)
        else:
            self._deliver(job, self._result_of(job.task, message, descriptors))
        if is_doubtful or self._is_spent(worker, message):
            self._remove(worker, selector)

    def _is_spent(self, worker: _Worker, answer: Answer) -> bool:
        return worker.num_done >= self._recycle_after or answer.resident_bytes > self._settings.memory_bytes / 2

    def _bury(self, worker: _Worker, selector: selectors.BaseSelector) -> None:
        """A worker died by itself."""
        words = worker.last_words()
        status = self._remove(worker, selector)
        if not worker.is_ready:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                found = f"a decode worker cannot start, it {ended(status)}: {words or 'it said nothing'}"
                self._fail(ComponentMissingError(f"{found}; install tbpipe's dependencies again"))
        if worker.job is not None:
            if worker.num_done:
                self._again(worker.job)
            else:
                self._deliver(worker.job, died(worker.job.task, status, words))

    def _stop_overdue(self, selector: selectors.BaseSelector) -> None:
        """Kill workers that are past their deadline."""
        now = time.monotonic()
        for worker in list(self._workers):
            if worker.deadline > now or not worker.is_timed:
                continue
            if worker.job is None:
                self._bury(worker, selector)
                continue
            job = worker.job
            self._remove(worker, selector)
            detail = f"not finished after {self._settings.timeout_seconds:g} s"
            self._deliver(job, failed(job.task, "decode_timeout", detail))

    def _remove(self, worker: _Worker, selector: selectors.BaseSelector) -> int:
        selector.unregister(worker.connection)
        self._workers.remove(worker)
        return worker.kill()

    def _again(self, job: _Job) -> None:
        """Keep a job for a new worker. The one that failed is gone or goes now, so there is room to start one."""
        with self._changed:
            if job.run is self._run:
                job.run.again.append(job)

    def _deliver(self, job: _Job, result: DecodeResult) -> None:
        with self._changed:
            if job.run is self._run:
                job.run.done[job.number] = result
                self._changed.notify_all()

    def _result_of(self, task: DecodeTask, answer: Answer, descriptors: list[int]) -> DecodeResult:
        result = DecodeResult(task, answer.content_hash, answer.size_bytes, answer.mtime_ns, answer.inode)
        if answer.reason_code:
            result.error = DecodeError(answer.reason_code, answer.reason_detail)
        if answer.frames_shape is not None:
            result.frames = self._batch_of(answer, answer.frames_shape, descriptors[0])
        return result

    def _batch_of(self, answer: Answer, shape: tuple[int, ...], descriptor: int) -> FrameBatch:
        """The frames as a view of the memory file, whose bytes count as held until the last view is gone."""
        size_bytes = int(np.prod(shape))
        try:
            memory = mmap.mmap(descriptor, size_bytes)
        finally:
            os.close(descriptor)
        with self._changed:
            self._held_bytes += size_bytes
            self._mean_bytes += 0.2 * (size_bytes - self._mean_bytes)
        weakref.finalize(memory, self._give_back, size_bytes).atexit = False
        pixels = np.frombuffer(memory, np.uint8).reshape(shape)
        times = np.array(answer.timestamps_seconds, np.float64)
        return FrameBatch(pixels, times, answer.duration_seconds, answer.decoder, answer.note, answer.is_partial)

    def _give_back(self, size_bytes: int) -> None:
        with self._changed:
            self._held_bytes -= size_bytes
        self._wake()


def failed(task: DecodeTask, reason_code: str, detail: str) -> DecodeResult:
    """The result of a task whose worker is gone."""
    return DecodeResult(task, "", 0, 0, 0, error=DecodeError(reason_code, detail))


def died(task: DecodeTask, status: int, words: str) -> DecodeResult:
    """The result of a task that ended a new worker. ``words``: what the worker wrote to stderr last."""
    # C++ libraries do not return when memory ends: they throw, and nobody catches it. The kernel ends whom it likes.
    ran_out = "std::bad_alloc" in words or status == -signal.SIGKILL
    return failed(task, "out_of_memory" if ran_out else "decoder_crashed", f"the worker {ended(status)}")


def ended(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
