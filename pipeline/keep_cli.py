"""The commands that keep a store: verify, repair, compact, doctor."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from index_store.errors import DamageError
from pipeline.options import Bytes, json_option, lock_timeout_option, quiet_option, store_option


@click.command()
@store_option
@click.option("--read-data", is_flag=True, help="Read every byte of every file, not only sizes and the catalog.")
@json_option
@quiet_option
def verify(store: Path, read_data: bool, as_json: bool, quiet: bool) -> None:
    """Say whether a store is what was written: every damaged file and video by name. Changes nothing.

    May run beside extract, index, refresh and readers. Exit code 13 when there is damage.

    \b
    Example:
      tbpipe verify --store store
      tbpipe verify --store store --read-data --json
    """
    from pipeline import keep_report
    from pipeline.jobs import keep

    report = keep.verify(store, read_data, quiet)
    keep_report.show_verify(report, store, as_json)
    if report.problems:
        sys.exit(DamageError.exit_code)


@click.command()
@store_option
@click.option("--accept-loss", is_flag=True, help="Go on although most shards are missing.")
@lock_timeout_option
@json_option
@quiet_option
def repair(store: Path, accept_loss: bool, lock_timeout: float, as_json: bool, quiet: bool) -> None:
    """Take exactly what is damaged out of a store, and say what the next extract computes again.

    Reads every byte. A damaged block of the catalog is put back; of a damaged shard the intact videos stay; a damaged
    index is dropped. What it would find, 'tbpipe verify --read-data' says without changing anything.

    \b
    Example:
      tbpipe repair --store store
    """
    from pipeline import keep_report
    from pipeline.jobs import keep

    keep_report.show_repair(keep.repair(store, accept_loss, lock_timeout, quiet), store, as_json)


@click.command()
@store_option
@click.option(
    "--waste",
    type=click.FloatRange(0, 1),
    default=0.25,
    show_default=True,
    help="Rewrite shards of which at least this share is out of use.",
)
@click.option(
    "--shard-size",
    type=Bytes(),
    default="128M",
    show_default=True,
    help="Merge shards smaller than a quarter of this into ones of this size.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@lock_timeout_option
@json_option
@quiet_option
def compact(
    store: Path, waste: float, shard_size: int, dry_run: bool, lock_timeout: float, as_json: bool, quiet: bool
) -> None:
    """Give back the space of videos that were removed or replaced, and merge small shards.

    Every video keeps its features to the bit, and the index stays up to date. Safe to kill. Needs room for one new
    shard at a time, and for the old ones as long as somebody reads them.

    \b
    Example:
      tbpipe compact --store store --dry-run
      tbpipe compact --store store --waste 0.1
    """
    from pipeline import keep_report
    from pipeline.jobs import keep

    report = keep.compact(store, waste, shard_size, dry_run, lock_timeout, quiet)
    keep_report.show_compact(report, dry_run, as_json)


@click.command()
@click.option("--store", type=click.Path(path_type=Path), default=None, help="A store to look at, too.")
@json_option
def doctor(store: Path | None, as_json: bool) -> None:
    """Try what tbpipe needs on this machine, and in a store, and name the remedy for what fails.

    Packages, decoders, GPU, FAISS, the shipped model; of a store its disk, catalog, files, weights and index, with a
    search of its own embeddings. Exit code 0 when nothing failed, else that of the first failure.

    \b
    Example:
      tbpipe doctor
      tbpipe doctor --store store --json
    """
    from pipeline import keep_report
    from pipeline.jobs.doctor import doctor as run

    code = keep_report.show_doctor(run(store), as_json)
    if code:
        sys.exit(code)
