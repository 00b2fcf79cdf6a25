"""``python -m benchmarks [NAME...]``: claims on stderr, a JSON object a line on stdout; exit code 1 when one misses.

What takes longer is a command of its own: ``python -m benchmarks methods [OPTION...]``, every method in one table, and
``python -m benchmarks.ablation``, for hours, and ``python -m benchmarks.peers``, other tools beside this one.
"""

from __future__ import annotations

import argparse
import importlib
import sys

NAMES = (
    "reads",
    "search",
    "index",
    "extract",
    "memory",
    "startup",
    "pairs",
    "prepared",
    "two_stage",
    "rerank",
    "refresh",
)
METHODS = "methods"


def main() -> int:
    """Run the chosen benchmarks, or all; ``methods`` takes options of its own."""
    if sys.argv[1:2] == [METHODS]:
        from benchmarks.methods.__main__ import main as methods

        return methods(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"one of {', '.join(NAMES)}; all of these by default; or {METHODS}, alone",
    )
    names = parser.parse_args().names or NAMES
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]!r}; there are {', '.join(NAMES)}")
    holds = True
    for name in names:
        for ratio in importlib.import_module(f"benchmarks.{name}").run():
            ratio.show()
            holds &= ratio.holds
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
