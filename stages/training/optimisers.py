"""Optimisers and learning-rate schedules: ours, and those of the published systems exactly as they run.

A schedule gives the rate of each step; the trainer sets it in every group before the step. No optimiser here has a
schedule or a step count of its own beside that, so that what a state file keeps is enough to go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

OptimiserName = Literal["adamw", "bertadam", "clip-vip-adamw"]
ScheduleName = Literal[
    "cosine",
    "bert-cosine",
    "bert-constant",
    "bert-linear",
    "clip-vip-cosine",
    "clip-vip-constant",
    "clip-vip-linear",
    "clip-vip-invsqrt",
]

_BETAS = (0.9, 0.98)
"""Of every published system here."""
_EPSILON = 1e-6
_CLIP_VIP_FLOOR = 1e-8
"""The rate where CLIP-ViP's schedule would give nothing."""
_LEARNED_ADDITIONS = ("indicators", "time", "place", "rank")
"""Embeddings that ``adamw`` does not shrink, by the end of their names."""


class _Adam(torch.optim.Optimizer):
    """Both moments of every parameter; what a step makes of them is the subclass's."""

    def __init__(self, groups: Iterable[dict[str, Any]], defaults: dict[str, Any]) -> None:
        super().__init__(groups, {"betas": _BETAS, "eps": _EPSILON, "weight_decay": 0.0, **defaults})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                    state["step"] = torch.zeros(())
                gradient = self._gradient(parameter.grad, group)
                state["step"] += 1
                state["exp_avg"].mul_(first).add_(gradient, alpha=1 - first)
                state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
                self._move(parameter, state, group)

    def _gradient(self, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        return gradient

    def _move(self, parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        raise NotImplementedError


class BertAdam(_Adam):
    """Adam without bias correction, p -= lr (m / (sqrt v + eps) + wd p), each gradient clipped to a norm by itself.

    CLIP4Clip, X-CLIP, TS2-Net, UCoFiA and EERCF train with it, on top of a clip of all gradients together.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, max_grad_norm: float = 1.0) -> None:
        super().__init__(groups, {"lr": lr, "max_grad_norm": max_grad_norm})

    def _gradient(self, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        if group["max_grad_norm"] <= 0:
            return gradient
        factor: Tensor = (group["max_grad_norm"] / (gradient.norm() + 1e-6)).clamp(max=1.0)
        return gradient * factor

    def _move(self, parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        update = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["eps"])
        if group["weight_decay"] > 0:
            update = update + group["weight_decay"] * parameter
        parameter.add_(update, alpha=-group["lr"])


class ClipVipAdamW(_Adam):
    """Adam with bias correction, whose decay p -= lr wd p comes after the step, from what the step has left.

    Unlike ``torch.optim.AdamW`` the correction of the second moment does not reach eps.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, correct_bias: bool = True) -> None:
        super().__init__(groups, {"lr": lr, "correct_bias": correct_bias})

    def _move(self, parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        rate, step = group["lr"], float(state["step"])
        if group["correct_bias"]:
            first, second = group["betas"]
            rate = rate * math.sqrt(1 - second**step) / (1 - first**step)
        parameter.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt() + group["eps"], value=-rate)
        if group["weight_decay"] > 0:
            parameter.add_(parameter, alpha=-group["lr"] * group["weight_decay"])


def make_optimiser(name: OptimiserName, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    """The optimiser of that name over groups of ``params`` and ``weight_decay``."""
    if name == "bertadam":
        return BertAdam(groups, lr)
    if name == "clip-vip-adamw":
        return ClipVipAdamW(groups, lr)
    return torch.optim.AdamW(groups, lr=lr, betas=_BETAS)


def is_decayed(optimiser: OptimiserName, name: str, parameter: Tensor) -> bool:
    """Whether the weight decay is for this parameter.

    adamw: matrices that are no learned additions to the embeddings. The published ones go by the name: everything but
    biases (so the gains of layer norms as well), CLIP-ViP also leaves out the temperature.
    """
    if optimiser == "adamw":
        return parameter.ndim > 1 and not name.endswith(_LEARNED_ADDITIONS)
    return "bias" not in name and (optimiser == "bertadam" or not name.endswith(("log_scale", "logit_scale")))


# -- schedules --------------------------------------------------------------------------------------------------------


def learning_rate_factor(step: int, num_steps: int, warmup: float) -> float:
    """Linear rise over the first ``warmup`` of the steps, then half a cosine down to 2 %."""
    rising = max(1.0, warmup * num_steps)
    if step + 1 < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1.0, num_steps - rising)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, done))))


def bert_factor(kind: Literal["cosine", "constant", "linear"], progress: float, warmup: float) -> float:
    """BertAdam's schedules: a linear rise up to the share ``warmup`` of all steps, then a function of the progress.

    The cosine is one of the whole progress: where the rise ends it jumps down to what it has there. The very first
    step, at progress 0, has no rate at all.
    """
    if progress < warmup:
        return progress / warmup
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0 if kind == "constant" else max((progress - 1) / (warmup - 1), 0.0)


def clip_vip_rate(
    kind: Literal["cosine", "constant", "linear", "invsqrt"], peak: float, number: int, num_steps: int, warmup: float
) -> float:
    """CLIP-ViP's schedules: the rate of step ``number``, from 1. Constant has no rise."""
    rising = int(warmup * num_steps)
    if kind == "constant":
        return peak
    if number < rising:
        factor = number / rising
    elif kind == "invsqrt":
        factor = math.sqrt(rising / number)
    else:
        done = (number - rising) / max(1, num_steps - rising)
        factor = 0.5 * (1 + math.cos(math.pi * done)) if kind == "cosine" else max(0.0, 1 - done)
    rate = peak * factor
    return rate if rate > 0 else _CLIP_VIP_FLOOR


Schedule = Callable[[float, int, int, float], float]
"""Peak rate, step from 0, number of steps, share of the rise -> rate."""


def _bert(kind: Literal["cosine", "constant", "linear"]) -> Schedule:
    return lambda peak, step, num_steps, warmup: peak * bert_factor(kind, step / num_steps, warmup)


def _clip_vip(kind: Literal["cosine", "constant", "linear", "invsqrt"]) -> Schedule:
    return lambda peak, step, num_steps, warmup: clip_vip_rate(kind, peak, step + 1, num_steps, warmup)


SCHEDULES: dict[ScheduleName, Schedule] = {
    "cosine": lambda peak, step, num_steps, warmup: peak * learning_rate_factor(step, num_steps, warmup),
    "bert-cosine": _bert("cosine"),
    "bert-constant": _bert("constant"),
    "bert-linear": _bert("linear"),
    "clip-vip-cosine": _clip_vip("cosine"),
    "clip-vip-constant": _clip_vip("constant"),
    "clip-vip-linear": _clip_vip("linear"),
    "clip-vip-invsqrt": _clip_vip("invsqrt"),
}
