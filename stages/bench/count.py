"""Counts the operations of the products that some code makes, by watching torch's functions being called."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


def operations(run: Callable[[], object]) -> int:
    """Operations of the products that ``run`` makes, an addition and a multiplication being two.

    (torch's own counter does the same and loads its compiler for it, which takes seconds.)
    """
    counter = _Counter()
    with counter:
        run()
    return counter.total


class _Counter(TorchFunctionMode):
    """Adds up what each call needs by the shapes that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(getattr(func, "__name__", ""))
        if formula is not None:
            self.total += formula(args, kwargs or {}, result)
        return result


def _product(args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> int:
    return 2 * result.numel() * int(args[0].shape[-1])


def _added_product(args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> int:
    return _product(args[1:], kwargs, result)


def _convolution(args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> int:
    return 2 * result.numel() * int(args[1][0].numel())


def _einsum(args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> int:
    """Every combination of the letters once: of two tensors that is what is computed."""
    terms = args[0].partition("->")[0].replace(" ", "").split(",")
    tensors = args[1] if isinstance(args[1], Sequence) else args[1:]
    sizes = {
        letter: size
        for term, tensor in zip(terms, tensors, strict=True)
        for letter, size in zip(term, tensor.shape, strict=True)
    }
    return 2 * math.prod(map(int, sizes.values()))


def _attention(args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> int:
    """Q k^T, and the weighted sum."""
    query, key = args[:2]
    return 4 * int(query.numel()) * int(key.shape[-2])


def _multi_head_attention(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    """Query [L, B, E], key and value [S, B, E]: four matrices E x E, and attention. Inside, calls are not seen."""
    query, key = args[:2]
    length, batch, width = query.shape
    source = int(key.shape[0])
    return int(4 * batch * width * width * (length + source) + 4 * batch * length * source * width)


_FORMULAS: Mapping[str, Callable[[Sequence[Any], Mapping[str, Any], Any], int]] = {
    "linear": _product,
    "matmul": _product,
    "__matmul__": _product,
    "mm": _product,
    "bmm": _product,
    "addmm": _added_product,
    "baddbmm": _added_product,
    "conv2d": _convolution,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _multi_head_attention,
}
