"""DRL: the three interactions, and the decorrelation that goes with each."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.rerankers.wti import DpHead, WtiHead
from stages.training.decorrelation import correlations, decorrelation, token_correlations
from tests.golden.check import FEATURES, LOGITS, Arrays, Tolerance
from tests.golden.features import Features, features, head_state


def outputs(arrays: Arrays) -> dict[str, Tensor]:
    """Every ``out.*`` array."""
    found: dict[str, Tensor] = {}
    alphas = float(arrays["cfg.cdcr_alpha1"]), float(arrays["cfg.cdcr_alpha2"])
    given, train = features(arrays, "in"), features(arrays, "train_in")
    with torch.inference_mode():
        for name in ("dp", "ti", "wti"):
            state = head_state(arrays, f"w.{name}")
            head = DpHead.of_state(state) if name == "dp" else WtiHead.of_state(state, official=True)
            found[f"out.{name}.eval_logits_no_scale"] = _logits(head, given) / head.logit_scale.exp()
            losses = _decorrelations(head, train)
            for variant, matrix in losses.items():
                found[f"out.{name}.train_logits_{variant}"] = _logits(head, train)
                found[f"out.{name}.train_{variant}_loss"] = decorrelation(matrix, *alphas)
    return found


def _logits(head: DpHead | WtiHead, given: Features) -> Tensor:
    """[T, V]."""
    if isinstance(head, DpHead):
        return head.score(head.texts(given.queries)[None], head.videos(given.tokens, given.frame_mask)).T
    texts = head.texts(given.queries)[torch.arange(len(given.queries))[None]]
    return head.score(texts, head.videos(given.tokens, given.frame_mask)).T


def _decorrelations(head: DpHead | WtiHead, train: Features) -> dict[str, Tensor]:
    """Correlations [D, D] by the number that the released code gives the variant."""
    texts, videos = head.texts(train.queries), head.videos(train.tokens, train.frame_mask)
    if isinstance(texts, Tensor) or isinstance(videos, Tensor):
        assert isinstance(texts, Tensor)
        assert isinstance(videos, Tensor)
        return {"cdcr1": correlations(texts, videos)}
    return {
        "cdcr2": token_correlations(texts, videos, weighted=False, official=True),
        "cdcr3": token_correlations(texts, videos, weighted=True, official=True),
    }


def tolerance_of(name: str) -> Tolerance:
    """As the file's README says."""
    return FEATURES if name.endswith("no_scale") else LOGITS
