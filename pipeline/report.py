"""Records -> what people read (tables) or programs (one JSON object). Results go to stdout, remarks to stderr."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from index_store.records import VideoRecord
    from pipeline.demo import DemoResult
    from pipeline.jobs.evaluate import EvaluateResult
    from pipeline.jobs.extract import Estimate, ExtractResult
    from pipeline.jobs.fuse import FuseResult
    from pipeline.jobs.import_weights import ImportResult
    from pipeline.jobs.refresh import RefreshResult
    from pipeline.jobs.rerank import RerankResult, SearchResult
    from pipeline.jobs.train import TrainResult
    from pipeline.jobs.upkeep import StoreInfo
    from pipeline.refresh_plan import RefreshPlan
    from stages.datasets.base import MatchedSplit
    from stages.evaluate import DirectionResult
    from stages.index import IndexReport
    from stages.metrics import Metrics
    from stages.prepare import PrepareReport

_SHOWN_ROWS = 20
"""Queries of the demo that the table shows."""


def printable(text: str) -> str:
    """``text`` on one line without control characters, so that a file name cannot steer the terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "backslashreplace").decode("ascii")
        for character in text.encode("utf-8", "backslashreplace").decode("utf-8")
    )


def size(num_bytes: float) -> str:
    """Bytes for people: 614.4 KB, 58.3 MB."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    """Seconds for people: 4.2 s, 3 min 20 s, 5 h 2 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def remark(text: str) -> None:
    """One line on stderr."""
    print(printable(text), file=sys.stderr)


def show_estimate(estimate: Estimate, as_json: bool) -> None:
    """Print what extract would do."""
    if as_json:
        _print_json(estimate)
        return
    table = _fact_table("dry run: nothing was changed")
    table.add_row("videos found", str(estimate.num_files))
    table.add_row("new", str(estimate.num_new))
    table.add_row("changed", str(estimate.num_changed))
    table.add_row("done already", str(estimate.num_unchanged))
    table.add_row("to do", str(estimate.num_to_do))
    table.add_row("to read", size(estimate.source_bytes))
    table.add_row("to write", f"{size(estimate.total_bytes)} ({size(estimate.bytes_per_video)} a video)")
    table.add_row("free on disk", size(estimate.free_bytes))
    table.add_row("time, about", duration(estimate.seconds))
    _print(table)
    if estimate.total_bytes > estimate.free_bytes:
        remark("this does not fit on the disk: free some space, or use --token-dtype int8 or --keep-tokens")


def show_extract(result: ExtractResult, as_json: bool) -> None:
    """Print what extract did."""
    report = result.report
    for problem in report.problems:
        remark(f"could not look into {problem}")
    if as_json:
        fields = {name: value for name, value in dataclasses.asdict(report).items() if name != "interrupted"}
        _print_json(
            {
                "files": result.num_files,
                "left": result.num_left,
                "interrupted": result.interrupted_by is not None,
                **fields,
            }
        )
        return
    parts = [
        (report.ok, "ok"),
        (report.partial, "partial"),
        (report.shared, "copies of known content"),
        (report.moved, "moved"),
        (report.quarantined, "quarantined"),
        (report.unchanged, "done before"),
        (result.num_left, "left to do"),
    ]
    counted = ", ".join(f"{count} {name}" for count, name in parts if count)
    print(f"{result.num_files} videos: {counted or 'nothing to do'}")
    if report.quarantined:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(report.reasons.items()))
        remark(f"newly quarantined: {reasons}; 'tbpipe quarantine --store {result.store}' says why for each")


def show_refresh(result: RefreshResult, as_json: bool, quiet: bool) -> None:
    """Print what a refresh did, or would do."""
    plan = result.plan
    if as_json:
        _print_json(_refresh_fields(result))
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
        for name in names[:_SHOWN_ROWS]:
            print(f"  {printable(name)}")
        if len(names) > _SHOWN_ROWS:
            print(f"  ... and {len(names) - _SHOWN_ROWS} more (--json has all)")


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


def show_index(report: IndexReport, as_json: bool) -> None:
    """Print which generation serves now."""
    if as_json:
        _print_json(report)
        return
    state = "is up to date" if report.was_up_to_date else "is published"
    content = f"{report.num_vectors} videos x {report.dim}, {report.factory}, {size(report.size_bytes)}"
    counts = ((report.num_added, "added"), (report.num_replaced, "replaced"), (report.num_removed, "removed"))
    changes = ", ".join(f"{count} {name}" for count, name in counts if count)
    print(f"index generation {report.generation} {state}: {content}{f' ({changes})' if changes else ''}")
    if report.remark:
        remark(f"built anew: {report.remark}")
    if report.recall is not None:
        found = f"recall@{report.recall_k} against exact search: {report.recall:.4f}"
        print(f"{found} ({report.num_recall_queries} stored embeddings, {report.search_parameters or 'no parameters'})")


def show_prepare(report: PrepareReport, as_json: bool) -> None:
    """Print what is prepared now."""
    if as_json:
        _print_json(report)
        return
    done = f"{report.num_computed} of {report.num_videos} videos prepared for {report.method}"
    before = report.num_videos - report.num_computed
    there = f", {before} were before" if before else ""
    print(f"{done}{there}: {size(report.bytes_per_video)} a video, {size(report.size_bytes)} in prepared/{report.name}")


def show_rerank(result: RerankResult, as_json: bool) -> None:
    """Print a summary of a rerank run; the results are in its output file."""
    for warning in result.warnings:
        remark(warning)
    if result.output == Path("-"):
        return
    if as_json:
        _print_json(result)
        return
    work = f"{result.num_queries} queries x {result.top_k} candidates re-ranked by {result.method}"
    print(f"{work} into {printable(str(result.output))}")


def show_fuse(result: FuseResult, as_json: bool) -> None:
    """Print a summary of a fusion; the result is in its output file."""
    if result.incomplete:
        remark(
            f"{result.incomplete} of {result.num_queries} queries are not in every run; they are fused of the others"
        )
    if result.output == Path("-"):
        return
    if as_json:
        _print_json(result)
        return
    print(f"{result.num_runs} runs of {result.num_queries} queries fused into {printable(str(result.output))}")


def show_train(result: TrainResult, as_json: bool) -> None:
    """Print what training wrote, and what the validation videos are found with."""
    for warning in result.warnings:
        remark(warning)
    if as_json:
        _print_json(result)
        return
    ended = "ended early, nothing got better" if result.stopped_early else "done"
    data = f"{result.num_captions} captions of {result.num_videos} videos"
    print(f"{result.steps} of {result.planned_steps} steps on {data}: {ended}")
    if result.before is not None and result.after is not None:
        table = Table("validation", "view", title=f"best at step {result.best_step}")
        for name in result.before.broad:
            table.add_column(name, justify="right")
        for when, found in (("before", result.before), ("after", result.after)):
            for view, values in (("broad", found.broad), ("focused", found.focused)):
                table.add_row(when, view, *(f"{value:.1f}" for value in values.values()))
        _print(table)
    print(f"weights: {printable(str(result.weights))}; log: {printable(str(result.log))}")
    if result.next_command:
        print(f"they fit a store of the trained model only; next: {printable(result.next_command)}")


def show_search(result: SearchResult, as_json: bool) -> None:
    """Print the hits of one query as a table."""
    for warning in result.warnings:
        remark(warning)
    hits = result.ranking.hits
    if as_json:
        _print_json({"query": result.text, "hits": hits})
        return
    table = Table(
        "#", "video", "score", "broad", "best moment", title=Text(f"“{printable(result.text)}”"), title_justify="left"
    )
    for rank, hit in enumerate(hits, start=1):
        moment = "" if hit.moment_seconds is None else f"{hit.moment_seconds:.2f} s"
        table.add_row(
            str(rank), Text(printable(hit.key), overflow="fold"), f"{hit.score:.4f}", f"{hit.broad_score:.4f}", moment
        )
    _print(table)


def show_evaluate(results: Sequence[EvaluateResult], as_json: bool) -> None:
    """Print the metrics of both views, broad and focused side by side; of several methods, one under the other."""
    from stages.metrics import TIE_RULE

    for warning in dict.fromkeys(warning for result in results for warning in result.warnings):
        remark(warning)
    if as_json:
        found = [_evaluate_fields(result) | {"ties": TIE_RULE} for result in results]
        _print_json(found[0] if len(found) == 1 else {"methods": found})
        return
    columns = ("method",) if len(results) > 1 else ()
    table = Table(*columns, "direction", "view")
    for name in ("R@1", "R@5", "R@10", "MdR", "MnR"):
        table.add_column(name, justify="right")
    for result in results:
        label = (_method_of(result),) if len(results) > 1 else ()
        for name, direction in _directions(result).items():
            for view in ("broad", "focused") if direction else ():
                values = _metric_fields(getattr(direction, view)).values()
                table.add_row(*label, name, view, *(f"{value:.1f}" for value in values))
        table.add_section()
    _print(table)
    for result in results:
        of = f"{_method_of(result)}, " if len(results) > 1 else ""
        for name, direction in _directions(result).items():
            if direction:
                answers = "videos" if direction is result.text_to_video else _texts_as(result.split)
                searched = f"{direction.broad.num_queries} queries, {direction.num_answers} {answers}"
                ceiling = f"ceiling of the focused view (a right one among the K): {direction.ceiling:.1f} %"
                print(f"{of}{name}: {searched}, K = {direction.top_k}; {ceiling}")
    (first, *_) = results
    if first.split is not None:
        print(f"{first.split.split}, {first.split.split.protocol}: {len(first.split.found)} videos")
    focused = f"focused = {first.method}; " if len(results) == 1 else ""
    print(f"{focused}R@k in percent; ranks from 1, {TIE_RULE}")


def _method_of(result: EvaluateResult) -> str:
    """The method, and the weights where it was given some."""
    return result.method if result.weights is None else f"{result.method} ({printable(result.weights.name)})"


def _directions(result: EvaluateResult) -> dict[str, DirectionResult | None]:
    return {"text to video": result.text_to_video, "video to text": result.video_to_text}


def _evaluate_fields(result: EvaluateResult) -> dict[str, object]:
    directions = _directions(result).items()
    return {
        **{name.replace(" ", "_"): found and _direction_fields(found) for name, found in directions},
        "method": result.method,
        "weights": result.weights and str(result.weights),
        "videos": result.num_videos,
        "captioned_videos": result.num_captioned,
        "left_out": result.num_left_out,
        **_split_fields(result.split),
    }


def _texts_as(split: MatchedSplit | None) -> str:
    """What the answers from video to text are."""
    return "groups of captions" if split is not None and split.split.protocol == "all captions" else "texts"


def _split_fields(split: MatchedSplit | None) -> dict[str, object]:
    if split is None:
        return {}
    return {
        "dataset": split.split.dataset,
        "split": split.split.name,
        "protocol": split.split.protocol,
        "missing_videos": split.missing,
        "ambiguous_videos": dict(split.ambiguous),
    }


def _direction_fields(found: DirectionResult) -> dict[str, object]:
    return {
        "queries": found.broad.num_queries,
        "answers": found.num_answers,
        "top_k": found.top_k,
        "ceiling": found.ceiling,
        "broad": _metric_fields(found.broad),
        "focused": _metric_fields(found.focused),
    }


def _metric_fields(metrics: Metrics) -> dict[str, float]:
    recalls = {f"R@{k}": value for k, value in metrics.recall_at.items()}
    return {**recalls, "MdR": metrics.median_rank, "MnR": metrics.mean_rank}


def show_import(result: ImportResult, as_json: bool) -> None:
    """Print what became of a checkpoint, and what to do with it."""
    if as_json:
        _print_json(result)
        return
    files = result.files
    unused = f", {files.num_ignored} that nothing reads left out" if files.num_ignored else ""
    print(f"{files.num_tensors} tensors of {files.source}{unused}")
    print(f"image-text model: {printable(str(files.weights))}")
    if files.head is not None:
        sizes = ", ".join(f"{name} {size}" for name, size in files.sizes.items())
        print(f"head of {files.method} ({sizes}): {printable(str(files.head))}")
    for command in result.next_commands:
        print(f"next: {printable(command)}")


def show_info(info: StoreInfo, as_json: bool) -> None:
    """Print what a store holds."""
    settings = info.settings
    if as_json:
        _print_json(
            {
                "store": info.directory,
                "videos": info.counts,
                "bytes": info.bytes_by_part,
                "shards": info.num_shards,
                "fingerprint": settings.fingerprint,
                "settings": settings,
                "generations": [
                    dict(zip(("generation", "vectors", "factory"), row, strict=True)) for row in info.generations
                ],
                "index_is_current": info.index_is_current,
                "prepared": info.prepared,
            }
        )
        return
    table = _fact_table(printable(str(info.directory)))
    for status, count in info.counts.items():
        table.add_row(status, str(count))
    for part, num_bytes in info.bytes_by_part.items():
        table.add_row(part, size(num_bytes))
    table.add_row("shard files", str(info.num_shards))
    table.add_row(
        "model", f"{settings.model.name} / {printable(settings.model.pretrained)}, {settings.model.compute_dtype}"
    )
    table.add_row("tokens", "{} frames x {} x {}, {}".format(*settings.token_shape, settings.tokens.dtype))
    table.add_row("a video takes", size(settings.bytes_per_video))
    table.add_row("fingerprint", settings.fingerprint[:16])
    for number, vectors, factory in info.generations:
        table.add_row(f"index {number}", f"{vectors} videos, {factory}")
    state = (
        "current"
        if info.index_is_current
        else "older than the store: run 'tbpipe index'"
        if info.generations
        else "none: run 'tbpipe index'"
    )
    table.add_row("index", state)
    for entry in info.prepared:
        part = f"{entry.num_prepared} of {entry.num_videos} videos, {size(entry.size_bytes)}"
        table.add_row(f"prepared/{printable(entry.name)}", "; ".join([part, *map(printable, entry.remarks)]))
    _print(table)


def show_quarantine(records: list[VideoRecord], as_json: bool) -> None:
    """Print the quarantined videos with their reasons."""
    if as_json:
        names = ("key", "path", "reason_code", "reason_detail", "attempts")
        _print_json([{name: getattr(record, name) for name in names} for record in records])
        return
    if not records:
        print("nothing is quarantined")
        return
    table = Table("video", "reason", "what was found", "attempts")
    for record in records:
        detail = Text(printable(record.reason_detail), overflow="fold")
        table.add_row(Text(printable(record.key), overflow="fold"), record.reason_code, detail, str(record.attempts))
    _print(table)


def show_requeued(count: int, as_json: bool) -> None:
    """Print how many videos the next extract will try again."""
    if as_json:
        _print_json({"released": count})
    else:
        print(f"{count} videos released; the next 'tbpipe extract' tries them again")


def show_demo(result: DemoResult, as_json: bool) -> None:
    """Print the demo's queries, what each view put on top, and how often it was right."""
    if as_json:
        _print_json(
            {
                "broad": result.broad,
                "focused": result.focused,
                "families": result.families,
                "method": result.method,
                "top_k": result.top_k,
                "videos": result.num_videos,
                "queries": result.num_queries,
                "seed": result.seed,
            }
        )
        return
    table = Table(
        "query",
        "focused view found",
        "score",
        "at",
        "right",
        title=f"{result.num_videos} rendered videos, seed {result.seed}",
    )
    for row in result.rows[:_SHOWN_ROWS]:
        mark = Text("yes", style="green") if row.is_right else Text("no", style="red")
        table.add_row(Text(row.query), Text(row.found), f"{row.score:.3f}", f"{row.moment_seconds:.1f} s", mark)
    _print(table)
    if len(result.rows) > _SHOWN_ROWS:
        print(f"... and {len(result.rows) - _SHOWN_ROWS} more queries")
    for name, metrics in (("broad view", result.broad), ("focused view", result.focused)):
        print(f"{name:13}" + "  ".join(f"{metric} {value:5.1f} %" for metric, value in metrics.items()))
    for name, found in result.families.items():
        print(f"  {name:11}R@1  broad {found['broad']:5.1f} %  focused {found['focused']:5.1f} %")
    if result.directory is not None:
        remark(f"videos and store are kept in {result.directory}")


def _fact_table(title: str) -> Table:
    table = Table(show_header=False, title=Text(title), title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


def _print(table: Table) -> None:
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    Console(width=width, highlight=False).print(table)


def _print_json(value: object) -> None:
    json.dump(value, sys.stdout, default=_plain, ensure_ascii=True, allow_nan=False)
    sys.stdout.write("\n")


def _plain(value: Any) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return os.fsencode(value).decode("utf-8", "backslashreplace")
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
