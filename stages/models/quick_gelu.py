"""GELU as OpenAI's CLIP has it; what comes of its weights has it too."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def quick_gelu(x: Tensor) -> Tensor:
    """Of x: x sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


class QuickGelu(nn.Module):
    """The same as a layer."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Any shape."""
        return quick_gelu(hidden)
