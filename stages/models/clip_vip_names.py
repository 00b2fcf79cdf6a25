"""The names of CLIP-ViP's released checkpoints (Hugging Face's CLIP with a prefix) -> OpenAI's, which we keep."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from index_store.errors import InputError

PREFIX = "clipmodel."

_TOWERS = {"text_model.": "", "vision_model.": "visual."}
_NAMES = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.class_embedding": "class_embedding",
    "embeddings.added_cls": "added_cls",
    "embeddings.temporal_embedding": "temporal_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
}
_NORMS = {
    "text_model.final_layer_norm.": "ln_final.",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",  # sic
    "vision_model.post_layernorm.": "visual.ln_post.",
}
_PARTS = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_PROJECTIONS = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
_LAYER = re.compile(r"(text_model\.|vision_model\.)encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)")
_MIXED = "{q,k,v}"
_QUERY_KEY_VALUE = re.compile(r"self_attn\.([qkv])_proj")


def openai_names(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The same weights by OpenAI's names: q, k and v in one matrix, projections that multiply from the right.

    Raises InputError, naming ``path`` and the key, for a tensor that CLIP-ViP does not have or lacks.
    """
    found: dict[str, Tensor] = {}
    mixed: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        name = key.removeprefix(PREFIX)
        if name.endswith("position_ids"):
            continue
        layer = _LAYER.fullmatch(name)
        if layer and (part := _QUERY_KEY_VALUE.fullmatch(layer[3])):
            block = f"{_TOWERS[layer[1]]}transformer.resblocks.{layer[2]}.attn.in_proj_{layer[4]}"
            mixed.setdefault(block, {})[part[1]] = tensor
        elif name in _PROJECTIONS:
            found[_PROJECTIONS[name]] = tensor.T
        else:
            found[_plain(name, layer, key, path)] = tensor
    for name, parts in mixed.items():
        theirs = official_name(name)
        for letter in "qkv":
            if letter not in parts:
                raise InputError(f"{path} has no tensor {theirs.replace(_MIXED, letter)}; the checkpoint is not whole")
            if parts[letter].shape != parts["q"].shape:
                shapes = f"{list(parts[letter].shape)}, expected {list(parts['q'].shape)} as of q_proj"
                raise InputError(f"{path}: tensor {theirs.replace(_MIXED, letter)} is {shapes}")
        found[name] = torch.cat([parts[letter] for letter in "qkv"])
    return found


def official_name(name: str) -> str:
    """The checkpoint's name of what we call ``name``; q, k and v stand together."""
    for theirs, ours in {**_PROJECTIONS, "logit_scale": "logit_scale"}.items():
        if name == ours:
            return PREFIX + theirs
    for theirs, ours in _NORMS.items():
        if name.startswith(ours):
            return PREFIX + theirs + name.removeprefix(ours)
    tower = "vision_model." if name.startswith("visual.") else "text_model."
    inner = name.removeprefix("visual.")
    for theirs, ours in _NAMES.items():
        if inner == ours:
            return PREFIX + tower + theirs
    block = _BLOCK.fullmatch(inner)
    if block is None:
        return name
    parts = {**{ours: theirs for theirs, ours in _PARTS.items()}, "attn.in_proj": f"self_attn.{_MIXED}_proj"}
    return f"{PREFIX}{tower}encoder.layers.{block[1]}.{parts.get(block[2], block[2])}.{block[3]}"


def _plain(name: str, layer: re.Match[str] | None, key: str, path: Path) -> str:
    """OpenAI's name of a tensor that keeps its shape."""
    if name == "logit_scale":
        return name
    if layer and layer[3] in _PARTS:
        return f"{_TOWERS[layer[1]]}transformer.resblocks.{layer[2]}.{_PARTS[layer[3]]}.{layer[4]}"
    for theirs, ours in _NORMS.items():
        if name in (f"{theirs}weight", f"{theirs}bias"):
            return ours + name.removeprefix(theirs)
    for theirs, ours in _TOWERS.items():
        if name.removeprefix(theirs) in _NAMES and name.startswith(theirs):
            return ours + _NAMES[name.removeprefix(theirs)]
    raise InputError(f"{path} has a tensor {key}, which CLIP-ViP does not; are these the weights of another model?")
