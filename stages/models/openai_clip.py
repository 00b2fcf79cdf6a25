"""State dicts with the names that OpenAI's CLIP gave its tensors: what sizes they have, and whose they are.

Every system of the CLIP4Clip family keeps its image-text model under these names; open_clip reads them too. The number
of attention heads is in no tensor: a head is 64 wide in all of OpenAI's models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from index_store.errors import InputError
from stages.models.architecture import CLIP_VIP, VIDEO_MODELS, Architecture, ImagePreprocessing, resolve

HEAD_WIDTH = 64

NAMES = ("ViT-B-32-quickgelu", "ViT-B-16-quickgelu", "ViT-L-14-quickgelu", "ViT-L-14-336-quickgelu")
"""open_clip's names of OpenAI's architectures, with the activation that OpenAI's weights were trained with."""

_VISION_SIZES = (
    *("image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"),
    *("video", "num_proxies", "temporal_size"),
)
_TEXT_SIZES = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio")

SIZES_ONLY = frozenset({"input_resolution", "context_length", "vocab_size"})
"""Entries of OpenAI's own files that are no weights."""


def architecture_of(
    state: Mapping[str, Tensor],
    path: Path,
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    official: Callable[[str], str] = str,
) -> Architecture:
    """What the matrix shapes of ``state`` say; its name is open_clip's, or says the sizes where open_clip has none.

    Only shapes are looked at: the tensors may be on the meta device. Raises InputError, naming ``path`` and the key, by
    the name that ``official`` gives it.
    """

    def shape(key: str, num_axes: int) -> tuple[int, ...]:
        if key not in state:
            raise InputError(f"{path} has no tensor {official(key)}; is it the checkpoint of a CLIP with a ViT, whole?")
        found = tuple(state[key].shape)
        if len(found) != num_axes:
            raise InputError(f"{path}: tensor {official(key)} is {list(found)}, expected {num_axes} axes")
        return found

    vision_width, _, patch_size, _ = shape("visual.conv1.weight", 4)
    grid = math.isqrt(shape("visual.positional_embedding", 2)[0] - 1)
    embed_dim = shape("visual.proj", 2)[1]
    vocab_size, text_width = shape("token_embedding.weight", 2)
    vision: dict[str, Any] = {
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "width": vision_width,
        "layers": _count_blocks(state, path, "visual.transformer.resblocks.", official),
        "head_width": vision_width // vision_heads if vision_heads else HEAD_WIDTH,
        "mlp_ratio": _ratio(shape("visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0], vision_width),
    }
    text = {
        "context_length": shape("positional_embedding", 2)[0],
        "vocab_size": vocab_size,
        "width": text_width,
        "heads": text_heads or max(1, text_width // HEAD_WIDTH),
        "layers": _count_blocks(state, path, "transformer.resblocks.", official),
        "mlp_ratio": _ratio(shape("transformer.resblocks.0.mlp.c_fc.weight", 2)[0], text_width),
    }
    if "visual.temporal_embedding" in state:
        vision["video"] = CLIP_VIP
        vision["num_proxies"] = 1 + shape("visual.added_cls", 2)[0]
        vision["temporal_size"] = shape("visual.temporal_embedding", 3)[1]
    name = f"{vision['layers']}x{vision_width} patches of {patch_size}, {text['layers']}x{text_width}"
    found = Architecture(name, embed_dim, vision, text, quick_gelu=True, preprocessing=ImagePreprocessing())
    return next((known for known in map(_known, (*NAMES, *VIDEO_MODELS)) if same_sizes(known, found)), found)


def same_sizes(one: Architecture, other: Architecture) -> bool:
    """Whether weights of one fit the other: equal towers, whatever the names."""

    def sizes(architecture: Architecture) -> tuple[object, ...]:
        defaults = {"mlp_ratio": 4.0, "head_width": HEAD_WIDTH, "context_length": 77, "vocab_size": 49408, "heads": 8}
        vision, text = defaults | dict(architecture.vision), defaults | dict(architecture.text)
        return (
            architecture.embed_dim,
            *(vision.get(key) for key in _VISION_SIZES),
            *(text.get(key) for key in _TEXT_SIZES),
        )

    return sizes(one) == sizes(other)


def _ratio(whole: int, part: int) -> float:
    """The number that ``part`` is multiplied with to give ``whole``, rounded down as the towers do."""
    ratio = whole / part
    return ratio if int(part * ratio) == whole else math.nextafter(ratio, math.inf)


def _known(name: str) -> Architecture:
    return resolve(name, "", {})


def _count_blocks(state: Mapping[str, Tensor], path: Path, prefix: str, official: Callable[[str], str]) -> int:
    numbers = {key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)}
    for number in range(max(1, len(numbers))):
        if str(number) not in numbers:
            raise InputError(f"{path} has no tensor {official(f'{prefix}{number}.ln_1.weight')}; is it whole?")
    return len(numbers)
