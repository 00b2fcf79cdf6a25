"""Checkpoints as the authors' code writes them: random numbers under the official names, of any size."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from open_clip.model import CLIP
from torch import Tensor

from tests.stages.model_files import TINY, TINY_CLIP_VIP, clip_vip_state

QUICK_TINY: dict[str, Any] = {**TINY, "quick_gelu": True}
"""Sizes of the image-text model of the small checkpoints: D = 24, 4 x 4 patches, 2 blocks."""

WORDS, FRAMES, LAYERS, POSITIONS = 8, 6, 2, 30
FAMILY = ("clip4clip", "xclip", "eercf", "ts2net", "ucofia")
Make = Callable[..., Tensor]


def random_tensors(seed: int) -> Make:
    """Numbers small enough for many layers; the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: 0.2 * torch.randn(*shape, generator=generator)


def on_meta(*shape: int) -> Tensor:
    """No memory."""
    return torch.empty(*shape, device="meta")


def block(make: Make, prefix: str, width: int) -> dict[str, Tensor]:
    """A transformer block of CLIP's kind."""
    shapes: dict[str, tuple[int, ...]] = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
    }
    shapes |= {f"ln_{number}.{part}": (width,) for number in (1, 2) for part in ("weight", "bias")}
    return {f"{prefix}.{name}": make(*shape) for name, shape in shapes.items()}


def temporal(make: Make, width: int, layers: int, positions: int) -> dict[str, Tensor]:
    """The temporal transformer."""
    found = {"frame_position_embeddings.weight": make(positions, width)}
    for layer in range(layers):
        found |= block(make, f"transformerClip.resblocks.{layer}", width)
    return found


def squares(make: Make, names: str, size: int) -> dict[str, Tensor]:
    """Matrices [size, size]."""
    return {name: make(size, size) for name in names.split()}


def selector(make: Make, width: int, kind: str = "A", name: str = "visual_token_selector") -> dict[str, Tensor]:
    """The score network of a token selector."""
    wide, narrow = (width, width // 2) if kind == "A" else (2 * width, width)
    prefix = f"{name}.score_predictor."
    return {
        f"{prefix}in_conv.0.weight": make(wide),
        f"{prefix}in_conv.0.bias": make(wide),
        f"{prefix}in_conv.1.weight": make(narrow, wide),
        f"{prefix}out_conv.0.weight": make(narrow, 2 * narrow),
        f"{prefix}out_conv.2.weight": make(1, narrow),
    }


def head(
    source: str, make: Make, width: int, words: int, frames: int, layers: int, positions: int, predictor: str = "A"
) -> dict[str, Tensor]:
    """Everything but the image-text model and what nothing reads."""
    found = temporal(make, width, layers, positions)
    if source == "eercf":
        return found | squares(make, "global_mat_weight", width) | squares(make, "frame_logit_weight", frames)
    if source == "xclip":
        found |= squares(make, "global_mat_weight local_mat_weight", width)
        found |= squares(make, "word_logit_weight word_mat_weight word_mat_weight2", words)
        found |= squares(make, "frame_logit_weight frame_mat_weight frame_mat_weight2", frames)
    if source == "ucofia":
        matrices = "global_mat_weight global_mat_weight_1 local_mat_weight local_mat_weight1"
        found |= squares(make, matrices, width)
        found |= squares(make, "word_mat_weight word_mat_weight2", words)
        found |= squares(make, "frame_logit_weight", frames)
        found |= squares(make, "pixel_mat_weight pixel_mat_weight2", 4 * frames)
    if source in ("ts2net", "ucofia"):
        found |= selector(make, width, predictor)
    return found


def unused(source: str, make: Make, width: int, words: int, frames: int, vision_width: int) -> dict[str, Tensor]:
    """What is in the released files and read by nothing."""
    if source == "ucofia":
        found = squares(make, "word_logit_weight word_mat_weight_for_pixel", words)
        return found | squares(make, "frame_mat_weight frame_mat_weight2", frames)
    if source == "ts2net":
        found = {
            "visual_prompt_encoder.positional_embedding": make(4, vision_width),
            "visual_prompt_encoder.conv1.weight": make(vision_width, 3, 8, 8),
            "visual_prompt_encoder.layer_norm.weight": make(vision_width),
            "visual_prompt_encoder.layer_norm.bias": make(vision_width),
        }
        text = selector(make, width, name="text_token_selector")
        return found | text | {"text_token_selector.score_predictor.in_conv.1.bias": make(width // 2)}
    return {}


def clip_part(source: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image-text model under ``clip.``; the last two visual blocks of a token shift under names of their own."""
    found = {f"clip.{name}": tensor for name, tensor in state.items()}
    if source not in ("ts2net", "ucofia"):
        return found
    blocks = 1 + max(int(match[1]) for name in state if (match := re.match(r"visual.*resblocks\.(\d+)", name)))
    shifted = tuple(f"clip.visual.transformer.resblocks.{number}.attn." for number in (blocks - 2, blocks - 1))
    return {name.replace(".attn.", ".attn.net.") if name.startswith(shifted) else name: t for name, t in found.items()}


def tiny_clip(seed: int = 3) -> dict[str, Tensor]:
    """Random numbers of QUICK_TINY by OpenAI's names."""
    torch.manual_seed(seed)
    return {name: tensor.detach().clone() for name, tensor in CLIP(**QUICK_TINY).state_dict().items()}


def tiny_checkpoint(source: str, seed: int = 3, predictor: str = "A") -> dict[str, Tensor]:
    """A small checkpoint of one of FAMILY, of clip-vip (TINY_CLIP_VIP) or of openai-clip."""
    if source == "clip-vip":
        return clip_vip_names(clip_vip_state(seed))
    if source == "openai-clip":
        sizes = {
            "input_resolution": torch.tensor(32),
            "context_length": torch.tensor(20),
            "vocab_size": torch.tensor(517),
        }
        return {**tiny_clip(seed), **sizes}
    make, width = random_tensors(seed), QUICK_TINY["embed_dim"]
    found = head(source, make, width, WORDS, FRAMES, LAYERS, POSITIONS, predictor)
    found |= unused(source, make, width, WORDS, FRAMES, QUICK_TINY["vision_cfg"]["width"])
    return {**clip_part(source, tiny_clip(seed)), **found}


def clip_vip_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names that CLIP-ViP's code gives the weights; ours are OpenAI's."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tower = "vision_model" if name.startswith("visual.") else "text_model"
        inner = name.removeprefix("visual.")
        if match := re.match(r"transformer\.resblocks\.(\d+)\.(.+)", inner):
            prefix = f"clipmodel.{tower}.encoder.layers.{match[1]}."
            if match[2].startswith("attn.in_proj_"):
                kind = match[2].removeprefix("attn.in_proj_")
                for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                    found[f"{prefix}self_attn.{letter}_proj.{kind}"] = part.clone()
                continue
            new = match[2].replace("attn.", "self_attn.").replace("ln_", "layer_norm")
            found[prefix + new.replace("c_fc", "fc1").replace("c_proj", "fc2")] = tensor
            continue
        embeddings = f"clipmodel.{tower}.embeddings."
        named = {
            "logit_scale": "clipmodel.logit_scale",
            "text_projection": "clipmodel.text_projection.weight",
            "proj": "clipmodel.visual_projection.weight",
            "positional_embedding": f"{embeddings}position_embedding.weight",
            "conv1.weight": f"{embeddings}patch_embedding.weight",
            "ln_final.weight": "clipmodel.text_model.final_layer_norm.weight",
            "ln_final.bias": "clipmodel.text_model.final_layer_norm.bias",
            "ln_pre.weight": "clipmodel.vision_model.pre_layrnorm.weight",
            "ln_pre.bias": "clipmodel.vision_model.pre_layrnorm.bias",
            "ln_post.weight": "clipmodel.vision_model.post_layernorm.weight",
            "ln_post.bias": "clipmodel.vision_model.post_layernorm.bias",
        }.get(inner, embeddings + inner)
        found[named] = tensor.T.clone() if named.endswith("_projection.weight") else tensor
    for tower, count in (("text_model", 20), ("vision_model", 17)):
        found[f"clipmodel.{tower}.embeddings.position_ids"] = torch.arange(count)[None]
    return found


CONFIGS: dict[str, dict[str, Any]] = {"clip-vip": TINY_CLIP_VIP}
"""Of the small checkpoints; QUICK_TINY where there is none."""
