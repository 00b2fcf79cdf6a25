"""Model name -> Architecture: which towers a model has and how its images are prepared.

Names come from open_clip's own configurations, from a folder in open_clip's layout, or from a Hugging Face repository
in that layout. Configuration files are read as data: a wrong name is told without importing open_clip (4 s).
"""

from __future__ import annotations

import difflib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from index_store.errors import ComponentMissingError, InputError, UsageError

FOLDER_NAME = "local-dir"
FOLDER_PREFIX = "local-dir:"
HUB_PREFIX = "hf-hub:"
CONFIG_FILE = "open_clip_config.json"
QUICK_GELU_SUFFIX = "-quickgelu"

CLIP_VIP = "clip-vip"
"""Value of ``video`` in the vision configuration of an image tower that is CLIP-ViP's."""
_CLIP_VIP_TOWER = {"video": CLIP_VIP, "num_proxies": 4, "temporal_size": 12}
VIDEO_MODELS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "clip-vip-B-32": ("ViT-B-32-quickgelu", _CLIP_VIP_TOWER),
    "clip-vip-B-16": ("ViT-B-16-quickgelu", _CLIP_VIP_TOWER),
}
"""Models that encode the frames of a video together: name -> open_clip model of the same sizes, what else there is."""

WORKING_KINDS = "ViT, EVA, PE-Core, SigLIP, MobileCLIP, ViTamin and Swin models work"
CONVOLUTION_ONLY = ("convnext", "resnet")
"""Prefixes of timm names of towers that have no tokens."""


@dataclass(frozen=True, slots=True)
class ImagePreprocessing:
    """How a frame becomes the model's input."""

    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"

    def updated(self, values: Mapping[str, Any]) -> ImagePreprocessing:
        """This preprocessing with the fields that ``values`` gives (open_clip's names) replaced."""
        known = {key: values[key] for key in ("interpolation", "resize_mode") if values.get(key)}
        for key in ("mean", "std"):
            if values.get(key) is not None:
                known[key] = _three(values[key])
        return replace(self, **known)


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a model is made of, apart from its weights. The tower settings are open_clip's own keywords."""

    name: str
    embed_dim: int
    """D, width of the joint space."""
    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    quick_gelu: bool
    preprocessing: ImagePreprocessing
    token_shift: bool = False
    """Whether the image tower sees whole videos, its last blocks with TS2-Net's token shift."""
    folder: Path | None = None
    """Where configuration, weights and tokenizer files lie together; None for a built-in configuration."""

    @property
    def video_kind(self) -> str:
        """How the frames of a video are encoded together; empty where each is encoded by itself."""
        return str(self.vision.get("video", ""))

    @property
    def image_size(self) -> int:
        """S, side of the square input in pixels."""
        size = self.vision.get("image_size", 224)
        height, width = (size, size) if isinstance(size, int) else size
        if height != width:
            raise UsageError(f"model {self.name} takes {height}x{width} images; only square input is supported")
        return int(height)


def resolve(name: str, pretrained: str, shipped: Mapping[str, Path]) -> Architecture:
    """The architecture called ``name``; "local-dir" alone takes ``pretrained`` for the folder, or for a file in it.

    Raises UsageError (with the nearest names), InputError or ComponentMissingError.
    """
    if name in shipped:
        return from_folder(name, shipped[name])
    if name.startswith(FOLDER_PREFIX) or (name == FOLDER_NAME and pretrained):
        folder = Path(name.removeprefix(FOLDER_PREFIX) if name != FOLDER_NAME else pretrained).expanduser().resolve()
        return from_folder(FOLDER_NAME, folder.parent if folder.is_file() else folder)
    if name.startswith(HUB_PREFIX):
        return _from_hub(name)
    if name in VIDEO_MODELS:
        return _video_model(name, *VIDEO_MODELS[name])
    file = _built_in_files().get(name.replace("/", "-"))
    if file is None:
        raise UsageError(_unknown_name(name, [*shipped, *VIDEO_MODELS, *built_in_names()]))
    return _architecture(file.stem, _read_json(file), ImagePreprocessing(), None)


def built_in_names() -> list[str]:
    """open_clip's model names, those without tokens left out."""
    return sorted(name for name, file in _built_in_files().items() if not _has_no_tokens(_read_json(file)))


def from_folder(name: str, folder: Path) -> Architecture:
    """The architecture that ``folder``'s open_clip_config.json describes. Raises InputError."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise InputError(f"no {CONFIG_FILE} in {folder}; expected a model folder in open_clip's layout")
    config = _read_json(file)
    if "model_cfg" not in config:
        raise InputError(f"{file} has no 'model_cfg'; expected a model folder in open_clip's layout")
    preprocessing = ImagePreprocessing().updated(config.get("preprocess_cfg") or {})
    return _architecture(name, config["model_cfg"], preprocessing, folder)


def with_quick_gelu(architecture: Architecture, quick_gelu: bool) -> Architecture:
    """The same towers with the activation their weights were trained with.

    The name says so too: two models that differ in nothing but the activation must not have one fingerprint.
    """
    if architecture.quick_gelu == quick_gelu:
        return architecture
    stem = architecture.name.removesuffix(QUICK_GELU_SUFFIX)
    return replace(architecture, name=stem + QUICK_GELU_SUFFIX if quick_gelu else stem, quick_gelu=quick_gelu)


def _architecture(
    name: str, config: Mapping[str, Any], preprocessing: ImagePreprocessing, folder: Path | None
) -> Architecture:
    if _has_no_tokens(config):
        raise UsageError(f"model {name} has a convolutional image tower without patch tokens; {WORKING_KINDS}")
    try:
        return Architecture(
            name=name,
            embed_dim=int(config["embed_dim"]),
            vision=config["vision_cfg"],
            text=config["text_cfg"],
            quick_gelu=bool(config.get("quick_gelu", False)),
            preprocessing=preprocessing,
            folder=folder,
        )
    except KeyError as error:
        raise InputError(f"the configuration of model {name} has no {error.args[0]!r}") from error


def _video_model(name: str, base: str, tower: Mapping[str, Any]) -> Architecture:
    """CLIP-ViP's frames go straight to a square: their sides are not kept in proportion."""
    architecture = resolve(base, "", {})
    preprocessing = replace(architecture.preprocessing, resize_mode="squash")
    return replace(architecture, name=name, vision={**architecture.vision, **tower}, preprocessing=preprocessing)


def _from_hub(name: str) -> Architecture:
    from stages.models.weights import download_from_hub

    return from_folder(name, download_from_hub(name.removeprefix(HUB_PREFIX), [CONFIG_FILE], name).parent)


def _has_no_tokens(config: Mapping[str, Any]) -> bool:
    vision = config.get("vision_cfg", {})
    timm_name = vision.get("timm_model_name") or ""
    return isinstance(vision.get("layers"), list) or timm_name.startswith(CONVOLUTION_ONLY)


def open_clip_folder() -> Path:
    """Where open_clip is installed, with its configurations and merges. Raises ComponentMissingError."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise ComponentMissingError("open_clip is not installed; run: pip install open_clip_torch")
    return Path(spec.origin).parent


def _built_in_files() -> dict[str, Path]:
    return {file.stem: file for file in (open_clip_folder() / "model_configs").glob("*.json")}


def _unknown_name(name: str, names: list[str]) -> str:
    by_lower = {known.lower(): known for known in names}
    nearest = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=4, cutoff=0.5)]
    hint = f"did you mean {', '.join(nearest)}?" if nearest else "open_clip's names work, such as ViT-B-32"
    return f"no model is called {name!r}; {hint}"


def _three(value: Any) -> tuple[float, float, float]:
    values = [float(item) for item in value] if isinstance(value, list | tuple) else [float(value)] * 3
    return values[0], values[1], values[2]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds a {type(content).__name__}, expected an object")
    return content
