"""EERCF: the levels, its loss with its gradients, and the matrices of its two-stage evaluation."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from stages.normalise import dual_softmax
from stages.official_metrics import (
    family_metrics,
    groups_by_best,
    multi_caption_metrics,
    multi_caption_ranks,
    stacked,
    tied_places,
)
from stages.rerankers.eercf import EercfHead, two_stages
from stages.training.eercf_loss import EercfLossWeights, eercf_terms
from tests.golden.check import EXACT, GRADIENTS, LOGITS, Arrays, Tolerance
from tests.golden.features import Features, features, head_state


def outputs(arrays: Arrays) -> dict[str, Any]:
    """Every ``out.*`` array."""
    state, heads = head_state(arrays), int(arrays["cfg.H"])
    found: dict[str, Any] = {}
    head = EercfHead.of_state(state, heads, official=True)
    with torch.inference_mode():
        levels = _levels(head, features(arrays, "in"))
        found |= {f"out.eval.{name}": level for name, level in levels.items()}
        found["out.eval.default_sentence_patch_strong"] = levels["sentence_frame_strong"]
    for name in ("defaults", "allterms"):
        found |= _training(EercfHead.of_state(state, heads, official=True), arrays, name)
    with torch.inference_mode():
        found |= _single_captions(head, arrays) | _several_captions(head, arrays) | _dual_softmax(arrays)
    return found


def _levels(head: EercfHead, given: Features) -> dict[str, Tensor]:
    """[T, V] each, times the logit scale."""
    videos = head.videos(given.tokens, given.frame_mask)
    texts = head.texts(given.queries).expand(len(given.tokens), -1, -1)
    cosines = head.cosines(texts, videos)
    levels = {
        "sentence_video": head.sentence_video(texts, videos),
        "sentence_frame_weak": head.frame_weak(cosines),
        "sentence_frame_strong": (head.frame_gathered(cosines, videos) * texts).sum(-1),
        "sentence_patch_weak": head.patch_weak(cosines),
        "sentence_patch_strong": (head.patch_gathered(cosines, videos) * texts).sum(-1),
    }
    return {name: (head.logit_scale.exp() * level).T for name, level in levels.items()}


def _training(head: EercfHead, arrays: Arrays, name: str) -> dict[str, Tensor]:
    """The terms, and total loss and gradients with one set of weights."""
    given = features(arrays, "train_in", requires_grad=True)
    terms = eercf_terms(head, given.queries, given.tokens, given.frame_mask)
    of = {
        key.removeprefix(f"cfg.train.{name}."): float(value)
        for key, value in arrays.items()
        if f".{name}." in key and key.startswith("cfg")
    }
    weights = EercfLossWeights(
        sentence_video=of["video_weight"],
        frame_weak=of["weakframe_weight"],
        patch_weak=of["weakpatch_weight"],
        frame_strong=of["strongframe_weight"],
        patch_strong=of["strongpatch_weight"],
        pearson_video=of["cdcl_video_weight"],
        pearson_frame=of["cdcl_frame_weight"],
        pearson_patch=of["cdcl_patch_weight"],
        weak=of["weak_loss_weight"],
        strong=of["strong_loss_weight"],
        pearson=of["cdcl_loss_weight"],
    )
    loss = terms.loss(weights)
    loss.backward()
    gradients = {key: parameter.grad for key, parameter in head.named_parameters()}
    gradients = given.gradients() | gradients | {"clip.logit_scale": gradients["logit_scale"]}
    return {
        "out.train.sentence_video": terms.sentence_video,
        "out.train.sentence_frame_weak": terms.frame_weak,
        "out.train.sentence_frame_strong": terms.frame_strong,
        "out.train.sentence_patch_weak": terms.patch_weak,
        "out.train.sentence_patch_strong": terms.patch_strong,
        "out.train.pearson_video": terms.pearson_video,
        "out.train.pearson_frame": terms.pearson_frame,
        "out.train.pearson_patch": terms.pearson_patch,
        f"out.train.{name}.total_loss": loss,
    } | {f"out.train.{name}.grad.{key}": gradient for key, gradient in gradients.items() if gradient is not None}


def _two_stages(head: EercfHead, given: Features, top_k: int) -> dict[str, Tensor]:
    """Every matrix [T, V] of the released evaluation; with its flags the strong patch level is the frames'."""
    levels = _levels(head, given)
    coarse, frame_weak, frame_strong, patch_weak, _ = levels.values()
    mixture = EercfLossWeights()
    weak, strong = (
        mixture.weak_logits(coarse, frame_weak, patch_weak),
        mixture.strong_logits(frame_strong, frame_strong),
    )
    videos = head.videos(given.tokens, given.frame_mask)
    return {
        "main_sim": coarse,
        "video_sim": coarse,
        "weakframe_sim": frame_weak,
        "strongframe_sim": frame_strong,
        "weakpatch_sim": patch_weak,
        "strongpatch_sim": frame_strong,
        "rerank_sim": mixture.weak * weak + mixture.strong * strong,
        "final_sim": two_stages(coarse, head.score(head.texts(given.queries)[None], videos).T, top_k),
    }


def _single_captions(head: EercfHead, arrays: Arrays) -> dict[str, Any]:
    given, top_k = features(arrays, "eval_in"), int(arrays["cfg.twostage.rerank_topk"])
    matrices = _two_stages(head, given, top_k)
    final = matrices["final_sim"].numpy()
    found: dict[str, Any] = {f"out.twostage.k3.{name}": matrix for name, matrix in matrices.items()}
    for direction, scores in (("t2v", final), ("v2t", final.T)):
        places = tied_places(scores)
        metrics = family_metrics(places)
        found |= {f"out.twostage.k3.{direction}.{name}": value for name, value in metrics.items()}
        found[f"out.twostage.k3.{direction}.cols"] = places
    found["out.twostage.kall.final_sim"] = _two_stages(head, given, len(final))["final_sim"]
    return found | _selection("k3", found)


def _several_captions(head: EercfHead, arrays: Arrays) -> dict[str, Any]:
    given, top_k = features(arrays, "multi_in"), int(arrays["cfg.twostage.multi.rerank_topk"])
    matrices = _two_stages(head, given, top_k)
    found: dict[str, Any] = {f"out.twostage.multi.{name}": matrix for name, matrix in matrices.items()}
    stack = stacked(matrices["final_sim"].double().numpy(), arrays["multi_in.captions_per_video"])
    found["out.twostage.multi.final_sim_stacked"] = stack
    metrics = multi_caption_metrics(multi_caption_ranks(stack))
    found |= {f"out.twostage.multi.t2v.{name}": value for name, value in metrics.items()}
    metrics = family_metrics(tied_places(groups_by_best(stack)))
    found |= {f"out.twostage.multi.v2t.{name}": value for name, value in metrics.items()}
    return found | _selection("multi", found)


def _selection(name: str, found: dict[str, Any]) -> dict[str, float]:
    """What the released program chooses its best epoch by."""
    prefix = f"out.twostage.{name}"
    return {f"{prefix}.model_selection_score": sum(found[f"{prefix}.t2v.R{k}"] for k in (1, 5, 10))}


def _dual_softmax(arrays: Arrays) -> dict[str, Tensor]:
    """Both matrices times their softmax over the rows; K and temperature are in the array's name."""
    found = {}
    for name in (name for name in arrays if name.startswith("out.cal_new_")):
        top_k, temperature = (float(number) for number in re.findall(r"topk(.+)_tem(.+)", name)[0])
        main, rerank = (
            torch.from_numpy(
                dual_softmax(arrays[f"cal_new_in.{kind}"], 1 / temperature) * len(arrays["cal_new_in.main"])
            )
            for kind in ("main", "rerank")
        )
        found[name] = two_stages(main, rerank, int(top_k))
    return found


def tolerance_of(name: str) -> Tolerance:
    """As the file's README says."""
    if name.endswith(".cols"):
        return EXACT
    return GRADIENTS if ".grad." in name else LOGITS
