"""``python -m benchmarks.ablation --work DIR``: run the trials that have no result yet, then write the tables.

It can be killed at any time and goes on when started again; several processes share the work with --part.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from benchmarks.ablation import picture, report
from benchmarks.ablation.plan import TABLES, Scale, plan
from benchmarks.ablation.results import append, missing, read_results, results_path
from benchmarks.ablation.run import prepare
from benchmarks.near_duplicates import sha256_of
from index_store.atomic import write_bytes
from index_store.errors import TbpipeError
from stages.synthetic.families import FAMILIES, KNOWN
from stages.synthetic.render import DEMO_SEED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit codes are those of tbpipe."""
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        start = sha256_of(options.start)
        scale = Scale(
            options.videos, options.test_videos, options.test_seed, options.steps, start, tuple(options.families)
        )
        options.work.mkdir(parents=True, exist_ok=True)
        if not options.report_only:
            _run(options, scale)
        _report(options, scale)
    except TbpipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace, scale: Scale) -> None:
    """The trials of this process that have no result yet."""
    part, parts = options.part
    mine = plan(options.tables, scale, options.seeds)[part - 1 :: parts]
    left = missing(mine, scale, read_results(options.work))
    if not left:
        return
    bench = prepare(options.work, scale, options.start, options.device, options.threads)
    for number, trial in enumerate(left, start=len(mine) - len(left) + 1):
        result = bench.run(trial)
        append(results_path(options.work, options.part), result)
        found = f"R@1 focused {result.t2v.focused['R@1']:.1f}, broad {result.t2v.broad['R@1']:.1f}"
        name = f"{trial.table}: {trial.label}, seed {trial.config.seed}"
        print(f"{number} of {len(mine)}, {name}: {found}, {result.seconds:.0f} s", file=sys.stderr)


def _report(options: argparse.Namespace, scale: Scale) -> None:
    """Of what all processes have finished so far."""
    results = read_results(options.work)
    planned = plan(options.tables, scale, options.seeds)
    used = len(planned) - len(missing(planned, scale, results))
    if used < len(results):
        print(f"{len(results) - used} results of other settings are left out", file=sys.stderr)
    summaries = report.summarise(options.tables, scale, options.seeds, results)
    report.show(summaries, scale)
    write_bytes(options.work / "report.md", report.to_markdown(summaries, scale).encode())
    picture.draw(summaries, scale, options.work / "ablation.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.add_argument(
        "--work", type=Path, required=True, help="corpora, weights, results.jsonl, report.md, ablation.png"
    )
    parser.add_argument("--videos", type=_positive, default=9000, help="to train on (%(default)s)")
    parser.add_argument("--test-videos", type=_positive, default=1000, help="%(default)s")
    parser.add_argument("--test-seed", type=int, default=DEMO_SEED, help="of the test videos (%(default)s)")
    parser.add_argument("--steps", type=_positive, default=1000, help="of each training (%(default)s)")
    parser.add_argument("--seeds", type=_positive, default=3, help="trainings of each row (%(default)s)")
    parser.add_argument("--tables", type=_tables, default=list(TABLES), help=f"some of {','.join(TABLES)} (all)")
    parser.add_argument(
        "--families",
        type=_families,
        default=list(FAMILIES),
        help=f"of near-duplicates, some of {','.join(KNOWN)} ({','.join(FAMILIES)})",
    )
    parser.add_argument("--threads", type=_positive, help="of torch, and processes that decode (one per core)")
    parser.add_argument("--device", default="auto", help="%(default)s")
    parser.add_argument("--start", type=Path, help="weights whose text tower every trial begins with, as tbpipe train")
    parser.add_argument("--part", type=_part, default=(1, 1), metavar="I/N", help="do the I-th of N parts only")
    parser.add_argument("--report-only", action="store_true", help="run nothing; give the options that the runs had")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _tables(text: str) -> list[str]:
    return _some_of(text, "table", TABLES)


def _families(text: str) -> list[str]:
    return _some_of(text, "family", KNOWN)


def _some_of(text: str, what: str, known: Collection[str]) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"no {what} is called {unknown[0]!r}; there are {', '.join(known)}")
    return names


def _part(text: str) -> tuple[int, int]:
    number, sign, count = text.partition("/")
    if not (sign and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N, such as 1/2")
    return int(number), int(count)


if __name__ == "__main__":
    sys.exit(main())
