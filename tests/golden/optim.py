"""``optim.npz``: parameters after every step of an optimiser, and the rates of the schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.training.optimisers import SCHEDULES, BertAdam, ClipVipAdamW, bert_factor, clip_vip_rate
from tests.golden.check import EXACT, FEATURES, Arrays, Tolerance


def outputs(arrays: Arrays) -> dict[str, Any]:
    def told(name: str) -> float:
        return float(arrays[f"cfg.{name}"])

    num_steps = int(told("bertadam.t_total"))
    peaks = [told("bertadam.lr_p"), told("bertadam.lr_q")]
    rates = np.array(
        [[SCHEDULES["bert-cosine"](peak, step, num_steps, told("bertadam.warmup")) for peak in peaks]
         for step in range(len(arrays["in.grads_p"]) + 1)]
    )  # fmt: skip
    bert = BertAdam(groups(arrays, "bertadam", peaks), lr=peaks[0], max_grad_norm=told("bertadam.max_grad_norm"))
    vip_rate = told("vip_adamw.lr")
    vip = ClipVipAdamW(
        groups(arrays, "vip_adamw", [vip_rate] * 2), lr=vip_rate, correct_bias=bool(told("vip_adamw.correct_bias"))
    )
    found: dict[str, Any] = {"out.bertadam.get_lr_after_step": rates[1:]}
    found["out.bertadam.p"], found["out.bertadam.q"] = parameters_after(arrays, bert, lambda step: rates[step])
    found["out.vip_adamw.p"], found["out.vip_adamw.q"] = parameters_after(arrays, vip, lambda step: [vip_rate] * 2)
    for kind in ("cosine", "constant", "linear"):
        factors = [bert_factor(kind, float(progress), 0.1) for progress in arrays["in.schedule_x"]]
        found[f"out.bertadam.schedule.warmup_{kind}_warmup0p1"] = np.array(factors)
    total, warmup, peak = int(told("vip_sched.total_steps")), told("vip_sched.warmup_ratio"), told("vip_sched.base_lr")
    for vip_kind in ("cosine", "constant", "linear", "invsqrt"):
        found[f"out.vip_sched.{vip_kind}"] = np.array(
            [clip_vip_rate(vip_kind, peak, number, total, warmup) for number in range(1, total + 1)]
        )
    return found


def groups(arrays: Arrays, optimiser: str, peaks: list[float]) -> list[dict[str, Any]]:
    """The parameters p and q, each in a group of its own."""
    told = {name: float(arrays[f"cfg.{optimiser}.{name}"]) for name in ("b1", "b2", "eps", "wd_p", "wd_q")}
    return [
        {
            "params": [torch.tensor(arrays[f"in.{name}0"])],
            "lr": peak,
            "betas": (told["b1"], told["b2"]),
            "eps": told["eps"],
            "weight_decay": told[f"wd_{name}"],
        }
        for name, peak in zip("pq", peaks, strict=True)
    ]


def parameters_after(
    arrays: Arrays, optimiser: torch.optim.Optimizer, rates: Callable[[int], Any]
) -> list[NDArray[np.float32]]:
    """The values of p and of q after every step, [steps, ...] each."""
    parameters: list[Tensor] = [group["params"][0] for group in optimiser.param_groups]
    kept: list[list[NDArray[np.float32]]] = [[], []]
    for step in range(len(arrays["in.grads_p"])):
        for group, parameter, name, rate in zip(optimiser.param_groups, parameters, "pq", rates(step), strict=True):
            group["lr"] = float(rate)
            parameter.grad = torch.tensor(arrays[f"in.grads_{name}"][step])
        optimiser.step()
        for values, parameter in zip(kept, parameters, strict=True):
            values.append(parameter.numpy().copy())
    return [np.stack(values) for values in kept]


def tolerance_of(name: str) -> Tolerance | None:
    if "sched" in name or "get_lr" in name:
        return Tolerance(atol=1e-14)  # the same float64 numbers up to their last places; rates are about 1e-6
    return FEATURES if name.startswith("out.") else EXACT
