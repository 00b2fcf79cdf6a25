"""Products and sums whose last bits do not depend on what else is in the same tensor.

A matrix product of another shape may sum in another order; here it is made of products of one shape, padded. So may a
sum over an axis that is not the last one, and one with zeros at the end of the last; here it is taken in order.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 64
"""Padding costs a lone video of 12 frames five times its rows, 500 rows next to nothing."""
COLUMNS = 192
"""The frames of 16 videos. One core, products of 64 x 512 x 192: 83 GFLOP/s, x 384: 90, without bound: 119; products
of 12 x 512 x 12 for each pair: 20 to 40."""


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


def products(rows: Tensor, columns: Tensor) -> Tensor:
    """All dot products rows columns^T: float32 [R, D] and [N, D] -> [R, N]. The same promise as ``linear``."""
    if torch.is_grad_enabled() or rows.device.type != "cpu":
        return rows @ columns.T
    height, width = len(rows), len(columns)
    rows = functional.pad(rows, (0, 0, 0, -height % ROWS)) if height % ROWS else rows
    result = rows.new_empty(len(rows), width + -width % COLUMNS)
    for left in range(0, width, COLUMNS):
        block = columns[left : left + COLUMNS].T
        block = functional.pad(block, (0, COLUMNS - block.shape[1])).contiguous()  # in this order it is a third faster
        for top in range(0, len(rows), ROWS):
            torch.mm(rows[top : top + ROWS], block, out=result[top : top + ROWS, left : left + COLUMNS])
    return result[:height, :width]


def softmax(logits: Tensor, dim: int) -> Tensor:
    """Softmax over an axis that is not the last one: -inf at its end, or more on the other axes, change no bit."""
    if torch.is_grad_enabled() or logits.device.type != "cpu":
        return logits.softmax(dim)
    powers = (logits - logits.amax(dim, keepdim=True)).exp_()
    return powers.div_(total(powers, dim).unsqueeze(dim))


def total(terms: Tensor, dim: int) -> Tensor:
    """Sum over an axis that is not the last one, of one entry at least: zeros at its end change no bit."""
    if torch.is_grad_enabled() or terms.device.type != "cpu":
        return terms.sum(dim)
    first, *others = terms.unbind(dim)
    result = first.clone()
    for other in others:
        result += other
    return result
