"""``tbpipe prepare``: what a method makes of videos alone, computed once and kept in the store's directory."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from index_store.errors import UsageError
from index_store.store import Store
from pipeline.progress import Advance, progress_bar

if TYPE_CHECKING:
    from stages.prepare import PrepareReport


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareJob:
    """Everything that ``tbpipe prepare`` was told."""

    store: Path
    method: str | None = None
    weights: Path | None = None
    official: bool = False
    device: str = "auto"
    verify: bool = False
    lock_timeout: float = 0.0
    quiet: bool = False


def prepare(job: PrepareJob) -> PrepareReport:
    """Run ``tbpipe prepare``. No text tower is needed."""
    store = Store.open(job.store)
    if job.method is None and job.weights is None:
        raise UsageError("there is nothing to prepare for: give --method NAME, --weights FILE, or both")
    from pipeline.jobs.answering import make_head
    from stages.models.clip import choose_device
    from stages.prepare import prepare as run

    device = choose_device(job.device)
    reranker = make_head(store, job.method, job.weights, device, job.official)
    with ExitStack() as stack:

        def advance(total: int) -> Advance:
            return stack.enter_context(progress_bar("prepare", total, "videos", job.quiet))

        return run(
            store,
            reranker,
            device=device,
            weights=job.weights,
            verify=job.verify,
            lock_timeout_seconds=job.lock_timeout,
            advance=advance,
        )
