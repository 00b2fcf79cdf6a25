"""Products with a matrix of weights whose last bits do not depend on how many rows there are.

A matrix product of another shape may sum in another order. Here rows go through it ROWS at a time, padded.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 64
"""Padding costs a lone video of 12 frames five times its rows, 500 rows next to nothing."""


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The rows through a linear layer: float32 [..., D], weight [E, D], bias [E]; float32 [..., E].

    Where gradients are wanted, or not on a CPU, it is the ordinary product: nothing is promised about last bits there.
    """
    if torch.is_grad_enabled() or rows.device.type != "cpu":
        return functional.linear(rows, weight, bias)
    if len(weight) == 1:  # a lone matrix times a column is summed in another way than several are
        product = (rows * weight[0]).sum(-1, keepdim=True)
        return product if bias is None else product + bias
    flat = rows.reshape(-1, rows.shape[-1])
    padded = functional.pad(flat, (0, 0, 0, -len(flat) % ROWS)).view(-1, ROWS, rows.shape[-1])
    product = torch.bmm(padded, weight.T.expand(len(padded), -1, -1)).flatten(0, 1)[: len(flat)]
    if bias is not None:
        product = product + bias
    return product.view(*rows.shape[:-1], len(weight))
