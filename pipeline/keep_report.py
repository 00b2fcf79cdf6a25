"""What verify, repair, compact and doctor found -> what people read, or one JSON object."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.printing import print_json, printable, remark, size

if TYPE_CHECKING:
    from index_store.compact import CompactReport
    from index_store.repair import RepairReport
    from index_store.verify import VerifyReport
    from pipeline.jobs.doctor import Check

_SHOWN = 50
"""Problems or keys that are printed; --json has them all."""


def show_verify(report: VerifyReport, store: Path, as_json: bool) -> None:
    """Print every problem on a line, and what to do."""
    if as_json:
        print_json({"clean": not report.problems, **dataclasses.asdict(report)})
        return
    _print_lines([str(problem) for problem in report.problems])
    for note in report.notes:
        remark(f"note: {note}")
    looked = f"{report.num_videos} videos in {report.num_shards} shards, {report.num_generations} index generations"
    if report.problems:
        print(f"{len(report.problems)} problems; next: tbpipe repair --store {shlex.quote(printable(str(store)))}")
    elif report.read_data:
        print(f"clean: {looked}; every byte was read ({size(report.bytes_read)})")
    else:
        print(f"clean: {looked}; sizes and catalog were looked at, --read-data reads every byte")


def show_repair(report: RepairReport, store: Path, as_json: bool) -> None:
    """Print what was done, and what is left to do."""
    if as_json:
        print_json(dataclasses.asdict(report))
        return
    if not report.problems:
        print("nothing is damaged; nothing was changed")
        return
    for name in report.restored:
        print(f"restored as it was written: {printable(name)}")
    for name in report.rewritten:
        print(f"{printable(name)}: its intact rows are in a new shard")
    for number in report.dropped_generations:
        print(f"index generation {number}: dropped")
    for name in report.removed:
        print(f"{printable(name)}: removed, it is computed again when it is needed")
    if report.lost:
        print(f"{len(report.lost)} videos lost their features, which were damaged:")
        _print_lines([f"  {key}" for key in report.lost])
    at = f"--store {shlex.quote(printable(str(store)))}"
    if report.lost:
        print(
            f"next: tbpipe refresh {at}, or tbpipe extract SOURCE {at} and tbpipe index {at}; both compute them again"
        )
    elif report.dropped_generations:
        print(f"next: tbpipe index {at}")


def show_compact(report: CompactReport, dry_run: bool, as_json: bool) -> None:
    """Print what was given back."""
    if as_json:
        print_json(dataclasses.asdict(report))
        return
    num_old = report.num_wasteful + report.num_small
    if not num_old:
        print(f"nothing to do: none of {report.num_shards} shards is wasteful, and not more than one is small")
        return
    why = f"{report.num_wasteful} with waste, {report.num_small} small ones"
    would = "would become" if dry_run else "became"
    print(f"{num_old} of {report.num_shards} shards ({why}) {would} {report.num_new}: {size(report.bytes_freed)} less")
    if report.num_held:
        remark(f"{report.num_held} old files are still being read; the next writer removes them")


def show_doctor(checks: Iterable[Check], as_json: bool) -> int:
    """Print each check as soon as it is done; gives the exit code: that of the first one that failed, or 0."""
    done = []
    for check in checks:
        done.append(check)
        if not as_json:
            print(f"{check.state:7} {check.name:11} {printable(check.found)}", flush=True)
            if check.remedy:
                print(f"{'':19} -> {printable(check.remedy)}", flush=True)
    if as_json:
        print_json({"checks": [dataclasses.asdict(check) for check in done]})
    return next((check.exit_code for check in done if check.state == "failed"), 0)


def _print_lines(lines: list[str]) -> None:
    for line in lines[:_SHOWN]:
        print(printable(line) if not line.startswith("  ") else f"  {printable(line[2:])}")
    if len(lines) > _SHOWN:
        print(f"... and {len(lines) - _SHOWN} more; --json has all")
