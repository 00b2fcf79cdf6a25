"""GELU as OpenAI's CLIP has it; what comes of its weights has it too."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def quick_gelu(x: Tensor) -> Tensor:
    """Of x: x sigmoid(1.702 x).

    Without gradients in one new tensor: with three, of 20 MB each for 32 frames, the allocator gives memory back and
    takes it anew in every block, and ViT-B/32 took 105 ms a frame in place of 84.
    """
    if torch.is_grad_enabled():
        return x * torch.sigmoid(1.702 * x)
    return torch.mul(x, 1.702).sigmoid_().mul_(x)


class QuickGelu(nn.Module):
    """The same as a layer."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Any shape."""
        return quick_gelu(hidden)
