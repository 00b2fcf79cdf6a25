"""The command that measures: bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.options import device_option, json_option, memory_option, pretrained_now_option, quiet_option


@click.command()
@click.option("--quick", is_flag=True, help="Small sizes and the model that ships with tbpipe: less than a minute.")
@click.option("--growth", is_flag=True, help="Also how cost grows with the corpus, with K, frames and tokens.")
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    default=None,
    help="Measure on this store's features, index, model and files; it is only read.  [default: drawn features]",
)
@click.option(
    "--videos",
    type=click.Path(path_type=Path),
    default=None,
    help="Decode these: a folder, a file or a manifest.  [default: the store's, or rendered ones]",
)
@click.option(
    "--model", default=None, help="Without --store: the towers to measure, as for extract; nothing is loaded."
)
@pretrained_now_option
@click.option("--method", default=None, help="Rerankers, one or several: eercf,token-binder.  [default: all]")
@click.option(
    "--top-k", type=click.IntRange(min=1), default=10, show_default=True, help="Candidates of the broad view (K)."
)
@memory_option
@device_option
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="That a product on the CPU uses; rates are by CPU second, so more make few of them better.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=None,
    help="Where temporary data goes: on the disk to measure.  [default: a temporary folder]",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    default=None,
    help="Draw the ratios into a .png or .svg (needs matplotlib).",
)
@json_option
@quiet_option
def bench(as_json: bool, **options: Any) -> None:
    """Measure what this machine can do, and how near to that every stage comes.

    One table: stage, rate, limit, ratio, and what the limit consists of, by counted bytes and operations divided by
    the rates that this machine reaches in the same moment. Rates are by CPU second, which other programs change little;
    those of disks and GPUs by the wall. Nothing is downloaded or left behind.

    \b
    Example:
      tbpipe bench --quick
      tbpipe bench --growth --plot bench.svg
      tbpipe bench --store store --json
    """
    from pipeline import bench_report
    from pipeline.jobs.bench import BenchJob
    from pipeline.jobs.bench import bench as run

    job = BenchJob(**options)
    bench_report.show_bench(run(job), job.plot, as_json)
