"""CLIP-ViP: its image tower layer by layer, its text tower, and the features of both, from the official names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stages.models import image, text
from stages.models.clip_vip import ClipVipTower
from stages.models.clip_vip_names import openai_names
from stages.models.openai_clip import architecture_of
from stages.models.weights import StateReader, fill
from stages.training.losses import contrastive
from tests.golden.check import FEATURES, LOGITS, Arrays, Tolerance


@torch.inference_mode()
def outputs(arrays: Arrays) -> dict[str, Any]:
    """Everything but the authors' loss over a batch, which tests/golden/losses.py has."""
    path = Path("clipvip.npz")
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items() if name.startswith(("w.", "in."))}
    state = openai_names({name[2:]: one.float() for name, one in tensors.items() if name.startswith("w.")}, path)
    architecture = architecture_of(
        state, path, vision_heads=int(arrays["cfg.vis_heads"]), text_heads=int(arrays["cfg.text_heads"])
    )
    reader = StateReader(path, state)
    tower, text_tower = image.build(architecture), text.build(architecture)
    assert isinstance(tower, ClipVipTower)
    for module, prefix in ((tower.module, "visual."), (text_tower.module, "text.")):
        fill(module, reader.tower(prefix), prefix, path)
        module.eval()

    def embed(name: str) -> Tensor:
        return tower.video_tokens(tensors[name].float())[:, 0, 0]

    video = tensors["in.video"].float()
    hidden = list(tower.module.hidden_states(video))
    found: dict[str, Tensor] = {f"out.vision_hidden_{layer}": state for layer, state in enumerate(hidden)}
    found["out.vision_last_hidden"] = tower.module(video)
    found["out.vision_embeddings_before_preln"] = tower.module.embed(video)
    found["out.vision_pooled_postln"] = tower.module.ln_post(hidden[-1][:, 0])
    found["out.video_embed_unnormalised"] = embed("in.video")
    for suffix, name in {"": "video", "_other_length": "video_other_length", "_single_image": "image"}.items():
        found[f"out.video_embed{suffix}"] = normalize(embed(f"in.{name}"), dim=-1)
    found["out.vidclip_vis_features"] = found["out.video_embed"]

    ids = tensors["in.input_ids"]
    found["out.text_last_hidden"] = text_tower.hidden(ids, tensors["in.attention_mask"] > 0)
    found["out.text_pooled"] = found["out.text_last_hidden"][torch.arange(len(ids)), ids.argmax(dim=1)]
    sentence, _ = text_tower.features(ids)
    found["out.text_embed_unnormalised"] = sentence
    for name in ("text_embed", "text_embed_nomask", "vidclip_text_features"):
        found[f"out.{name}"] = normalize(sentence, dim=-1)
    zero_padded, _ = text_tower.features(tensors["in.input_ids_zero_padded"])
    found["out.text_embed_zero_padded"] = normalize(zero_padded, dim=-1)

    scale = torch.tensor(reader.scalar("logit_scale", 0.0)).exp()
    logits = scale * found["out.text_embed"] @ found["out.video_embed"].T
    found["out.logits_per_text"] = logits
    found["out.clip_loss"] = contrastive(logits)
    return found


def tolerance_of(name: str) -> Tolerance | None:
    """That of the kind of number."""
    return LOGITS if "logits" in name else FEATURES
