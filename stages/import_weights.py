"""A released checkpoint -> the image-text model for ``extract`` and the head for ``rerank``, each a file of its own.

Names are mapped and every shape is checked: a tensor that is missing, of another shape or not known is an error that
names it. The authors' own loaders skip such tensors, or fill them from elsewhere (UCoFiA's takes CLIP's weights for
the two visual blocks that it stores under other names); nothing of the kind happens here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from index_store.errors import InputError, UsageError
from stages.models import MODELS, clip_vip_names, image, text
from stages.models.architecture import VIDEO_MODELS, Architecture, resolve
from stages.models.openai_clip import NAMES, SIZES_ONLY, architecture_of
from stages.models.token_shift import NUM_BLOCKS, SUFFIX
from stages.models.weights import find_weights, read_checkpoint, write_weights
from stages.rerankers.head_weights import HeadWeights
from stages.rerankers.official_names import SYSTEMS, OfficialHead, System, official_head, recognise
from stages.rerankers.token_binder import ANY_TOKENS, FeatureKind

SOURCES = (*SYSTEMS, "clip-vip", "openai-clip")
"""What ``--from`` takes."""

_TITLES = {
    **{source: system.title for source, system in SYSTEMS.items()},
    "clip-vip": "CLIP-ViP",
    "openai-clip": "CLIP",
}
_PREFIX = "clip."
_WRAPPED = ".attn.net."
"""What the token shift makes of ``.attn.`` in a checkpoint's names."""
_VISUAL_BLOCK = re.compile(r"visual\.transformer\.resblocks\.(\d+)\.(attn\.)(?!net\.)(.+)")

_PATCH_METHODS = ("eercf", "ts2-net", "ucofia")
"""Methods that look at all patches; the others at frame embeddings only."""


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What a checkpoint holds, by the names that we keep it under."""

    source: str
    architecture: Architecture
    """Of the image-text model."""
    model: str
    """The name that ``--model`` takes for it."""
    clip: Mapping[str, Tensor]
    """The image-text model by OpenAI's names, ``logit_scale`` among them."""
    head: OfficialHead | None
    """None for a system that scores by the cosine alone."""
    head_tensors: Mapping[str, Tensor]
    ignored: tuple[str, ...]
    """Tensors that nothing reads."""


@dataclass(frozen=True, slots=True)
class ImportedFiles:
    """What was written."""

    source: str
    model: str
    """What ``extract --model`` takes ..."""
    weights: Path
    """... with this file as ``--pretrained``."""
    method: str
    """What ``rerank --method`` takes; broad where there is no head."""
    head: Path | None
    """What ``rerank --weights`` takes."""
    sizes: Mapping[str, int]
    num_tensors: int
    num_ignored: int


def import_weights(source: str, path: Path, output: Path, model: str = "") -> ImportedFiles:
    """Read the checkpoint at ``path``, check it whole, then write ``output`` and, with a head, NAME.head.safetensors.

    Raises InputError for a file that cannot be used, UsageError for an output or a model that does not go with it.
    """
    if output.suffix != ".safetensors":
        raise UsageError(f"--output is {output}; the file is safetensors, so name it {output.stem}.safetensors")
    if output.resolve() == path.resolve():
        raise UsageError(f"--output is the checkpoint {path} itself; give another name")
    found = convert(source, read_checkpoint(path), path, model)
    write_weights(output, found.clip)
    head_path = None
    if found.head is not None:
        head_path = output.with_name(f"{output.stem}.head.safetensors")
        tensors = {**found.head_tensors, "logit_scale": found.clip["logit_scale"]}
        HeadWeights(found.head.method, _kind(found, output), found.head.sizes, tensors).save(head_path)
    return ImportedFiles(
        source=source,
        model=found.model,
        weights=output,
        method=found.head.method if found.head else "broad",
        head=head_path,
        sizes=found.head.sizes if found.head else {},
        num_tensors=len(found.clip) + len(found.head_tensors),
        num_ignored=len(found.ignored),
    )


def convert(source: str, state: Mapping[str, Tensor], path: Path, model: str = "") -> Checkpoint:
    """The tensors of a checkpoint by our names, every name and shape checked; they may be on the meta device.

    ``model``: the architecture, where its sizes do not say which it is. Raises InputError, UsageError.
    """
    state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    _require_source(source, state, path)
    ignored: tuple[str, ...] = ()
    rest: dict[str, Tensor] = {}
    official: Callable[[str], str] = _same
    system = SYSTEMS.get(source)
    if source == "clip-vip":
        official = clip_vip_names.official_name
        clip = clip_vip_names.openai_names(state, path)
    elif system is None:
        clip = {key: tensor for key, tensor in state.items() if key not in SIZES_ONLY}
    else:
        rest = {key: tensor for key, tensor in state.items() if not key.startswith(_PREFIX)}
        clip, official = _family_clip(system, state, path)
    architecture, name = _architecture(clip, path, model, official)
    clip = _checked(_shapes(architecture), clip, path, official)
    if system is None:
        return Checkpoint(source, architecture, name, clip, None, {}, ())
    head = official_head(source, rest, architecture.embed_dim, path)
    ignored = tuple(key for key in rest if key.startswith(head.unused) and key not in head.shapes)
    tensors = {key: tensor for key, tensor in rest.items() if key not in ignored}
    tensors = _checked(head.shapes, tensors, path, _same)
    if system.shifts_tokens:
        architecture, name = replace(architecture, token_shift=True), name + SUFFIX
    return Checkpoint(source, architecture, name, clip, head, tensors, ignored)


def _require_source(source: str, state: Mapping[str, Tensor], path: Path) -> None:
    found = recognise(state)
    if found == source:
        return
    if not found:
        first = next(iter(state), "nothing")
        raise InputError(
            f"{path} holds no checkpoint of {_TITLES[source]}: its first tensor is {first}, expected names that begin "
            f"with {'clipmodel.' if source == 'clip-vip' else 'visual.' if source == 'openai-clip' else _PREFIX}"
        )
    raise InputError(f"{path} is a checkpoint of {_TITLES[found]}, not of {_TITLES[source]}; give --from {found}")


def _family_clip(
    system: System, state: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], Callable[[str], str]]:
    """The image-text model by OpenAI's names, and what gives the checkpoint's name for one of these.

    Where the tower shifts tokens, the attention of its last blocks counts only under its own name: what lies under the
    plain one would be CLIP's.
    """
    clip = {key.removeprefix(_PREFIX): tensor for key, tensor in state.items() if key.startswith(_PREFIX)}
    if "visual.conv2.weight" in clip:
        raise InputError(
            f"{path} has a tensor clip.visual.conv2.weight, of a tower trained with --linear_patch 3d; that is not "
            "supported"
        )
    wrapped = {key: tensor for key, tensor in clip.items() if _WRAPPED in key}
    if not system.shifts_tokens:
        if wrapped:
            raise InputError(
                f"{path} has a tensor clip.{next(iter(wrapped))}, the mark of a token shift, which {system.title} lacks"
            )
        return clip, lambda key: _PREFIX + key
    blocks = [int(match[1]) for key in clip if (match := re.match(r"visual\.transformer\.resblocks\.(\d+)\.", key))]
    first_shifted = max(blocks, default=0) + 1 - NUM_BLOCKS

    def official(key: str) -> str:
        match = _VISUAL_BLOCK.fullmatch(key)
        if match is None or int(match[1]) < first_shifted:
            return _PREFIX + key
        return f"{_PREFIX}visual.transformer.resblocks.{match[1]}{_WRAPPED}{match[3]}"

    plain = {key: tensor for key, tensor in clip.items() if key not in wrapped and official(key) == _PREFIX + key}
    return {**plain, **{key.replace(_WRAPPED, ".attn."): tensor for key, tensor in wrapped.items()}}, official


def _architecture(
    clip: Mapping[str, Tensor], path: Path, model: str, official: Callable[[str], str]
) -> tuple[Architecture, str]:
    """What the model is made of, and its name for ``--model``."""
    if model:
        name = model.removesuffix(SUFFIX)
        return resolve(name, "", MODELS), name
    found = architecture_of(clip, path, official=official)
    if found.name not in (*NAMES, *VIDEO_MODELS):
        raise UsageError(
            f"{path} holds a model of unknown size ({found.name}); say which with --model NAME, or --model "
            "local-dir:FOLDER with an open_clip_config.json of that size"
        )
    return found, found.name


def _shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The tensors of a model by OpenAI's names, without making them."""
    with torch.device("meta"):
        visual = image.build(architecture).module.state_dict()
        words = text.build(architecture).module.state_dict()
    towers = {**{f"visual.{key}": value for key, value in visual.items()}, **words}
    return {"logit_scale": (), **{key: tuple(value.shape) for key, value in towers.items()}}


def _checked(
    shapes: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor], path: Path, official: Callable[[str], str]
) -> dict[str, Tensor]:
    """These tensors, of these shapes. Raises InputError, with the checkpoint's name of it, for any other."""
    missing = [key for key in shapes if key not in found]
    if missing:
        raise InputError(
            f"{path} has no tensor {official(missing[0])} ({len(missing)} of {len(shapes)} missing); nothing else is "
            "put in its place"
        )
    for key, shape in shapes.items():
        if tuple(found[key].shape) != shape:
            raise InputError(f"{path}: tensor {official(key)} is {list(found[key].shape)}, expected {list(shape)}")
    surplus = _names(key for key in found if key not in shapes)
    if surplus:
        raise InputError(
            f"{path} has a tensor {official(surplus[0])} that nothing is known about ({len(surplus)} such)"
        )
    for key in shapes:
        if not found[key].is_floating_point():
            raise InputError(f"{path}: tensor {official(key)} is {found[key].dtype}, expected floating point numbers")
    return {key: found[key] for key in shapes}


def _names(keys: Iterable[str]) -> list[str]:
    """Without the tables of position numbers that some libraries store."""
    return [key for key in keys if not key.endswith("position_ids")]


def _kind(found: Checkpoint, output: Path) -> FeatureKind:
    """The features that the head belongs to: those of the image-text model that was just written."""
    assert found.head is not None
    architecture = found.architecture
    with torch.device("meta"):
        tokens = image.build(architecture).tokens_per_frame
    return FeatureKind(
        model=architecture.name + (SUFFIX if architecture.token_shift else ""),
        weights_sha256=find_weights(architecture, str(output)).digest(),
        tokens_per_frame=tokens,
        keep_tokens="all" if found.head.method in _PATCH_METHODS else ANY_TOKENS,
    )


def _same(key: str) -> str:
    return key
