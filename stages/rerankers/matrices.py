"""Similarities weighted by themselves, with a learned square matrix on the weights: A of X-CLIP, UCoFiA and EERCF."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.rerankers.fixed_shape import linear, mixed, total

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


def aggregate(x: Tensor, mask: Tensor | None = None, matrix: Tensor | None = None) -> Tensor:
    """A(x; M) = sum_j (softmax(x / 0.01) M)_j x_j over the last axis of float32 x, which is gone in the result.

    Where mask (bool, broadcast with x) is False an entry takes no part; it may be anything finite. No mask: all do.
    matrix float32 [N, N] for at most or at least the positions there are; none: the identity.
    """
    logits = x / TEMPERATURE
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    weights = logits.softmax(-1)
    if matrix is not None:
        weights = linear(weights, fitted(matrix, x.shape[-1]).T)
        if mask is not None:
            x = x.masked_fill(~mask, 0.0)
    return (weights * x).sum(-1)


def aggregate_over(dim: int, x: Tensor, mask: Tensor | None = None, matrix: Tensor | None = None) -> Tensor:
    """``aggregate`` of x / 0.01, and divided by 0.01, over the axis ``dim`` >= 1, which is not the last.

    The matrix is applied to x in place of the weights, which comes to the same: sum_j (s M)_j x_j = sum_i s_i (M x)_i.
    """
    logits = x if mask is None else x.masked_fill(~mask, -torch.inf)
    powers = (logits - logits.amax(dim, keepdim=True)).exp_()
    if matrix is not None:
        x = x if mask is None else x.masked_fill(~mask, 0.0)
        x = mixed(fitted(matrix, x.shape[dim]), x, dim)
    norm = total(powers, dim)
    return total(powers * x if powers.requires_grad else powers.mul_(x), dim) / norm
