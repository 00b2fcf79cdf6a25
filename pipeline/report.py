"""Records -> what people read (tables) or programs (one JSON object). Results go to stdout, remarks to stderr."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.printing import duration, print_json, printable, remark, size

if TYPE_CHECKING:
    from index_store.records import VideoRecord
    from pipeline.jobs.extract import Estimate, ExtractResult
    from pipeline.jobs.fuse import FuseResult
    from pipeline.jobs.import_weights import ImportResult
    from pipeline.jobs.rerank import RerankResult
    from pipeline.jobs.train import TrainResult
    from pipeline.jobs.upkeep import StoreInfo
    from stages.index import IndexReport
    from stages.prepare import PrepareReport

_LONG_SECONDS = 30
"""An extract that took longer says what it waited for."""


def show_estimate(estimate: Estimate, as_json: bool) -> None:
    """Print what extract would do."""
    if as_json:
        print_json(estimate)
        return
    from pipeline.tables import fact_table, print_table

    table = fact_table("dry run: nothing was changed")
    table.add_row("videos found", str(estimate.num_files))
    table.add_row("new", str(estimate.num_new))
    table.add_row("changed", str(estimate.num_changed))
    table.add_row("done already", str(estimate.num_unchanged))
    table.add_row("to do", str(estimate.num_to_do))
    table.add_row("to read", size(estimate.source_bytes))
    table.add_row("to write", f"{size(estimate.total_bytes)} ({size(estimate.bytes_per_video)} a video)")
    table.add_row("free on disk", size(estimate.free_bytes))
    table.add_row("time, about", duration(estimate.seconds))
    print_table(table)
    if estimate.total_bytes > estimate.free_bytes:
        remark("this does not fit on the disk: free some space, or use --token-dtype int8 or --keep-tokens")


def show_extract(result: ExtractResult, as_json: bool) -> None:
    """Print what extract did."""
    report = result.report
    for problem in report.problems:
        remark(f"could not look into {problem}")
    if as_json:
        fields = {name: value for name, value in dataclasses.asdict(report).items() if name != "interrupted"}
        print_json(
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
    seconds = report.seconds_for_frames + report.seconds_for_tokens
    if seconds >= _LONG_SECONDS:
        share = 100 * report.seconds_for_frames / seconds
        bounds = f"{share:.0f} % of the time went into waiting for decoders, {100 - share:.0f} % into the model"
        remark(f"{report.num_frames / seconds:.1f} frames a second; {bounds}")
    if report.quarantined:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(report.reasons.items()))
        remark(f"newly quarantined: {reasons}; 'tbpipe quarantine --store {result.store}' says why for each")


def show_index(report: IndexReport, as_json: bool) -> None:
    """Print which generation serves now."""
    if as_json:
        print_json(report)
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
        print_json(report)
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
        print_json(result)
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
        print_json(result)
        return
    print(f"{result.num_runs} runs of {result.num_queries} queries fused into {printable(str(result.output))}")


def show_train(result: TrainResult, as_json: bool) -> None:
    """Print what training wrote, and what the validation videos are found with."""
    for warning in result.warnings:
        remark(warning)
    if as_json:
        print_json(result)
        return
    ended = "ended early, nothing got better" if result.stopped_early else "done"
    data = f"{result.num_captions} captions of {result.num_videos} videos"
    print(f"{result.steps} of {result.planned_steps} steps on {data}: {ended}")
    if result.before is not None and result.after is not None:
        from pipeline.tables import Table, print_table

        table = Table("validation", "view", title=f"best at step {result.best_step}")
        for name in result.before.broad:
            table.add_column(name, justify="right")
        for when, found in (("before", result.before), ("after", result.after)):
            for view, values in (("broad", found.broad), ("focused", found.focused)):
                table.add_row(when, view, *(f"{value:.1f}" for value in values.values()))
        print_table(table)
    print(f"weights: {printable(str(result.weights))}; log: {printable(str(result.log))}")
    if result.next_command:
        print(f"they fit a store of the trained model only; next: {printable(result.next_command)}")


def show_import(result: ImportResult, as_json: bool) -> None:
    """Print what became of a checkpoint, and what to do with it."""
    if as_json:
        print_json(result)
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
        print_json(
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
    from pipeline.tables import fact_table, print_table

    table = fact_table(printable(str(info.directory)))
    for status, count in info.counts.items():
        table.add_row(status, str(count))
    for part, num_bytes in info.bytes_by_part.items():
        table.add_row(part, size(num_bytes))
    table.add_row("shard files", str(info.num_shards))
    table.add_row(
        "model", f"{settings.model.name} / {printable(settings.model.pretrained)}, {settings.model.compute_dtype}"
    )
    kept = f", kept {settings.tokens.keep}" if settings.tokens.keeps_some else ""
    kept += ", with places" if settings.tokens.places else ""
    table.add_row("tokens", "{} frames x {} x {}, {}{}".format(*settings.token_shape, settings.tokens.dtype, kept))
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
    print_table(table)


def show_quarantine(records: list[VideoRecord], as_json: bool) -> None:
    """Print the quarantined videos with their reasons."""
    if as_json:
        names = ("key", "path", "reason_code", "reason_detail", "attempts")
        print_json([{name: getattr(record, name) for name in names} for record in records])
        return
    if not records:
        print("nothing is quarantined")
        return
    from pipeline.tables import Table, Text, print_table

    table = Table("video", "reason", "what was found", "attempts")
    for record in records:
        detail = Text(printable(record.reason_detail), overflow="fold")
        table.add_row(Text(printable(record.key), overflow="fold"), record.reason_code, detail, str(record.attempts))
    print_table(table)


def show_requeued(count: int, as_json: bool) -> None:
    """Print how many videos the next extract will try again."""
    if as_json:
        print_json({"released": count})
    else:
        print(f"{count} videos released; the next 'tbpipe extract' tries them again")
