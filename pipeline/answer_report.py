"""Answers and how good they are (search, evaluate, demo) -> tables, or one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.printing import print_json, printable, remark

if TYPE_CHECKING:
    from pipeline.demo import DemoResult
    from pipeline.jobs.evaluate import EvaluateResult
    from pipeline.jobs.rerank import SearchResult
    from stages.datasets.base import MatchedSplit
    from stages.evaluate import DirectionResult
    from stages.metrics import Metrics


_SHOWN_ROWS = 20
"""Queries of the demo that the table shows."""


def show_search(result: SearchResult, as_json: bool) -> None:
    """Print the hits of one query as a table."""
    for warning in result.warnings:
        remark(warning)
    hits = result.ranking.hits
    if as_json:
        print_json({"query": result.text, "hits": hits})
        return
    from pipeline.tables import Table, Text, print_table

    table = Table(
        "#", "video", "score", "broad", "best moment", title=Text(f"“{printable(result.text)}”"), title_justify="left"
    )
    for rank, hit in enumerate(hits, start=1):
        moment = "" if hit.moment_seconds is None else f"{hit.moment_seconds:.2f} s"
        table.add_row(
            str(rank), Text(printable(hit.key), overflow="fold"), f"{hit.score:.4f}", f"{hit.broad_score:.4f}", moment
        )
    print_table(table)


def show_evaluate(results: Sequence[EvaluateResult], as_json: bool) -> None:
    """Print the metrics of both views, broad and focused side by side; of several methods, one under the other."""
    from stages.metrics import TIE_RULE

    for warning in dict.fromkeys(warning for result in results for warning in result.warnings):
        remark(warning)
    if as_json:
        found = [_evaluate_fields(result) | {"ties": TIE_RULE} for result in results]
        print_json(found[0] if len(found) == 1 else {"methods": found})
        return
    columns = ("method",) if len(results) > 1 else ()
    from pipeline.tables import Table, print_table

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
    print_table(table)
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


def show_demo(result: DemoResult, as_json: bool) -> None:
    """Print the demo's queries, what each view put on top, and how often it was right."""
    if as_json:
        print_json(
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
    from pipeline.tables import Table, Text, print_table

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
    print_table(table)
    if len(result.rows) > _SHOWN_ROWS:
        print(f"... and {len(result.rows) - _SHOWN_ROWS} more queries")
    for name, metrics in (("broad view", result.broad), ("focused view", result.focused)):
        print(f"{name:13}" + "  ".join(f"{metric} {value:5.1f} %" for metric, value in metrics.items()))
    for name, found in result.families.items():
        print(f"  {name:11}R@1  broad {found['broad']:5.1f} %  focused {found['focused']:5.1f} %")
    if result.directory is not None:
        remark(f"videos and store are kept in {result.directory}")
