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
_MIXED = 64
"""Columns of a product with a small matrix, where those of another number would come out with other bits."""
_HEIGHTS, _WIDTHS = (16, 32, 48, ROWS, 128, 256), (COLUMNS, 4 * COLUMNS)
"""Of products, the longest that fit. One core, D = 512: 64 x 192: 56 GFLOP/s, 64 x 768: 85, 256 x 768: 105, without
bound: 115. For the 15 rows of a lone text 16 x 768 takes half of the time of 64 x 768: that long memory is read."""
_ROW_STEP, _FEW_ROWS, _MOST_AT_ONCE = 16, 48, 4096
"""The words of a lone text or two and the tokens of its candidates: one product, without padding of the tokens, where
such a product gives the same bits. Cut and padded it took twice as long."""
_MOST_PADDED = ROWS
"""Fewer rows are one product, padded; more are cut, unless an eighth more would do."""


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
    padded = _padded(flat, slice(0, len(flat) + -len(flat) % ROWS)).view(-1, ROWS, rows.shape[-1])
    product = torch.bmm(padded, weight.T.expand(len(padded), -1, -1)).flatten(0, 1)[: len(flat)]
    if bias is not None:
        product = product + bias
    return product.view(*rows.shape[:-1], len(weight))


def products(rows: Tensor, columns: Tensor) -> Tensor:
    """All dot products rows columns^T: float32 [R, D] and [N, D] -> [R, N]. The same promise as ``linear``.

    The result may be a part of something longer: each of its rows is contiguous.
    """
    if torch.is_grad_enabled() or rows.device.type != "cpu":
        return rows @ columns.T
    num_rows, num_columns = rows.shape[0], columns.shape[0]
    if 0 < num_rows <= _FEW_ROWS and 0 < num_columns <= _MOST_AT_ONCE:
        height = -(-num_rows // _ROW_STEP) * _ROW_STEP
        if _multiplies_alike(height, num_columns, rows.shape[1], torch.get_num_threads()):
            found = torch.mm(columns, _padded(rows, slice(0, height)).T)
            return found.narrow(1, 0, num_rows).T.contiguous()
    heights, widths = _tiles(rows.shape[1], torch.get_num_threads())
    tops, lefts = _cuts(num_rows, heights), _cuts(num_columns, widths)
    is_short = tops[-1].stop < ROWS  # then products are faster the other way round
    shape = tops[-1].stop, lefts[-1].stop
    result = rows.new_empty(shape[::-1] if is_short else shape)
    parts = [_padded(rows[top], top) for top in tops]
    for left in lefts:
        block = _padded(columns[left], left)
        for top, part in zip(tops, parts, strict=True):
            if is_short:
                torch.mm(block, part.T, out=result[left, top])
            else:
                torch.mm(part, block.T, out=result[top, left])
    return (result.T.contiguous() if is_short else result)[:num_rows, :num_columns]


def _padded(rows: Tensor, place: slice) -> Tensor:
    """With as many rows as the place has."""
    missing = int(place.stop) - int(place.start) - rows.shape[0]
    return functional.pad(rows, (0, 0, 0, missing)) if missing else rows


def _cuts(number: int, sizes: tuple[int, ...]) -> list[slice]:
    """Runs of these sizes, in ascending order, that cover ``number`` rows: the longest that fit, and one more.

    The last may be longer than what is left by _MOST_PADDED, or by an eighth.
    """
    cuts: list[slice] = []
    start = 0
    while start < number or not cuts:
        left = number - start
        size = next((size for size in sizes if left <= size <= max(_MOST_PADDED, left + left // 8)), None)
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
            block = columns.repeat(width // COLUMNS, 1)
            found, turned = block @ some.T, some @ block.T
            whole = expected.repeat(width // COLUMNS, -(-height // ROWS))[:, :height]
            if not (torch.equal(found, whole) and torch.equal(turned, whole.T)):
                return (ROWS,), (COLUMNS,)
    return _HEIGHTS, _WIDTHS


@functools.lru_cache(maxsize=4096)
def _multiplies_alike(height: int, width: int, depth: int, num_threads: int) -> bool:
    """Whether one product of so many columns with so many rows gives all the bits they have in ``_tiles``."""
    drawn = torch.Generator().manual_seed(0)
    rows, columns = torch.randn(ROWS, depth, generator=drawn), torch.randn(COLUMNS, depth, generator=drawn)
    repeats = -(-width // COLUMNS)
    found = columns.repeat(repeats, 1)[:width] @ rows[:height].T
    return torch.equal(found, (columns @ rows.T)[:, :height].repeat(repeats, 1)[:width])


def mixed(matrix: Tensor, x: Tensor, dim: int) -> Tensor:
    """The small matrix [E, N] times float32 x over its axis ``dim`` >= 1 of size N, not the last: [..., E, ...].

    The same promise as ``linear``.
    """
    shape = *x.shape[:dim], matrix.shape[0], *x.shape[dim + 1 :]
    x = x.flatten(dim + 1).flatten(0, dim - 1)  # [B, N, M]
    matrix = matrix.expand(x.shape[0], -1, -1)
    if torch.is_grad_enabled() or x.device.type != "cpu":
        return torch.bmm(matrix, x).view(shape)
    number = x.shape[2]
    if _mixes_alike(matrix.shape[1], matrix.shape[2], number, torch.get_num_threads()):
        return torch.bmm(matrix, x).view(shape)
    blocks = torch.split(functional.pad(x, (0, -number % _MIXED)), _MIXED, dim=2)
    return torch.cat([torch.bmm(matrix, block) for block in blocks], 2)[..., :number].reshape(shape)


@functools.lru_cache(maxsize=1024)
def _mixes_alike(height: int, depth: int, width: int, num_threads: int) -> bool:
    """Whether a small matrix times so many columns gives each the bits that it has among _MIXED; as for ``_tiles``."""
    drawn = torch.Generator().manual_seed(0)
    matrix = torch.randn(1, height, depth, generator=drawn)
    columns = torch.randn(1, depth, _MIXED, generator=drawn)
    repeats = -(-width // _MIXED)
    found = torch.bmm(matrix, columns.repeat(1, 1, repeats)[..., :width])
    return torch.equal(found, torch.bmm(matrix, columns).repeat(1, 1, repeats)[..., :width])


def softmax(logits: Tensor, dim: int) -> Tensor:
    """Softmax over an axis that is not the last one: -inf at its end, or more on the other axes, change no bit."""
    if torch.is_grad_enabled() or logits.device.type != "cpu":
        return logits.softmax(dim)
    powers = (logits - logits.amax(dim, keepdim=True)).exp_()
    return powers.div_(total(powers, dim).unsqueeze(dim))


def total(terms: Tensor, dim: int) -> Tensor:
    """Sum over an axis that is not the last one, one entry after the other: zeros at its end change no bit."""
    if torch.is_grad_enabled() or terms.device.type != "cpu":
        return terms.sum(dim)
    result = terms.narrow(dim, 0, 1).clone()
    if terms.shape[dim] > 1:
        result.index_add_(dim, _zeros(terms.shape[dim] - 1), terms.narrow(dim, 1, terms.shape[dim] - 1))
    return result.squeeze(dim)


@functools.cache
def _zeros(number: int) -> Tensor:
    with torch.inference_mode(mode=False):
        return torch.zeros(number, dtype=torch.int64)
