"""The architecture of the CLIP that ships with the project, and the three files that it is kept in.

A folder holds ``open_clip_config.json`` (open_clip's own format, so ``local-dir:`` of open_clip loads it),
``open_clip_model.safetensors`` and ``bpe_merges.txt.gz``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.models.bpe import Pair, write_merges

if TYPE_CHECKING:
    from open_clip.model import CLIP

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
MERGES_NAME = "bpe_merges.txt.gz"

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""OpenAI's normalisation, so that the small model is preprocessed like most of the large ones."""


@dataclass(frozen=True, slots=True)
class TinySizes:
    """Sizes of both towers; the defaults are those of the shipped weights."""

    embed_dim: int = 128
    image_size: int = 48
    patch_size: int = 8
    vision_width: int = 128
    vision_layers: int = 4
    text_width: int = 128
    text_layers: int = 3
    head_width: int = 32
    context_length: int = 40


def vocabulary_size(num_merges: int) -> int:
    """256 bytes, 256 bytes that end a word, the merges, start and end of text."""
    return 512 + num_merges + 2


def model_config(sizes: TinySizes, num_merges: int) -> dict[str, Any]:
    """The contents of open_clip_config.json for a tower pair of these sizes."""
    return {
        "model_cfg": {
            "embed_dim": sizes.embed_dim,
            "vision_cfg": {
                "image_size": sizes.image_size,
                "patch_size": sizes.patch_size,
                "width": sizes.vision_width,
                "layers": sizes.vision_layers,
                "head_width": sizes.head_width,
            },
            "text_cfg": {
                "context_length": sizes.context_length,
                "vocab_size": vocabulary_size(num_merges),
                "width": sizes.text_width,
                "heads": sizes.text_width // sizes.head_width,
                "layers": sizes.text_layers,
            },
        },
        "preprocess_cfg": {
            "size": [sizes.image_size, sizes.image_size],
            "mode": "RGB",
            "mean": list(MEAN),
            "std": list(STD),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
            "fill_color": 0,
        },
    }


def new_model(sizes: TinySizes, num_merges: int) -> CLIP:
    """An untrained open_clip model; its weights depend on torch's seed."""
    from open_clip.model import CLIP

    config = model_config(sizes, num_merges)["model_cfg"]
    return CLIP(**config, output_dict=False)


def load_small(directory: Path, sizes: TinySizes) -> CLIP:
    """The open_clip model that was saved in ``directory``, ready to evaluate."""
    from safetensors.torch import load_file

    vocabulary = json.loads((directory / CONFIG_NAME).read_text("utf-8"))["model_cfg"]["text_cfg"]["vocab_size"]
    model = new_model(sizes, vocabulary - vocabulary_size(0))
    model.load_state_dict(load_file(directory / WEIGHTS_NAME))
    model.eval()
    return model


def new_tokenizer(directory: Path, context_length: int) -> Any:
    """open_clip's SimpleTokenizer with the merges of ``directory``: texts -> int64 [T, context_length]."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(bpe_path=str(directory / MERGES_NAME), context_length=context_length)


def save_tokenizer(directory: Path, sizes: TinySizes, merges: list[Pair]) -> None:
    """Write the config and the merges."""
    directory.mkdir(parents=True, exist_ok=True)
    config = json.dumps(model_config(sizes, len(merges)), indent=2) + "\n"
    (directory / CONFIG_NAME).write_text(config, encoding="utf-8")
    write_merges(directory / MERGES_NAME, merges)


def save_weights(directory: Path, weights: dict[str, Any]) -> None:
    """Write a state dict as safetensors, whole or not at all."""
    from safetensors.torch import save_file

    temporary = directory / f".{WEIGHTS_NAME}.tmp"
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in weights.items()}, temporary)
    temporary.replace(directory / WEIGHTS_NAME)
