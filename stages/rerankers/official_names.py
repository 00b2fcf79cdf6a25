"""What the released checkpoints of the CLIP4Clip family hold beside their image-text model: names and shapes.

A shape is written in letters: D width of the joint space, W words, F frames, N positions; see ``_sizes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from index_store.errors import InputError

Shape = tuple[str, ...]

_BLOCK: dict[str, Shape] = {
    "attn.in_proj_weight": ("3D", "D"),
    "attn.in_proj_bias": ("3D",),
    "attn.out_proj.weight": ("D", "D"),
    "attn.out_proj.bias": ("D",),
    "ln_1.weight": ("D",),
    "ln_1.bias": ("D",),
    "ln_2.weight": ("D",),
    "ln_2.bias": ("D",),
    "mlp.c_fc.weight": ("4D", "D"),
    "mlp.c_fc.bias": ("4D",),
    "mlp.c_proj.weight": ("D", "4D"),
    "mlp.c_proj.bias": ("D",),
}
_POSITIONS = "frame_position_embeddings.weight"
_BLOCKS = "transformerClip.resblocks."
_CROSS = "cross."
_CROSS_BLOCKS = "cross.transformer.resblocks."
_SELECTOR = "visual_token_selector.score_predictor."

_XCLIP: dict[str, Shape] = {
    "global_mat_weight": ("D", "D"),
    "local_mat_weight": ("D", "D"),
    "word_logit_weight": ("W", "W"),
    "word_mat_weight": ("W", "W"),
    "word_mat_weight2": ("W", "W"),
    "frame_logit_weight": ("F", "F"),
    "frame_mat_weight": ("F", "F"),
    "frame_mat_weight2": ("F", "F"),
}
_EERCF: dict[str, Shape] = {"global_mat_weight": ("D", "D"), "frame_logit_weight": ("F", "F")}
_UCOFIA: dict[str, Shape] = {
    "global_mat_weight": ("D", "D"),
    "global_mat_weight_1": ("D", "D"),
    "local_mat_weight": ("D", "D"),
    "local_mat_weight1": ("D", "D"),
    "word_mat_weight": ("W", "W"),
    "word_mat_weight2": ("W", "W"),
    "frame_logit_weight": ("F", "F"),
    "pixel_mat_weight": ("4F", "4F"),
    "pixel_mat_weight2": ("4F", "4F"),
}
_LSTM: dict[str, Shape] = {
    "lstm_visual.weight_ih_l0": ("4D", "D"),
    "lstm_visual.weight_hh_l0": ("4D", "D"),
    "lstm_visual.bias_ih_l0": ("4D",),
    "lstm_visual.bias_hh_l0": ("4D",),
}
_TIGHT: dict[str, Shape] = {
    "cross.embeddings.position_embeddings.weight": ("N", "D"),
    "cross.pooler.ln_pool.weight": ("D",),
    "cross.pooler.ln_pool.bias": ("D",),
    "cross.pooler.dense.weight": ("D", "D"),
    "cross.pooler.dense.bias": ("D",),
    "similarity_dense.weight": ("1", "D"),
    "similarity_dense.bias": ("1",),
}
_PREDICTOR_A: dict[str, Shape] = {
    "in_conv.0.weight": ("D",),
    "in_conv.0.bias": ("D",),
    "in_conv.1.weight": ("D/2", "D"),
    "out_conv.0.weight": ("D/2", "D"),
    "out_conv.2.weight": ("1", "D/2"),
}
_PREDICTOR_B: dict[str, Shape] = {
    "in_conv.0.weight": ("2D",),
    "in_conv.0.bias": ("2D",),
    "in_conv.1.weight": ("D", "2D"),
    "out_conv.0.weight": ("D", "2D"),
    "out_conv.2.weight": ("1", "D"),
}


@dataclass(frozen=True, slots=True)
class System:
    """One published system whose checkpoints can be told from those of the others."""

    title: str
    tensors: Mapping[str, Shape]
    """What its head has beside the temporal transformer."""
    unused: tuple[str, ...] = ()
    """Beginnings of the names of what its checkpoints have and nothing reads."""
    shifts_tokens: bool = False
    """Whether its image tower has TS2-Net's token shift, and its checkpoints the marks of that."""


SYSTEMS: dict[str, System] = {
    "clip4clip": System("CLIP4Clip", {}),
    "xclip": System("X-CLIP", _XCLIP),
    "eercf": System("EERCF", _EERCF),
    "ts2net": System("TS2-Net", {}, unused=("visual_prompt_encoder.", "text_token_selector."), shifts_tokens=True),
    "ucofia": System(
        "UCoFiA",
        _UCOFIA,
        unused=("word_logit_weight", "frame_mat_weight", "word_mat_weight_for_pixel"),
        shifts_tokens=True,
    ),
}
"""What ``--from`` takes -> the system."""


@dataclass(frozen=True, slots=True)
class OfficialHead:
    """What is to be found in a checkpoint."""

    method: str
    """The reranker that reads it."""
    shapes: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]
    unused: tuple[str, ...]


def recognise(state: Mapping[str, Tensor]) -> str:
    """Which source the names in a checkpoint belong to; empty for none that is known."""
    if any(key.startswith("clipmodel.") for key in state):
        return "clip-vip"
    if "visual.proj" in state:
        return "openai-clip"
    if not any(key.startswith("clip.") for key in state):
        return ""
    if "pixel_mat_weight" in state:
        return "ucofia"
    if any(key.startswith(_SELECTOR) for key in state):
        return "ts2net"
    if "word_mat_weight" in state or "word_logit_weight" in state:
        return "xclip"
    return "eercf" if "frame_logit_weight" in state else "clip4clip"


def official_head(source: str, state: Mapping[str, Tensor], width: int, path: Path) -> OfficialHead:
    """What the head in ``state`` (everything but ``clip.``) must hold, for a joint space of this width.

    W, F, the number of layers and the kind of token selector are read from the tensors. Raises InputError where these
    are not there to be read.
    """
    system = SYSTEMS[source]
    method, tensors, unused = _calculator(source, system, state)
    sizes = {"D": width}
    for letter, name in (("W", "word_mat_weight"), ("F", "frame_logit_weight"), ("N", _positions(tensors))):
        if name in tensors:
            sizes[letter] = len(_tensor(state, name, path))
    predictor = ""
    if system.shifts_tokens:
        predictor = _predictor(source, state, width, path)
        tensors |= {
            _SELECTOR + name: shape for name, shape in {"A": _PREDICTOR_A, "B": _PREDICTOR_B}[predictor].items()
        }
    numbers = _sizes(sizes)
    shapes = {name: tuple(numbers[letter] for letter in shape) for name, shape in tensors.items()}
    named = {"width": "D", "words": "W", "frames": "F", "positions": "N"}
    known = {name: sizes[letter] for name, letter in named.items() if letter in sizes}
    known["layers"] = sum(name.endswith("ln_1.weight") for name in shapes)
    if predictor:
        known["predictor_width"] = shapes[f"{_SELECTOR}in_conv.1.weight"][0]
    return OfficialHead(method, shapes, known, unused)


def _calculator(
    source: str, system: System, state: Mapping[str, Tensor]
) -> tuple[str, dict[str, Shape], tuple[str, ...]]:
    """The method, its tensors and what is unused; CLIP4Clip's four kinds are told apart by their names."""
    methods = {"xclip": "x-clip", "ts2net": "ts2-net"}
    method = methods.get(source, source)
    if source != "clip4clip":
        return method, {**system.tensors, **_temporal(state)}, system.unused
    if any(name.startswith(_CROSS) for name in state):
        return "clip4clip-tight", {**_TIGHT, **_blocks(state, _CROSS_BLOCKS)}, (_POSITIONS,)
    if any(name.startswith("lstm_visual.") for name in state):
        return method, dict(_LSTM), (_POSITIONS,)
    if any(name.startswith(_BLOCKS) for name in state):
        return method, _temporal(state), ()
    return method, {}, (_POSITIONS,)


def _temporal(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {_POSITIONS: ("N", "D"), **_blocks(state, _BLOCKS)}


def _blocks(state: Mapping[str, Tensor], prefix: str) -> dict[str, Shape]:
    """The blocks 0 .. the last one that is there, at least one."""
    numbers = [int(number) for key in state if (number := key.removeprefix(prefix).split(".")[0]).isdecimal()]
    return {
        f"{prefix}{layer}.{name}": shape
        for layer in range(max(numbers, default=0) + 1)
        for name, shape in _BLOCK.items()
    }


def _positions(tensors: Mapping[str, Shape]) -> str:
    return next((name for name, shape in tensors.items() if shape == ("N", "D")), "")


def _predictor(source: str, state: Mapping[str, Tensor], width: int, path: Path) -> str:
    """A or B, by shape. TS2-Net has A only."""
    name = f"{_SELECTOR}in_conv.1.weight"
    shape = tuple(_tensor(state, name, path).shape)
    kinds = {"A": (width // 2, width), "B": (width, 2 * width)}
    if source == "ts2net":
        del kinds["B"]
    for kind, expected in kinds.items():
        if shape == expected:
            return kind
    known = " or ".join(str(list(expected)) for expected in kinds.values())
    raise InputError(f"{path}: tensor {name} is {list(shape)}, expected {known}")


def _tensor(state: Mapping[str, Tensor], name: str, path: Path) -> Tensor:
    if name not in state or state[name].ndim == 0:
        raise InputError(f"{path} has no tensor {name}; is the checkpoint whole?")
    return state[name]


def _sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """The letters and their multiples that shapes are written in."""
    width = sizes["D"]
    frames = sizes.get("F", 0)
    return {**sizes, "1": 1, "2D": 2 * width, "3D": 3 * width, "4D": 4 * width, "D/2": width // 2, "4F": 4 * frames}
