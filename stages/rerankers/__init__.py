"""The ways to re-order candidates: name -> class. One line adds a method that needs no weights."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from index_store.errors import UsageError
from stages.rerankers.base import BroadReranker, CandidateBatch, QueryBatch, Reranker
from stages.rerankers.clip4clip import Clip4ClipReranker
from stages.rerankers.eercf import EercfReranker
from stages.rerankers.late_interaction import LateInteractionReranker
from stages.rerankers.ts2net import Ts2NetReranker
from stages.rerankers.ucofia import UcofiaReranker
from stages.rerankers.wti import WtiReranker
from stages.rerankers.xclip import XClipReranker

__all__ = ["RERANKERS", "TOKEN_BINDER", "CandidateBatch", "QueryBatch", "Reranker", "make_reranker"]

RERANKERS: dict[str, Callable[[], Reranker]] = {
    "eercf": EercfReranker,
    "clip4clip": Clip4ClipReranker,
    "ts2-net": Ts2NetReranker,
    "ucofia": UcofiaReranker,
    "x-clip": XClipReranker,
    "wti": WtiReranker,
    "late-interaction": LateInteractionReranker,
    "broad": BroadReranker,
}
"""Name -> a class that needs no weights."""

ONLY_WITH_WEIGHTS = ("clip4clip-tight",)
"""Methods of ``head_weights.HEADS`` that are not in RERANKERS."""

TOKEN_BINDER = "token-binder"
"""The reranker that needs weights: ``stages.rerankers.token_binder.TokenBinderReranker.open``."""


def make_reranker(name: str) -> Reranker:
    """The reranker with this name, without weights. Raises UsageError, naming the nearest one if there is none."""
    if name in ONLY_WITH_WEIGHTS:
        raise UsageError(f"--method {name} has no form without weights; give them with --weights FILE")
    if name not in RERANKERS:
        known = [*RERANKERS, TOKEN_BINDER]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise UsageError(f"there is no reranker {name!r}; did you mean {near!r}? Known: {', '.join(sorted(known))}")
    return RERANKERS[name]()
