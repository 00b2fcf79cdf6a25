"""The heads of the published systems as their training starts.

Matrices of weights are the identity, the temporal transformer is the first layers of CLIP's text transformer as far as
sizes fit, its positions are CLIP's text positions. Everything else: linear layers and embeddings N(0, 0.02), biases 0,
layer norms 1 and 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from index_store.errors import UsageError
from index_store.settings import StoreSettings
from stages.models.clip import ClipModel
from stages.rerankers.clip4clip import Clip4ClipHead, Clip4ClipTightHead
from stages.rerankers.eercf import EercfHead
from stages.rerankers.selection import NUM_PATCHES, PredictorA
from stages.rerankers.temporal import Transformer
from stages.rerankers.ts2net import Ts2NetHead
from stages.rerankers.ucofia import UcofiaHead
from stages.rerankers.xclip import XClipHead
from stages.training.config import TrainConfig

MAX_LOG_SCALE = math.log(100.0)
_DEVIATION = 0.02
_HEAD_WIDTH = 64
"""Channels of an attention head where CLIP's text transformer does not say otherwise."""


def untrained_head(clip: ClipModel, settings: StoreSettings, config: TrainConfig) -> tuple[Any, dict[str, int]]:
    """The head of ``config.method`` for the features of a store, and its sizes. Raises UsageError for no such form."""
    text: Any = clip.query_side()[0].module
    width, num_frames = settings.embed_dim, settings.token_shape[0]
    is_text_wide = text.token_embedding.weight.shape[1] == width
    num_heads = text.transformer.resblocks[0].attn.num_heads if is_text_wide else max(1, width // _HEAD_WIDTH)
    positions = len(text.positional_embedding)
    needed = num_frames * (1 + NUM_PATCHES if config.method == "ts2-net" else 1) + 1  # tight: and the sentence
    sizes = {
        "width": width,
        "layers": config.num_layers if config.temporal == "transformer" else 0,
        "heads": num_heads,
        "positions": max(positions, needed),
        "words": config.num_words,
        "frames": num_frames,
    }
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        head = _MAKE[config.method](sizes, config)
        _start(head)
    if is_text_wide:
        _take_over(head, text)
    head.logit_scale.data.fill_(min(math.log(clip.logit_scale), MAX_LOG_SCALE))
    return head, sizes


def _clip4clip(sizes: Mapping[str, int], config: TrainConfig) -> nn.Module:
    if config.temporal == "lstm":
        return Clip4ClipHead(sizes["width"], recurrent=True)
    return Clip4ClipHead(*_temporal(sizes))


def _tight(sizes: Mapping[str, int], config: TrainConfig) -> nn.Module:
    if not sizes["layers"]:
        raise UsageError("clip4clip-tight is a transformer; give num_layers above 0 and temporal=transformer")
    return Clip4ClipTightHead(*_temporal(sizes))


def _xclip(sizes: Mapping[str, int], config: TrainConfig) -> nn.Module:
    return XClipHead(*_temporal(sizes), num_words=sizes["words"], num_frames=sizes["frames"])


def _ts2net(sizes: Mapping[str, int], config: TrainConfig) -> nn.Module:
    return Ts2NetHead(*_temporal(sizes))


def _ucofia(sizes: Mapping[str, int], config: TrainConfig) -> nn.Module:
    predictor = PredictorA(sizes["width"])
    return UcofiaHead(*_temporal(sizes), num_words=sizes["words"], num_frames=sizes["frames"], predictor=predictor)


def _eercf(sizes: Mapping[str, int], config: TrainConfig) -> nn.Module:
    return EercfHead(*_temporal(sizes), num_frames=sizes["frames"])


_MAKE: dict[str, Callable[[Mapping[str, int], TrainConfig], Any]] = {
    "clip4clip": _clip4clip,
    "clip4clip-tight": _tight,
    "x-clip": _xclip,
    "ts2-net": _ts2net,
    "ucofia": _ucofia,
    "eercf": _eercf,
}


def _temporal(sizes: Mapping[str, int]) -> tuple[int, int, int, int]:
    """What every head takes first."""
    return sizes["width"], sizes["layers"], sizes["heads"], sizes["positions"]


def _start(head: nn.Module) -> None:
    for module in head.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=_DEVIATION)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def _take_over(head: Any, text: Any) -> None:
    """Positions and layers of the text transformer, into a head of its width."""
    for module in head.modules():
        if isinstance(module, Transformer):
            for block, layer in zip(module.resblocks, text.transformer.resblocks, strict=False):
                _copy(block, layer.state_dict())
    for name, parameter in head.named_parameters():
        if name.endswith("position_embeddings.weight"):
            known = text.positional_embedding[: len(parameter)]
            parameter.data[: len(known)] = known


def _copy(block: nn.Module, layer: Mapping[str, Tensor]) -> None:
    """A layer into a block, where all its tensors are there with these shapes."""
    wanted = block.state_dict()
    if all(name in layer and layer[name].shape == value.shape for name, value in wanted.items()):
        block.load_state_dict({name: layer[name] for name in wanted})
