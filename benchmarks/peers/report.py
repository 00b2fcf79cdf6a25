"""Results -> tables, a kind each: for people on the terminal and as Markdown, for programs as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peers.plan import OURS, PEERS, Kind, Peer
from benchmarks.peers.results import Result, by_name
from index_store.atomic import write_bytes

HEADINGS: Mapping[Kind, Sequence[str]] = {
    "extraction": ("tool", "output", "CPU s a clip", "tbpipe is", "start-up, CPU s", "versions"),
    "search": ("tool", "output", "building, CPU s", "searching, CPU s", "tbpipe is", "versions"),
    "reranking": ("tool", "output", "reading, CPU s", "all, CPU s", "tbpipe is", "versions"),
}
_COST: Mapping[Kind, str] = {"extraction": "clip", "search": "search", "reranking": "all"}
_OTHER: Mapping[Kind, str] = {"extraction": "start", "search": "build", "reranking": "reading"}


def write(scales: Mapping[Kind, Mapping[str, Any]], results: Sequence[Result], work: Path) -> None:
    """Print the tables, and write peers.md and peers.json."""
    found = {kind: by_name(results, scales[kind]) for kind in HEADINGS if kind in scales}
    text = to_markdown(scales, found)
    print(text, end="")
    write_bytes(work / "peers.md", text.encode())
    write_bytes(work / "peers.json", to_json(scales, found).encode())
    print(f"written: {work / 'peers.md'}, {work / 'peers.json'}", file=sys.stderr)


def to_json(scales: Mapping[Kind, Mapping[str, Any]], found: Mapping[Kind, Mapping[str, Result]]) -> str:
    """Of each kind the scale and the results in the table's order, with ``ratio``: its CPU seconds over ours."""
    kinds = {}
    for kind, results in found.items():
        rows = []
        for peer, result in _rows(kind, results):
            fields = asdict(result) | {"title": peer.title, "note": peer.note, "ratio": _ratio(kind, result, results)}
            del fields["scale"]
            rows.append(fields)
        kinds[kind] = {"scale": dict(scales[kind]), "results": rows}
    return json.dumps(kinds, indent=1) + "\n"


def to_markdown(scales: Mapping[Kind, Mapping[str, Any]], found: Mapping[Kind, Mapping[str, Result]]) -> str:
    """One table a kind; below it what was not measured, and why."""
    lines = ["# Other tools beside tbpipe", ""]
    for kind, results in found.items():
        lines += [f"## {kind.capitalize()}", "", _scale(scales[kind]), ""]
        lines += [_line(HEADINGS[kind]), _line(["---"] * len(HEADINGS[kind]))]
        lines += [_line(_cells(kind, peer, result, results)) for peer, result in _measured(kind, results)]
        lines += ["", *_remarks(kind, results), ""]
    return "\n".join(lines)


def _cells(kind: Kind, peer: Peer, result: Result, results: Mapping[str, Result]) -> list[str]:
    ratio = _ratio(kind, result, results)
    cost, other = (f"{result.seconds[name]:.3g}" for name in (_COST[kind], _OTHER[kind]))
    middle = [cost, _times(ratio), other] if kind == "extraction" else [other, cost, _times(ratio)]
    known = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return [peer.title, _agreement(result), *middle, known]


def _agreement(result: Result) -> str:
    if not result.agreement:
        return "-"
    said = ", ".join(f"{name} {value:.4f}" for name, value in result.agreement.items())
    return f"{'same' if result.same else 'DIFFERS'}: {said}"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f} x as fast"


def _ratio(kind: Kind, result: Result, results: Mapping[str, Result]) -> float | None:
    """Its CPU seconds over ours; None of ours, and where one of them was not measured."""
    ours = results.get(OURS[kind])
    if ours is None or result.name == ours.name or not result.seconds or not ours.seconds:
        return None
    return result.seconds[_COST[kind]] / ours.seconds[_COST[kind]]


def _rows(kind: Kind, results: Mapping[str, Result]) -> Iterator[tuple[Peer, Result]]:
    for peer in PEERS.values():
        if peer.kind == kind and peer.name in results:
            yield peer, results[peer.name]


def _measured(kind: Kind, results: Mapping[str, Result]) -> Iterator[tuple[Peer, Result]]:
    return (row for row in _rows(kind, results) if row[1].status == "measured")


def _remarks(kind: Kind, results: Mapping[str, Result]) -> Iterator[str]:
    for peer, result in _rows(kind, results):
        if result.status != "measured":
            yield f"- {peer.title}: {result.status}: {result.reason}"
        if peer.note:
            yield f"- {peer.title}: {peer.note}"


def _scale(scale: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {str(value)[:12]}" for name, value in scale.items()) + "."


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
