"""The last step of a refresh: every file of standing queries is answered as of now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from index_store.errors import InputError, TbpipeError
from index_store.refresh_settings import StandingQueries
from index_store.standing_state import remove_other_states
from index_store.store import Store
from pipeline.jobs.standing import StandingJob, StandingReport, answer_standing
from pipeline.log import Log


@dataclass(slots=True)
class AnsweredQueries:
    """What became of all files."""

    reports: list[StandingReport] = field(default_factory=list)
    failures: list[TbpipeError] = field(default_factory=list)
    """Of files that could not be answered; their outputs are as they were."""
    num_left: int = 0
    """Files that a signal or --max-minutes left for the next run."""


def answer_queries(
    store: Store,
    asked: Sequence[StandingQueries],
    log: Log,
    should_stop: Callable[[], bool],
    pretrained: str | None = None,
    device: str = "auto",
) -> AnsweredQueries:
    """Bring the output of each up to date. What is wrong with one is told, and the others are answered.

    The caller holds the writer lock.
    """
    found = AnsweredQueries()
    outputs = [queries.output for queries in asked]
    for number, queries in enumerate(asked):
        if should_stop():
            found.num_left += 1
            continue
        try:
            if queries.output in outputs[:number]:
                raise InputError(f"two files of standing queries are to be answered in {queries.output}; name another")
            job = StandingJob(store=store.directory, asked=queries, pretrained=pretrained, device=device)
            report = answer_standing(job, should_stop)
        except TbpipeError as error:
            found.failures.append(error)
            log.error(
                "queries_failed",
                f"{queries.output} is as it was: {error}",
                output=queries.output,
                exit_code=error.exit_code,
            )
            continue
        found.reports.append(report)
        found.num_left += report.outcome == "interrupted"
        _tell(log, report)
    remove_other_states(store.directory, outputs)
    return found


def _tell(log: Log, report: StandingReport) -> None:
    for warning in report.warnings:
        log.warning("queries_warning", warning, output=report.output)
    ends = {
        "unchanged": "as it was",
        "written": "written",
        "interrupted": "not written yet: stopped, and the next refresh goes on",
    }
    log.info(
        "queries",
        f"{report.output}: {ends[report.outcome]} ({report.num_ranked} texts ranked, {report.num_kept} kept)",
        output=report.output,
        outcome=report.outcome,
        ranked=report.num_ranked,
        kept=report.num_kept,
    )
