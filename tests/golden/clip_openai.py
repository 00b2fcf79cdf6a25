"""OpenAI's CLIP towers with all their tokens, from the official names of the tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from stages.models import image, text
from stages.models.openai_clip import architecture_of
from stages.models.weights import StateReader, fill
from tests.golden.check import FEATURES, LOGITS, Arrays, Tolerance


@torch.inference_mode()
def outputs(arrays: Arrays) -> dict[str, Any]:
    """Tokens of both towers, and the logits."""
    path = Path("clip_openai.npz")
    state = {name[2:]: torch.from_numpy(array).float() for name, array in arrays.items() if name.startswith("w.")}
    architecture = architecture_of(
        state, path, vision_heads=int(arrays["cfg.vision_heads"]), text_heads=int(arrays["cfg.text_heads"])
    )
    reader = StateReader(path, state)
    image_tower, text_tower = image.build(architecture), text.build(architecture)
    for tower, prefix in ((image_tower, "visual."), (text_tower, "text.")):
        fill(tower.module, reader.tower(prefix), prefix, path)
        tower.module.eval()
    tokens = image_tower.tokens(torch.from_numpy(arrays["in.pixel_values"]).float())
    sentence, words = text_tower.features(torch.from_numpy(arrays["in.input_ids"]))
    scale = torch.tensor(reader.scalar("logit_scale", 0.0)).exp()
    return {
        "out.image_pooled": tokens[:, 0],
        "out.image_hidden": tokens,
        "out.text_pooled": sentence,
        "out.text_hidden": words,
        "out.logits_per_image": scale * normalize(tokens[:, 0], dim=-1) @ normalize(sentence, dim=-1).T,
    }


def tolerance_of(name: str) -> Tolerance | None:
    """That of the kind of number."""
    return LOGITS if "logits" in name else FEATURES
