"""TS2-Net: token shift, token selection, similarity, gradients. The released code's frame mask throughout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stages.models import image
from stages.models.architecture import Architecture, ImagePreprocessing
from stages.models.token_shift import shift_tokens
from stages.rerankers.selection import PredictorA, TokenSelector
from stages.rerankers.temporal import Frames, pool
from stages.rerankers.ts2net import Ts2NetHead, weigh_frames
from stages.training.losses import contrastive
from tests.golden.check import EXACT, FEATURES, GRADIENTS, LOGITS, Arrays, Tolerance


def outputs(arrays: Arrays) -> dict[str, Any]:
    """Everything that the file holds."""
    found: dict[str, Any] = {}
    with torch.no_grad():
        found |= _evaluated(arrays, _head(arrays))
        found |= _shifted(arrays)
        found |= _tower(arrays)
    return found | _trained(arrays, _head(arrays))


def _tensors(arrays: Arrays, prefix: str) -> dict[str, Tensor]:
    """The arrays whose names begin so, without that beginning; floating-point ones as float32."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items() if name.startswith(prefix)}
    return {
        name.removeprefix(prefix): tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def _head(arrays: Arrays) -> Ts2NetHead:
    weights = {name.removeprefix("clip."): tensor for name, tensor in _tensors(arrays, "w.").items()}
    positions, width = weights["frame_position_embeddings.weight"].shape
    head = Ts2NetHead(width, int(arrays["cfg.L"]), int(arrays["cfg.H"]), positions, official=True)
    head.visual_token_selector = TokenSelector(PredictorA(width), int(arrays["cfg.topk"]))
    head.load_state_dict(weights)
    return head


def _evaluated(arrays: Arrays, head: Ts2NetHead) -> dict[str, Any]:
    given = _tensors(arrays, "in.")
    selector, sigma = head.visual_token_selector, float(arrays["cfg.sigma"])
    mask = given["frame_mask"].bool()
    text = normalize(given["text"], dim=-1)[None]
    selected = selector(given["tokens"], None, given["noise"], sigma)
    hard = selector(given["tokens"])

    def similarity(tokens: Tensor, mask: Tensor) -> Tensor:
        return head.score(text, head.of_selected(tokens, mask)).T

    frames = Frames(normalize(given["frames"], dim=-1), mask)
    scale = head.logit_scale.exp()
    found = {
        "selector_scores": selector.scores(given["tokens"]).flatten(0, 1),
        "selected": selected.flatten(1, 2),
        "selected_hard": hard.flatten(1, 2),
        "block_global_similarity": scale * text[0] @ pool(given["frames"], mask).T,
    }
    for name in ("frame", "selectedcls"):
        found[f"block_{name}_similarity"] = (scale * weigh_frames(text, frames)).T
    for name in ("sim_semantic", "sim_global", "final"):  # a caption is one vector: they are one matrix
        found[name] = similarity(selected, mask)
        found[f"hard_{name}"] = similarity(hard, mask)
        found[f"allframes_{name}"] = similarity(selected, torch.ones_like(mask))
    return {f"out.{name}": value for name, value in found.items()}


def _trained(arrays: Arrays, head: Ts2NetHead) -> dict[str, Any]:
    given = _tensors(arrays, "train_in.")
    text, tokens = given["text"].requires_grad_(), given["tokens"].requires_grad_()
    selected = head.visual_token_selector(tokens, None, given["noise"], float(arrays["cfg.sigma"]))
    videos = head.of_selected(selected, given["frame_mask"].bool())
    logits = head.score(normalize(text, dim=-1)[None], videos).T
    loss = contrastive(logits)
    loss.backward()
    found = {
        "out.train_loss": loss,
        "out.train_selected": selected.flatten(1, 2),
        "out.train_sim_semantic": logits,
        "out.train_grad.text": text.grad[:, None],
        "out.train_grad.tokens": tokens.grad,
    }
    return found | {f"out.train_grad.{name}": weight.grad for name, weight in head.named_parameters()}


def _shifted(arrays: Arrays) -> dict[str, Any]:
    found = {}
    for name, tokens in _tensors(arrays, "shift_in.").items():
        case = name.removesuffix(".x_LND")
        videos = tokens.transpose(0, 1).unflatten(0, (-1, int(arrays["cfg.F"])))
        shifted = shift_tokens(videos, num_groups=int(case.split("ndiv")[1]))
        found[f"out.shift.{case}.y_LND"] = shifted.flatten(0, 1).transpose(0, 1)
    return found


def _tower(arrays: Arrays) -> dict[str, Any]:
    weights = _tensors(arrays, "vis_w.visual.")
    pixels = _tensors(arrays, "vis_in.")["pixel_values"]
    width, _, patch_size, _ = weights["conv1.weight"].shape
    vision = {
        "image_size": pixels.shape[-1],
        "patch_size": patch_size,
        "width": width,
        "layers": len({name.split(".")[2] for name in weights if name.startswith("transformer.")}),
    }
    found = {}
    for name, shift in (("noshift", False), ("shift", True)):
        architecture = Architecture(
            "golden", weights["proj"].shape[1], vision, {}, True, ImagePreprocessing(), token_shift=shift
        )
        tower = image.build(architecture)
        tower.module.load_state_dict(weights)
        tower.module.eval()
        if shift:
            videos = pixels.unflatten(0, (-1, int(arrays["cfg.vis_frames"])))
            tokens = tower.video_tokens(videos).flatten(0, 1)
        else:
            tokens = tower.tokens(pixels)
        found[f"out.vis.tokens_{name}"] = tokens
    return found


def tolerance_of(name: str) -> Tolerance | None:
    """That of the kind of number."""
    if ".shift." in name:
        return EXACT
    if "_grad." in name:
        return GRADIENTS
    return FEATURES if any(kind in name for kind in ("selected", "scores", "loss", "vis.")) else LOGITS
