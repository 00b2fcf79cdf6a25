"""Similarities weighted by themselves, with a learned square matrix on the weights: A of X-CLIP, UCoFiA and EERCF."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.rerankers.fixed_shape import linear, softmax, total

TEMPERATURE = 0.01


def identity(size: int) -> nn.Parameter | None:
    """A matrix of weights [size, size] as training starts with it; none for size 0, where it stays the identity."""
    return nn.Parameter(torch.eye(size)) if size else None


def fitted(matrix: Tensor, size: int) -> Tensor:
    """The matrix [N, N] for ``size`` positions: cut, or gone on with as it started, as the identity."""
    if size <= len(matrix):
        return matrix[:size, :size]
    whole = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    whole[: len(matrix), : len(matrix)] = matrix
    return whole


def aggregate(
    x: Tensor,
    mask: Tensor | None = None,
    matrix: Tensor | None = None,
    dim: int = -1,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """A(x; M) = sum_j (softmax(x / 0.01) M)_j x_j over the axis ``dim`` of float32 x, which is gone in the result.

    Where mask (bool, broadcast with x) is False an entry takes no part; it may be anything finite. No mask: all do.
    matrix float32 [N, N] for at most or at least the positions there are; none: the identity.
    """
    logits = x if temperature == 1.0 else x / temperature
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    is_last = dim in (-1, x.ndim - 1)
    if matrix is None and not is_last and not torch.is_grad_enabled():
        powers = (logits - logits.amax(dim, keepdim=True)).exp_()
        norm = total(powers, dim)
        return total(powers.mul_(x), dim).div_(norm)
    weights = logits.softmax(-1) if is_last else softmax(logits, dim)
    if matrix is not None:
        weights = linear(weights.movedim(dim, -1), fitted(matrix, x.shape[dim]).T).movedim(-1, dim)
        if mask is not None:
            x = x.masked_fill(~mask, 0.0)
    return (weights * x).sum(-1) if is_last else total(weights * x, dim)
