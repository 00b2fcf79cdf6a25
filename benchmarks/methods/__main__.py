"""``python -m benchmarks methods``: fill the rows that have no result yet, then write table, JSON and picture.

It can be killed at any time and goes on when started again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.methods import picture, report
from benchmarks.methods.plan import ROWS, Row, Scale
from benchmarks.methods.results import append, by_row, read_results
from benchmarks.methods.run import open_bench, start_of
from benchmarks.near_duplicates import sha256_of
from index_store.errors import TbpipeError
from stages.synthetic.render import DEMO_SEED

DEFAULT_WORK = Path("benchmark-methods")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit codes are those of tbpipe."""
    options = _parser().parse_args(arguments)
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        options.work.mkdir(parents=True, exist_ok=True)
        start = start_of(options.work, options.start)
        scale = Scale(
            videos=options.videos,
            test_videos=options.test_videos,
            test_seed=options.test_seed,
            steps=options.steps,
            top_k=options.top_k,
            seed=options.seed,
            start=sha256_of(start),
        )
        rows = [row for row in ROWS if row.method in options.methods]
        if not options.report_only:
            _run(options, rows, scale, start)
        results = by_row(rows, scale, read_results(options.work))
        report.write(rows, scale, results, options.work)
        picture.draw(rows, results, scale, options.work / "methods.png")
    except TbpipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    finally:
        torch.set_num_threads(before)
    return 0


def _run(options: argparse.Namespace, rows: Sequence[Row], scale: Scale, start: Path) -> None:
    """The rows that have no result yet."""
    finished = by_row(rows, scale, read_results(options.work))
    left = [row for row in rows if row.key not in finished]
    if not left:
        return
    bench = open_bench(options.work, scale, start, options.device, options.threads)
    for number, row in enumerate(left, start=len(rows) - len(left) + 1):
        started = time.monotonic()
        result = bench.run(row)
        append(options.work, result)
        found = f"R@1 {result.t2v.at_1:.1f}, {1e6 * result.cost.seconds_per_pair:.1f} us a pair"
        print(f"{number} of {len(rows)}, {row.key}: {found}, {time.monotonic() - started:.0f} s", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    methods = list(dict.fromkeys(row.method for row in ROWS))
    parser = argparse.ArgumentParser(prog="python -m benchmarks methods", description=__doc__)
    parser.add_argument(
        "--work",
        type=Path,
        default=DEFAULT_WORK,
        help="corpora, weights, methods.jsonl, and what is written in the end: methods.md, methods.json, methods.png "
        "(%(default)s)",
    )
    parser.add_argument("--videos", type=_positive, default=9000, help="to train on (%(default)s)")
    parser.add_argument("--test-videos", type=_positive, default=1000, help="%(default)s")
    parser.add_argument("--test-seed", type=int, default=DEMO_SEED, help="of the test videos (%(default)s)")
    parser.add_argument("--steps", type=_positive, default=200, help="of each training (%(default)s)")
    parser.add_argument("--top-k", type=_positive, default=10, help="candidates, in training and use (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings (%(default)s)")
    parser.add_argument(
        "--methods",
        type=lambda text: _methods(text, methods),
        default=methods,
        help=f"some of {','.join(methods)} (all)",
    )
    parser.add_argument(
        "--start", type=Path, help="weights whose text tower training begins with (default: one is made)"
    )
    parser.add_argument(
        "--threads", type=_positive, default=1, help="of torch, and processes that decode (%(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="%(default)s")
    parser.add_argument("--report-only", action="store_true", help="run nothing; give the options that the runs had")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _methods(text: str, known: Sequence[str]) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"no method is called {unknown[0]!r}; there are {', '.join(known)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
