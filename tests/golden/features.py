"""The inputs that several files share, as our code takes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.rerankers.base import QueryBatch
from tests.golden.check import Arrays


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Texts and videos; where gradients are wanted, the leaves that get them."""

    queries: QueryBatch
    tokens: Tensor
    """float32 [V, F, P, D]; P = 1 where the file has no patches."""
    frame_mask: Tensor
    leaves: dict[str, Tensor]
    """text [T, D], words, frames and patches as they lie in the file."""

    def gradients(self) -> dict[str, Tensor]:
        """Of the leaves that took part, with the axis of size 1 that the files give texts."""
        found = {name: leaf.grad for name, leaf in self.leaves.items() if leaf.grad is not None}
        return found | {"text": found["text"].unsqueeze(1)}


def features(arrays: Arrays, prefix: str, requires_grad: bool = False) -> Features:
    """Those below ``prefix.``."""
    names = [name for name in ("text", "words", "frames", "patches") if f"{prefix}.{name}" in arrays]
    leaves = {name: tensor(arrays, f"{prefix}.{name}").requires_grad_(requires_grad) for name in names}
    mask = tensor(arrays, f"{prefix}.word_mask") > 0
    words = leaves.get("words", torch.zeros(*mask.shape, leaves["text"].shape[-1]))
    tokens = leaves["frames"].unsqueeze(2)
    if "patches" in leaves:
        tokens = torch.cat([tokens, leaves["patches"]], 2)
    frame_mask = tensor(arrays, f"{prefix}.frame_mask") > 0
    return Features(QueryBatch(leaves["text"], words, mask), tokens, frame_mask, leaves)


def tensor(arrays: Arrays, name: str) -> Tensor:
    """One array, float32 wherever it is a float."""
    value = torch.from_numpy(arrays[name])
    return value.float() if value.is_floating_point() else value


def head_state(arrays: Arrays, prefix: str = "w") -> dict[str, Tensor]:
    """The weights below ``prefix.`` by official name, ``clip.`` taken away."""
    names = [name for name in arrays if name.startswith(f"{prefix}.")]
    return {name.removeprefix(f"{prefix}.").removeprefix("clip."): tensor(arrays, name) for name in names}
