"""``losses.npz``: contrastive losses and their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stages.training.losses import (
    CLIP_VIP_LOSSES,
    Constants,
    Sources,
    contrastive,
    cross_entropy,
    max_margin,
    mil_nce,
)
from tests.golden.check import FEATURES, GRADIENTS, Arrays, Tolerance

FEATURE_NAMES = {"vis": "video", "text": "text", "img": "image", "cap": "caption"}


def outputs(arrays: Arrays) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("sim", "sim_ties"):
        scores = tensor(arrays, f"in.{name}").requires_grad_()
        loss = cross_entropy(scores)
        (found[f"out.CrossEn.{name}.grad"],) = torch.autograd.grad(loss, scores)
        found |= {
            f"out.CrossEn.{name}": loss,
            f"out.CrossEn_transposed.{name}": cross_entropy(scores.T),
            f"out.CrossEn_symmetric_mean.{name}": contrastive(scores),
            f"out.MaxMargin_margin0p1.{name}": max_margin(scores, 0.1),
            f"out.MaxMargin_margin1_pair3_weighted.{name}": max_margin(scores, 1.0, 3, 0.5),
            f"out.MILNCE_pair1.{name}": mil_nce(scores),
            f"out.MILNCE_pair3.{name}": mil_nce(scores, 3),
        }
    told = Constants(
        temperature=float(arrays["cfg.vip.NCEContrastiveLoss.temp"]),
        hard_negatives=int(arrays["cfg.vip.HardNegLoss.hard_negative_num"]),
        margin=float(arrays["cfg.vip.TripletContrastiveLoss.margin"]),
        is_hardest_only=bool(arrays["cfg.vip.TripletContrastiveLoss.max_violation"]),
    )
    hardest = Constants(margin=told.margin, is_hardest_only=True)
    mil = Constants(temperature=float(arrays["cfg.vip.MILNCEContrastiveLoss.temp"]))
    special = {"TripletContrastiveLoss_maxviolation": hardest, "MILNCEContrastiveLoss": mil}
    for name in (name for name in arrays if name.startswith("out.vip.")):
        loss_name, _, gradient = name.removeprefix("out.vip.").partition(".")
        leaves = {field: tensor(arrays, f"in.feat_{field}").requires_grad_() for field in FEATURE_NAMES}
        leaves["logit_scale_log"] = tensor(arrays, "in.logit_scale_log").requires_grad_()
        features = {FEATURE_NAMES[field]: leaves[field] for field in FEATURE_NAMES}
        sources = Sources(**features, log_scale=leaves["logit_scale_log"])
        loss = CLIP_VIP_LOSSES[loss_name.removesuffix("_maxviolation")](sources, special.get(loss_name, told))
        if gradient:
            (found[name],) = torch.autograd.grad(loss, leaves[gradient.removeprefix("grad_")])
        else:
            found[name] = loss
    return found


def tensor(arrays: Arrays, name: str) -> Tensor:
    return torch.tensor(arrays[name], dtype=torch.float32)


def tolerance_of(name: str) -> Tolerance | None:
    return GRADIENTS if "grad" in name else FEATURES
