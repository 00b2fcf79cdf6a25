"""Image-text models: a name and a weight file become one ClipModel.

    architecture.py   name -> Architecture (which towers, which preprocessing)
    weights.py        tag or path -> weight file -> tensors of one tower, with its SHA-256
    remembered.py     SHA-256 -> the weight files that had it and look the same
    torchscript.py    the tensors of a TorchScript archive, read as data
    image.py          image towers: pixels -> [CLS] and patches in the joint space
    token_shift.py    TS2-Net's token shift, for CLIP's image towers
    clip_vip.py       the image tower of CLIP-ViP, which encodes the frames of a video together
    openai_clip.py    OpenAI's tensor names: sizes of the towers from the shapes
    clip_vip_names.py CLIP-ViP's tensor names -> OpenAI's
    text.py           text towers: token ids -> sentence and words in the joint space
    text_transformer.py  CLIP's text tower itself, as open_clip has it, but without importing open_clip
    tokenizer.py      text -> token ids
    byte_pairs.py     CLIP's tokenizer itself, likewise
    bpe.py            byte-pair merges: applied, learned, written
    quick_gelu.py     the activation of OpenAI's weights
    clip.py           ClipModel: the towers together, on one device, in one precision

Importing this package imports neither torch nor open_clip.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from index_store.settings import ModelSettings
    from stages.models.clip import ClipModel

MODELS: dict[str, Path] = {"tbpipe-small": Path(__file__).parent / "small"}
"""Models that ship with tbpipe: name -> folder with open_clip_config.json, weights and merges."""

Towers = Literal["both", "image", "text"]
"""Which towers to load: extract needs the image tower only, search and rerank the text tower only."""


def load_model(
    name: str, pretrained: str = "", device: str = "auto", dtype: str = "auto", towers: Towers = "both"
) -> ClipModel:
    """The model called ``name`` with the weights ``pretrained``, ready to encode.

    name: an open_clip model, "clip-vip-B-32", "local-dir:FOLDER", "hf-hub:ORG/NAME" or a key of MODELS. pretrained: an
    open_clip tag or a .safetensors, .pt, .pth or .bin file; folders and shipped models have their own weights. device:
    "auto", "cpu", "cuda", "cuda:1" ...; dtype: "auto", "float32", "bfloat16", "float16".

    A file does not tell the activation: for weights trained with QuickGELU (OpenAI's own) name ViT-B-32-quickgelu and
    the like. With a tag the activation follows the tag, and the model's name is the name that says so. "-tokenshift" at
    the end of the name of a CLIP model: the same with TS2-Net's token shift, which sees whole videos.

    Raises UsageError for a name, tag, device or kind of tower that does not exist or does not work, InputError for a
    weight file that cannot be used, ComponentMissingError when weights or a library are not installed.
    """
    from stages.models.clip import load

    return load(name, pretrained, device, dtype, towers)


def load_text_side(pinned: ModelSettings, device: str = "auto", dtype: str = "auto") -> ClipModel:
    """The text tower of the model that a store's settings name, for queries: as ``load_model``, but sooner.

    A weight file that was hashed before is not hashed again as long as it looks the same (remembered.py), and what
    depends on images is believed. Whether the weights are the pinned ones is for the caller to check. Errors as of
    ``load_model``.
    """
    from stages.models.clip import load_text_side as load

    return load(pinned, device, dtype)


def model_names() -> list[str]:
    """Every model name with patch tokens that ``load_model`` knows, shipped ones first."""
    from stages.models.architecture import VIDEO_MODELS, built_in_names

    return [*MODELS, *VIDEO_MODELS, *built_in_names()]
