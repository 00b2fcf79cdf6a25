from __future__ import annotations

from math import cos, pi, sqrt
from typing import Any, get_args

import pytest
import torch

from index_store.errors import UsageError
from stages.training.config import TrainConfig
from stages.training.optimisers import (
    SCHEDULES,
    BertAdam,
    ClipVipAdamW,
    OptimiserName,
    ScheduleName,
    is_decayed,
    learning_rate_factor,
    make_optimiser,
)


def one(value: float, decay: float = 0.0) -> tuple[torch.nn.Parameter, list[dict[str, Any]]]:
    parameter = torch.nn.Parameter(torch.tensor([value]))
    return parameter, [{"params": [parameter], "weight_decay": decay}]


def step(optimiser: torch.optim.Optimizer, parameter: torch.nn.Parameter, gradient: float) -> float:
    parameter.grad = torch.tensor([gradient])
    optimiser.step()
    return parameter.item()


def test_bertadam_has_no_bias_correction_and_decays_within_the_step() -> None:
    parameter, groups = one(2.0, decay=0.2)
    optimiser = BertAdam(groups, lr=0.1)
    first = 2.0 - 0.1 * (0.1 * 0.5 / (sqrt(0.02 * 0.25) + 1e-6) + 0.2 * 2.0)
    assert step(optimiser, parameter, 0.5) == pytest.approx(first, rel=1e-6)
    mean, square = 0.9 * 0.05 + 0.1 * -0.25, 0.98 * 0.005 + 0.02 * 0.0625
    second = first - 0.1 * (mean / (sqrt(square) + 1e-6) + 0.2 * first)
    assert step(optimiser, parameter, -0.25) == pytest.approx(second, rel=1e-6)


def test_bertadam_clips_each_gradient_by_itself() -> None:
    large, groups = one(1.0)
    unit, others = one(1.0)
    one_step = step(BertAdam(groups, lr=0.1), large, 40.0)
    assert one_step == pytest.approx(step(BertAdam(others, lr=0.1), unit, 1.0), rel=1e-6)
    free, free_groups = one(1.0)
    optimiser = BertAdam(free_groups, lr=0.1, max_grad_norm=0)
    step(optimiser, free, 40.0)
    assert optimiser.state[free]["exp_avg"].item() == pytest.approx(4.0)


def test_clip_vip_decays_what_the_step_has_left() -> None:
    parameter, groups = one(2.0, decay=0.2)
    moved = 2.0 - 0.1 * sqrt(1 - 0.98) / (1 - 0.9) * (0.05 / (sqrt(0.005) + 1e-6))
    assert step(ClipVipAdamW(groups, lr=0.1), parameter, 0.5) == pytest.approx(moved - 0.1 * 0.2 * moved, rel=1e-6)
    plain, groups = one(2.0)
    moved = 2.0 - 0.1 * 0.05 / (sqrt(0.005) + 1e-6)
    assert step(ClipVipAdamW(groups, lr=0.1, correct_bias=False), plain, 0.5) == pytest.approx(moved, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", get_args(OptimiserName))
def test_an_optimiser_finds_a_minimum_and_leaves_alone_what_has_no_gradient(name: OptimiserName) -> None:
    parameter, groups = one(3.0)
    untouched, others = one(1.0, decay=0.5)
    optimiser = make_optimiser(name, [*groups, *others], lr=0.1)
    for _ in range(300):
        optimiser.zero_grad()
        (parameter - 1).square().sum().backward()
        optimiser.step()
    assert parameter.item() == pytest.approx(1.0, abs=0.05)
    assert untouched.item() == 1.0


def test_what_decays() -> None:
    matrix, gain = torch.zeros(2, 2), torch.ones(2)
    cases = {
        ("text.mlp.weight", matrix): (True, True, True),
        ("indicators", matrix): (False, True, True),
        ("text.ln_1.weight", gain): (False, True, True),
        ("text.mlp.bias", gain): (False, False, False),
        ("log_scale", gain): (False, True, False),
    }
    for (name, parameter), expected in cases.items():
        assert tuple(is_decayed(optimiser, name, parameter) for optimiser in get_args(OptimiserName)) == expected


# -- schedules --------------------------------------------------------------------------------------------------------


def rates(name: ScheduleName, number: int = 100, warmup: float = 0.1) -> list[float]:
    return [SCHEDULES[name](2.0, step, number, warmup) for step in range(number)]


def test_the_learning_rate_rises_and_falls() -> None:
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * i for i in range(1, 11)], abs=0.02)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] < 0.03
    assert rates("cosine") == [2 * factor for factor in factors]


def test_bert_begins_with_nothing_and_jumps_where_the_cosine_begins() -> None:
    found = rates("bert-cosine")
    assert found[:3] == pytest.approx([0.0, 0.2, 0.4])
    assert found[9:11] == pytest.approx([1.8, 2 * 0.5 * (1 + cos(pi * 0.1))])
    assert rates("bert-constant")[10:] == [2.0] * 90
    assert rates("bert-linear")[10] == pytest.approx(2.0)
    assert rates("bert-linear")[55] == pytest.approx(1.0)


def test_clip_vip_counts_from_one_and_never_stands_still() -> None:
    for name in ("clip-vip-cosine", "clip-vip-linear", "clip-vip-invsqrt"):
        assert rates(name)[:10] == pytest.approx([0.2 * number for number in range(1, 11)])
    assert rates("clip-vip-cosine")[54] == pytest.approx(1.0)
    assert rates("clip-vip-linear")[54] == pytest.approx(1.0)
    assert rates("clip-vip-cosine")[-1] == rates("clip-vip-linear")[-1] == 1e-8
    assert rates("clip-vip-invsqrt")[39] == pytest.approx(2 * sqrt(10 / 40))
    assert rates("clip-vip-constant") == [2.0] * 100
    assert rates("clip-vip-linear", 3, 0.0) == pytest.approx([2 * 2 / 3, 2 / 3, 1e-8])


def test_every_name_has_its_schedule_and_others_are_refused() -> None:
    assert set(SCHEDULES) == set(get_args(ScheduleName))
    with pytest.raises(UsageError, match="schedule = 'sine', expected one of cosine, bert-cosine"):
        TrainConfig(schedule="sine")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="optimiser = 'sgd', expected one of adamw, bertadam"):
        TrainConfig(optimiser="sgd")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="contrast = 'cosine', expected one of mean, sum, dual-softmax"):
        TrainConfig(contrast="cosine")  # type: ignore[arg-type]
