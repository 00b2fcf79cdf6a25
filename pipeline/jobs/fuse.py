"""``tbpipe fuse``: several runs become one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from index_store.errors import UsageError
from index_store.records import Hit, Ranking
from index_store.runs import output_format, read_run, write_ranking
from stages.fuse import DEFAULT_K
from stages.fuse import fuse as fuse_runs


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseJob:
    """Everything that ``tbpipe fuse`` was told."""

    runs: tuple[Path, ...]
    output: Path
    k: float = DEFAULT_K
    top_k: int | None = None
    tag: str = "fused"


@dataclass(frozen=True, slots=True)
class FuseResult:
    """What it wrote."""

    num_runs: int
    num_queries: int
    incomplete: int
    """Queries that some of the runs lack."""
    output: Path


def fuse(job: FuseJob) -> FuseResult:
    """Run ``tbpipe fuse``. Raises UsageError for a lone run or an output that is not TREC, InputError for a bad run."""
    if len(job.runs) < 2:
        raise UsageError(f"{job.runs[0]} alone cannot be fused; name two runs or more")
    if output_format(job.output) != "trec":
        raise UsageError(f"a fused run has no scores but its own: write {job.output} as .trec or .run")
    runs = [read_run(path) for path in job.runs]
    fused = fuse_runs(runs, job.k)
    write_ranking(job.output, _rankings(fused, job.top_k), job.tag)
    incomplete = sum(any(query not in run for run in runs) for query in fused)
    return FuseResult(len(runs), len(fused), incomplete, job.output)


def _rankings(fused: Mapping[str, Sequence[tuple[str, float]]], top_k: int | None) -> Iterator[Ranking]:
    """As write_ranking takes them; a TREC run has keys only, so that the places stand for the ids."""
    for query, scored in fused.items():
        yield Ranking(query, tuple(Hit(place, key, score) for place, (key, score) in enumerate(scored[:top_k])))
