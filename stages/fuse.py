"""Reciprocal rank fusion (Cormack et al., SIGIR 2009): one ranking of several, by ranks alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

DEFAULT_K = 60
"""Of the paper: how little the first places stand out."""


def fuse(runs: Sequence[Mapping[str, Sequence[str]]], k: float = DEFAULT_K) -> dict[str, list[tuple[str, float]]]:
    """Of each query, keys and scores sum over the runs of 1 / (k + rank), best first; ranks are from 1.

    runs: query id -> keys, best first. Queries come in the order in which they are first seen; a run that lacks one, or
    a key, adds nothing to it. Ties are ordered by key, and the order of the runs changes nothing but that of the
    queries.
    """
    queries = dict.fromkeys(query for run in runs for query in run)
    return {query: _fused([run.get(query, ()) for run in runs], k) for query in queries}


def _fused(rankings: Sequence[Sequence[str]], k: float) -> list[tuple[str, float]]:
    parts: dict[str, list[float]] = {}
    for ranking in rankings:
        for rank, key in enumerate(ranking, start=1):
            parts.setdefault(key, []).append(1 / (k + rank))
    scores = {key: math.fsum(terms) for key, terms in parts.items()}
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
