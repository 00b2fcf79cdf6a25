"""``tbpipe bench``: every stage beside the limits of this machine, on data made for the occasion or on a store."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from index_store.errors import InputError, InterruptedRunError, UsageError, from_os_error
from pipeline.progress import named_steps
from pipeline.stop import TerminatedError

if TYPE_CHECKING:
    from stages.bench.records import BenchReport
    from stages.bench.run import Found

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchJob:
    """Everything that ``tbpipe bench`` was told."""

    store: Path | None = None
    videos: Path | None = None
    model: str | None = None
    pretrained: str | None = None
    method: str | None = None
    """Names with commas between them; None: all, and of growth two."""
    top_k: int = 10
    memory: int = 512 << 20
    device: str = "auto"
    threads: int = 1
    quick: bool = False
    growth: bool = False
    directory: Path | None = None
    """Temporary data goes below this; None: where the system has its own."""
    plot: Path | None = None
    quiet: bool = False


def bench(job: BenchJob) -> BenchReport:
    """Run ``tbpipe bench``; what it wrote is gone when it ends, however it ends.

    Raises InterruptedRunError after a signal, UsageError, StoreMissingError and NoSpaceError before it measures.
    """
    _check(job)
    try:
        with _folder(job.directory) as folder, _threads(job.threads):
            return _bench(job, folder)
    except (KeyboardInterrupt, TerminatedError) as stop:
        number = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM
        raise InterruptedRunError(
            "stopped; nothing was measured to its end and nothing is left behind", number
        ) from None


def _check(job: BenchJob) -> None:
    if job.store is not None and job.model is not None:
        raise UsageError("--store has its own model; leave --model out")
    if job.pretrained is not None and job.store is None:
        raise UsageError("--pretrained is for the model of a --store; without one, weights are drawn")
    if job.videos is not None and not job.videos.exists():
        raise InputError(f"there is no {job.videos}; give --videos a folder, a video or a manifest that exists")
    if job.plot is not None:
        from stages.bench.plot import require_matplotlib

        require_matplotlib(job.plot)


def _bench(job: BenchJob, folder: Path) -> BenchReport:
    from stages.bench.growth import USUAL_METHODS
    from stages.bench.material import BenchOptions, Material
    from stages.bench.methods import choose_methods
    from stages.bench.run import Bench
    from stages.bench.scale import FULL, QUICK

    methods = choose_methods(job.method)
    options = BenchOptions(
        store=job.store,
        videos=job.videos,
        model=job.model,
        pretrained=job.pretrained,
        methods=methods,
        device=job.device,
        top_k=job.top_k,
        memory_bytes=job.memory,
        growth=job.growth,
        growth_methods=USUAL_METHODS if job.method is None else methods,
    )
    found: list[Found] = []
    with Material(options, QUICK if job.quick else FULL, folder) as material:
        run = Bench(material)
        steps = run.steps()
        with named_steps(len(steps), job.quiet) as begin:
            for name, step in steps:
                begin(name)
                found += step()
        report = run.report(found)
    if job.plot is not None:
        from stages.bench.plot import draw

        draw(report, job.plot)
    return report


@contextmanager
def _folder(parent: Path | None) -> Iterator[Path]:
    """A temporary folder. Raises InputError for a parent that does not exist, StoreError where it cannot be made."""
    if parent is not None and not parent.is_dir():
        raise InputError(f"there is no folder {parent}; make it, or name another with --directory")
    try:
        temporary = tempfile.TemporaryDirectory(prefix="tbpipe-bench-", dir=parent)
    except OSError as error:
        raise from_os_error(error, parent or Path(tempfile.gettempdir())) from error
    with temporary as name:
        yield Path(name)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """So many threads a product: for libraries that are not loaded yet, through the environment."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(number)))
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
