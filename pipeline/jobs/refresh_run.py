"""A refresh as cron sees it: whatever its end, the log and the metrics file say so."""

from __future__ import annotations

import signal
import sys
import time

from index_store.errors import InputError, StoreError, StoreLockedError, TbpipeError
from pipeline.jobs.refresh import RefreshJob, RefreshResult, refresh
from pipeline.log import Log
from pipeline.metrics_file import Metric, write_metrics
from pipeline.stop import TerminatedError


def run(job: RefreshJob, log: Log) -> RefreshResult:
    """``refresh``, logged and measured. With a JSON log an error is an event there, and ends the process."""
    _require_metrics_folder(job)
    before = time.monotonic()
    try:
        result = refresh(job, log)
    except (TbpipeError, KeyboardInterrupt, TerminatedError) as error:
        code = _exit_code(error)
        if not isinstance(error, StoreLockedError):  # the other run will tell
            _measure(job, log, [_code(code), _duration(before)], succeeded=False)
        if not log.is_json:
            raise
        log.error("failed", str(error) or "interrupted; everything finished before is committed", exit_code=code)
        sys.exit(code)
    except Exception:
        _measure(job, log, [_code(1), _duration(before)], succeeded=False)
        raise
    code = result.exit_code
    _measure(job, log, [_code(code), _duration(before), *_metrics(result)], succeeded=code in (0, 3))
    if result.stopped_by is not None:
        log.error("stopped", str(result.stopped_by), exit_code=code)
    else:
        log.info("finished", f"done in {time.monotonic() - before:.1f} s", exit_code=code, seconds=result.seconds)
    return result


def _exit_code(error: BaseException) -> int:
    if isinstance(error, TbpipeError):
        return error.exit_code
    return 128 + (signal.SIGTERM if isinstance(error, TerminatedError) else signal.SIGINT)


def _require_metrics_folder(job: RefreshJob) -> None:
    if job.metrics_file is not None and not job.metrics_file.absolute().parent.is_dir():
        raise InputError(f"the folder of --metrics-file {job.metrics_file} does not exist; make it, or name another")


def _measure(job: RefreshJob, log: Log, metrics: list[Metric], succeeded: bool) -> None:
    """Write the metrics; that they cannot be written is told, and ends nothing."""
    if job.metrics_file is None or job.dry_run:
        return
    now = time.time()
    metrics.append(Metric("tbpipe_refresh_end_timestamp_seconds", "End of the last refresh.", now))
    try:
        write_metrics(job.metrics_file, metrics, now if succeeded else None)
    except StoreError as error:
        log.warning("metrics", str(error))


def _code(code: int) -> Metric:
    return Metric("tbpipe_refresh_exit_code", "0: done; 3: done, look at the quarantined inputs.", code)


def _duration(before: float) -> Metric:
    return Metric("tbpipe_refresh_duration_seconds", "Time that the refresh took.", time.monotonic() - before)


def _metrics(result: RefreshResult) -> list[Metric]:
    plan, extracted = result.plan, result.extracted
    changes = {
        "unchanged": plan.num_unchanged,
        "new": len(plan.new),
        "changed": len(plan.changed),
        "moved": len(plan.moves) + len(plan.touched),
        "removed": len(plan.removed),
        "left": result.num_left,
    }
    reasons = extracted.reasons if extracted is not None else {}
    videos = {str(status): count for status, count in result.videos.items()}
    return [
        Metric("tbpipe_videos", "Videos in the store.", videos, "status"),
        Metric("tbpipe_refresh_videos", "Videos of the sources, by what became of them.", changes, "change"),
        Metric("tbpipe_refresh_quarantined", "Inputs quarantined by this refresh.", reasons, "reason"),
        Metric("tbpipe_refresh_problems", "Folders that could not be read.", len(plan.problems)),
        Metric("tbpipe_refresh_step_seconds", "Time that each step took.", result.seconds, "step"),
    ]
