"""``python -m benchmarks.peers [NAME...]``: what other tools cost beside tbpipe, for equal output.

Each is installed into an environment of its own below --work. It can be killed at any time and goes on when started
again; what was not installable or failed is tried again.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, get_args

from benchmarks.peers import report
from benchmarks.peers.environment import NotInstallableError, python_of, versions
from benchmarks.peers.extraction import Extraction
from benchmarks.peers.plan import OURS, PEERS, ExtractionScale, Kind, Peer, RerankingScale, SearchScale
from benchmarks.peers.processes import CommandFailedError
from benchmarks.peers.reranking import Reranking
from benchmarks.peers.results import Result, append, by_name, last_scales, read_results
from benchmarks.peers.searching import Search
from index_store.errors import TbpipeError, UsageError
from stages.models.clip import has_native_bfloat16

DEFAULT_WORK = Path("benchmark-peers")
KINDS: tuple[Kind, ...] = get_args(Kind)


class Bench(Protocol):
    """Measures the peers of one kind."""

    scale: Mapping[str, Any]

    def measure(self, peer: Peer) -> tuple[dict[str, float], dict[str, float], bool]:
        """CPU seconds, agreement, and whether the output is the same."""
        ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit codes are those of tbpipe."""
    options = _parser().parse_args(arguments)
    # cron and batch systems ask so to end; what a peer has started must not stay behind then either
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        chosen = _chosen(options.names)
        options.work.mkdir(parents=True, exist_ok=True)
        scales = last_scales(read_results(options.work))
        for kind in KINDS:
            if peers := [peer for peer in chosen if peer.kind == kind]:
                bench = _open(kind, options)
                scales[kind] = bench.scale
                _run(bench, peers, options.work, options.again)
        report.write(scales, read_results(options.work), options.work)
    except TbpipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _run(bench: Bench, peers: Sequence[Peer], work: Path, again: bool) -> None:
    """The peers that have no result yet; ours is among them, and first."""
    for number, peer in enumerate(peers, start=1):
        done = by_name(read_results(work), bench.scale).get(peer.name)
        if done is not None and done.status == "measured" and not again:
            continue
        started = time.monotonic()
        print(f"{number} of {len(peers)}, {peer.title} ...", file=sys.stderr)
        result = _measure(bench, peer, work)
        append(work, result)
        said = result.reason or ", ".join(f"{name} {value:.3f}" for name, value in result.seconds.items())
        print(f"    {result.status} in {time.monotonic() - started:.0f} s: {said}", file=sys.stderr)


def _measure(bench: Bench, peer: Peer, work: Path) -> Result:
    if peer.needs_bfloat16 and not has_native_bfloat16():
        return Result(peer.name, "not run", "this processor does not multiply bfloat16 itself", scale=bench.scale)
    try:
        python = python_of(peer, work)
        found = bench.measure(peer)
        return Result(peer.name, "measured", "", versions(python, peer.shown), *found, bench.scale)
    except NotInstallableError as error:
        return Result(peer.name, "not installable", str(error), scale=bench.scale)
    except CommandFailedError as error:
        if peer.name in OURS.values():
            raise
        return Result(peer.name, "failed", str(error), scale=bench.scale)


def _open(kind: Kind, options: argparse.Namespace) -> Bench:
    if kind == "extraction":
        scale = ExtractionScale(clips=options.clips, few=max(1, options.clips // 3), threads=options.threads)
        return Extraction(options.work, options.videos, options.weights, scale)
    if kind == "search":
        return Search(options.work, SearchScale(vectors=options.vectors, threads=options.threads))
    return Reranking(options.work, RerankingScale(videos=options.stored, threads=options.threads))


def _chosen(names: Sequence[str]) -> list[Peer]:
    """The peers of these names and kinds, in the order of the table, each kind with ours. Raises UsageError."""
    known = [*KINDS, *PEERS]
    for name in names:
        if name not in known:
            raise UsageError(f"no peer is called {name!r}; there are {', '.join(known)}")
    wanted = set(names or PEERS)
    chosen = [peer for peer in PEERS.values() if peer.name in wanted or peer.kind in wanted]
    needed = {OURS[peer.kind] for peer in chosen}
    return [peer for peer in PEERS.values() if peer in chosen or peer.name in needed]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"some of {', '.join([*KINDS, *PEERS])}; all by default"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=DEFAULT_WORK,
        help="environments, clips, peers.jsonl, and what is written in the end: peers.md, peers.json (%(default)s)",
    )
    parser.add_argument("--videos", type=Path, help="folder of videos; clips are rendered by default")
    parser.add_argument("--clips", type=_positive, default=24, help="ten-second clips made of them (%(default)s)")
    parser.add_argument("--weights", type=Path, help="of ViT-B-32, as safetensors; random numbers by default")
    parser.add_argument("--vectors", type=_positive, default=200_000, help="to search among (%(default)s)")
    parser.add_argument(
        "--stored", type=_positive, default=500, help="videos with tokens to rerank among (%(default)s)"
    )
    parser.add_argument("--threads", type=_positive, default=1, help="of each process (%(default)s)")
    parser.add_argument("--again", action="store_true", help="measure what has been measured before, too")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
