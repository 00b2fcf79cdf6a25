"""What a refresh did or would do -> what people read, or one JSON object."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from pipeline.printing import print_json, printable

if TYPE_CHECKING:
    from pipeline.jobs.refresh import RefreshResult
    from pipeline.refresh_plan import RefreshPlan

_SHOWN_NAMES = 20
"""Of each kind of change that --dry-run lists; --json has all."""


def show_refresh(result: RefreshResult, as_json: bool, quiet: bool) -> None:
    """Print what a refresh did, or would do."""
    plan = result.plan
    if as_json:
        print_json(_refresh_fields(result))
        return
    if result.dry_run:
        _show_plan(plan)
        return
    if quiet:
        return
    extracted = result.extracted
    parts = [
        (extracted.ok if extracted else 0, "extracted"),
        (extracted.partial if extracted else 0, "partial"),
        (extracted.shared if extracted else 0, "with known content"),
        (len(plan.moves) + len(plan.touched), "moved"),
        (len(plan.removed), "removed"),
        (extracted.quarantined if extracted else 0, "quarantined"),
        (plan.num_kept, "kept, not readable now"),
        (plan.num_unchanged, "unchanged"),
        (result.num_left, "left to do"),
    ]
    counted = ", ".join(f"{count} {name}" for count, name in parts if count)
    index = f"; index generation {result.generation}" if result.index_was_updated else ""
    answered = [] if result.answered is None else result.answered.reports
    written = sum(report.outcome == "written" for report in answered)
    queries = f"; {written} of {len(answered)} query files answered anew" if answered else ""
    print(f"{counted or 'nothing to do'}{index}{queries}")


def _show_plan(plan: RefreshPlan) -> None:
    """What a dry run found: how many, and the first names."""
    print("dry run: nothing was changed")
    moved = [f"{move.origin} -> {move.outcome.file.key}" for move in plan.moves]
    moved += [f"{record.key} -> {record.path}" for record in plan.touched]
    groups = {
        "new": plan.new,
        "changed": plan.changed,
        "moved": moved,
        "to be removed": [video.key for video in plan.removed],
    }
    print(f"{plan.num_unchanged} unchanged")
    for title, names in groups.items():
        print(f"{len(names)} {title}{':' if names else ''}")
        for name in names[:_SHOWN_NAMES]:
            print(f"  {printable(name)}")
        if len(names) > _SHOWN_NAMES:
            print(f"  ... and {len(names) - _SHOWN_NAMES} more (--json has all)")


def _refresh_fields(result: RefreshResult) -> dict[str, object]:
    plan = result.plan
    return {
        "store": result.store,
        "dry_run": result.dry_run,
        "exit_code": result.exit_code,
        "stopped_by": None if result.stopped_by is None else str(result.stopped_by),
        "unchanged": plan.num_unchanged,
        "new": plan.new,
        "changed": plan.changed,
        "moved": [{"from": move.origin, "to": move.outcome.file.key} for move in plan.moves],
        "moved_with_source": [record.key for record in plan.touched],
        "removed": [video.key for video in plan.removed],
        "kept": plan.num_kept,
        "outside": plan.num_outside,
        "problems": [f"{problem.path}: {problem.reason}" for problem in plan.problems],
        "extracted": None if result.extracted is None else _without(result.extracted, "interrupted", "problems"),
        "left": result.num_left,
        "index": {"generation": result.generation, "updated": result.index_was_updated},
        "queries": [] if result.answered is None else result.answered.reports,
        "queries_failed": [] if result.answered is None else [str(error) for error in result.answered.failures],
        "videos": result.videos,
        "seconds": result.seconds,
    }


def _without(record: Any, *names: str) -> dict[str, object]:
    return {name: value for name, value in dataclasses.asdict(record).items() if name not in names}
