"""Products and sums whose last bits do not depend on what else is in the same tensor.

A matrix product of another shape may sum in another order; here it is made of products of one shape, padded, or of a
few shapes that were seen to sum in the same order. So may a sum over an axis that is not the last one, and one with
zeros at the end of the last; here it is taken in order.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 64
"""Padding costs a lone video of 12 frames five times its rows, 500 rows next to nothing."""
COLUMNS = 192
"""The frames of 16 videos."""
_HEIGHTS, _WIDTHS = (16, 32, 48, ROWS, 128, 256), (COLUMNS, 4 * COLUMNS)
"""Of products, the longest that fit. One core, D = 512: 64 x 192: 56 GFLOP/s, 64 x 768: 85, 256 x 768: 105, without
bound: 115. For the 15 rows of a lone text 16 x 768 takes half of the time of 64 x 768: that long memory is read."""
_MOST_PADDED = ROWS
"""Fewer rows are one product, padded; more are cut."""


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
    heights, widths = _tiles(rows.shape[1], torch.get_num_threads())
    tops, lefts = _cuts(len(rows), heights), _cuts(len(columns), widths)
    result = rows.new_empty(lefts[-1].stop, tops[-1].stop)  # with a row for each column, short products are faster
    across = functional.pad(rows, (0, 0, 0, result.shape[1] - len(rows))).T
    for left in lefts:
        block = columns[left]
        block = functional.pad(block, (0, 0, 0, left.stop - left.start - len(block))) if left == lefts[-1] else block
        for top in tops:
            torch.mm(block, across[:, top], out=result[left, top])
    return result[: len(columns), : len(rows)].T.contiguous()


def _cuts(number: int, sizes: tuple[int, ...]) -> list[slice]:
    """Runs of these sizes, in ascending order, that cover ``number`` rows: the longest that fit, and one more."""
    cuts: list[slice] = []
    start = 0
    while start < number or not cuts:
        left = number - start
        size = next((size for size in sizes if left <= size <= _MOST_PADDED), None)
        size = size or max((size for size in sizes if size <= left), default=sizes[0])
        cuts.append(slice(start, start + size))
        start += size
    return cuts


@functools.cache
def _tiles(depth: int, num_threads: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Heights and widths of the products of vectors of length ``depth`` that all give the same last bits here.

    The order in which a library sums does not depend on the numbers, so it is seen with some drawn ones. Where only one
    of the other shapes sums in another order, there is one shape.
    """
    drawn = torch.Generator().manual_seed(0)
    rows, columns = torch.randn(ROWS, depth, generator=drawn), torch.randn(COLUMNS, depth, generator=drawn)
    expected = columns @ rows.T
    for width in _WIDTHS:
        for height in _HEIGHTS:
            some = rows.repeat(-(-height // ROWS), 1)[:height]
            found = columns.repeat(width // COLUMNS, 1) @ some.T
            whole = expected.repeat(width // COLUMNS, -(-height // ROWS))[:, :height]
            if not torch.equal(found, whole):
                return (ROWS,), (COLUMNS,)
    return _HEIGHTS, _WIDTHS


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
