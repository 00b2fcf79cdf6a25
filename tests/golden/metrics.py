"""``metrics.npz``: how the authors count ranks, with ties, several captions a video and dual softmax."""

from __future__ import annotations

from typing import Any

import numpy as np

from stages.normalise import dual_softmax
from stages.official_metrics import (
    FAMILY_CUTOFFS,
    clip_vip_metrics,
    family_metrics,
    groups_by_best,
    multi_caption_metrics,
    multi_caption_ranks,
    stacked,
    tied_places,
)
from tests.golden.check import EXACT, FEATURES, Arrays, Tolerance

TS2_CUTOFFS = (*FAMILY_CUTOFFS, 50)


def outputs(arrays: Arrays) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("plain", "ties", "constrow"):
        scores = arrays[f"in.{name}"]
        family(found, f"out.clip4clip.{name}.t2v", scores, FAMILY_CUTOFFS)
        family(found, f"out.clip4clip.{name}.v2t", scores.T, FAMILY_CUTOFFS)
        family(found, f"out.ts2.{name}.t2v", scores, TS2_CUTOFFS)
        family(found, f"out.ts2.{name}.dsl_t2v", dual_softmax(scores), FAMILY_CUTOFFS)
        found[f"out.vip.{name}.t2v_r1_r5_r10_medr_meanr"] = clip_vip_metrics(tied_places(scores))
    labelled = tied_places(arrays["in.plain"], arrays["in.labels"])
    weighted = dual_softmax(arrays["in.cosine"], 100.0)
    found |= {
        "out.vip.plain.multi_labels_r1_r5_r10_medr_meanr": clip_vip_metrics(labelled),
        "out.vip.dsl_matrix": weighted,
        "out.vip.dsl.t2v_r1_r5_r10_medr_meanr": clip_vip_metrics(tied_places(weighted)),
        "out.vip.dsl.v2t_r1_r5_r10_medr_meanr": clip_vip_metrics(tied_places(weighted.T)),
    }
    for name in ("plain", "ties"):
        stack = stacked(arrays[f"in.multi.{name}"], arrays["in.multi.captions_per_video"])
        by_best = groups_by_best(stack)
        found |= {f"out.multi.{name}.stacked": stack, f"out.multi.{name}.v2t_sim": by_best}
        family(found, f"out.multi.{name}.v2t", by_best, FAMILY_CUTOFFS)
        for kind, cutoffs in (("t2v", FAMILY_CUTOFFS), ("ts2_t2v", TS2_CUTOFFS)):
            values = multi_caption_metrics(multi_caption_ranks(stack), cutoffs)
            found |= {f"out.multi.{name}.{kind}.{key}": value for key, value in values.items()}
    return found


def family(found: dict[str, Any], prefix: str, scores: Any, cutoffs: tuple[int, ...]) -> None:
    """The metrics and the places that they are counted from."""
    places = tied_places(scores)
    found |= {f"{prefix}.{key}": value for key, value in family_metrics(places, cutoffs).items()}
    found[f"{prefix}.cols"] = np.asarray(places)


def tolerance_of(name: str) -> Tolerance | None:
    if name.startswith("out.multi.ties.t2v."):
        return None  # depends on the order in which an unstable sort leaves ties
    if name.endswith(".cols") or ("dsl" not in name and not name.startswith("out.multi")):
        return EXACT
    return FEATURES  # made of softmaxes, or of percentages that were rounded to float32
