"""Models to measure: shipped ones, those of a store, or any architecture with drawn weights."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.models import MODELS, image, load_model, text
from stages.models.architecture import resolve
from stages.models.clip import ClipModel, choose_device, choose_dtype
from stages.models.weights import StateReader, WeightSource

_DRAWN = Path("drawn")
"""Stands for a weight file."""
_PATTERN = 1 << 16
"""Numbers that are drawn; larger tensors repeat them, because drawing takes longer than measuring."""
_SCALE = 0.02


def model_to_measure(name: str, device: str) -> ClipModel:
    """The model called ``name``: with its own weights if it ships with tbpipe, else with drawn ones.

    What a tower takes does not depend on its weights, so nothing is downloaded. Raises UsageError for another name.
    """
    if name in MODELS:
        return load_model(name, device=device)
    architecture = resolve(name, "", MODELS)
    digest: Future[str] = Future()
    digest.set_result("0" * 64)
    chosen = choose_device(device)
    source = WeightSource(architecture, str(_DRAWN), _DRAWN)
    model = ClipModel(source, digest, chosen, choose_dtype("auto", chosen), 100.0)
    with torch.device("meta"):
        visual, textual = image.build(architecture).module, text.build(architecture).module
    model.add_image_tower(_drawn_state("visual.", visual))
    model.add_text_tower(_drawn_state("text.", textual))
    return model


def _drawn_state(prefix: str, module: nn.Module) -> StateReader:
    """A tensor for each of a module's."""
    pattern = _SCALE * torch.randn(_PATTERN, generator=torch.Generator().manual_seed(0))
    state = {f"{prefix}{name}": _repeated(pattern, tensor) for name, tensor in module.state_dict().items()}
    return StateReader(_DRAWN, state)


def _repeated(pattern: Tensor, like: Tensor) -> Tensor:
    number = like.numel()
    repeated = pattern.repeat(-(-number // len(pattern)))[:number].view(like.shape)
    return repeated.to(like.dtype)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of the weights that every batch reads; of an embedding table it reads a few rows only."""
    return sum(
        parameter.numel() * parameter.element_size()
        for part in module.modules()
        if not isinstance(part, nn.Embedding)
        for parameter in part.parameters(recurse=False)
    )
