"""``python -m benchmarks.sizes``: render, extract, rank what was not ranked yet, then write table, JSON and picture.

It can be killed at any time and goes on when started again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.near_duplicates import corpus_to_test_on, make
from benchmarks.sizes import report
from benchmarks.sizes.run import METHODS, SETTINGS, measure, read_results
from index_store.errors import TbpipeError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit codes are those of tbpipe, and 1 where int8 loses too much."""
    options = _parser().parse_args(arguments)
    try:
        options.work.mkdir(parents=True, exist_ok=True)
        corpora = [corpus_to_test_on(options.work, options.videos, seed) for seed in options.seeds]
        make(options.work, corpora, "cpu", None)
        for corpus in corpora:
            for result in measure(corpus, options.work, METHODS, SETTINGS):
                found = f"{100 * result.right.count('1') / len(result.right):.1f}"
                what = f"seed {result.seed}, {result.method}, {result.dtype}, {result.keep}"
                print(f"{what}: {result.bytes_per_video} bytes a video, R@1 {found}", file=sys.stderr)
        kept = [(tokens.dtype, tokens.keep, bool(tokens.places)) for tokens in SETTINGS]
        wanted = [(*setting, corpus.seed, corpus.num_videos) for corpus in corpora for setting in kept]
        results = [result for result in read_results(options.work).values() if result.key[1:] in wanted]
        rows = report.write(results, options.work)
    except TbpipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0 if report.holds(rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizes", description=__doc__)
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("benchmark-sizes"),
        help="corpora, sizes.jsonl, and what is written in the end: sizes.md, sizes.json, sizes.png (%(default)s)",
    )
    parser.add_argument("--videos", type=int, default=1000, help="of each seed (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[90210, 11, 4242], help="unseen ones (90210 11 4242)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
