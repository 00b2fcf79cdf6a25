"""X-CLIP: all four similarities, their mean, the loss and its gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.rerankers.xclip import XClipHead
from stages.training.losses import contrastive
from tests.golden.check import FEATURES, GRADIENTS, LOGITS, Arrays, Tolerance
from tests.golden.features import Features, features, head_state

MATRICES = (
    "global_mat_weight",
    "local_mat_weight",
    "word_logit_weight",
    "word_mat_weight",
    "word_mat_weight2",
    "frame_logit_weight",
    "frame_mat_weight",
    "frame_mat_weight2",
)


def outputs(arrays: Arrays) -> dict[str, Tensor]:
    """Every ``out.*`` array."""
    state = head_state(arrays)
    head = XClipHead.of_state(state, int(arrays["cfg.H"]), official=True)
    at_start = XClipHead.of_state(
        {name: torch.eye(len(value)) if name in MATRICES else value for name, value in state.items()},
        int(arrays["cfg.H"]),
        official=True,
    )
    given = features(arrays, "in")
    with torch.inference_mode():
        terms = head.terms(head.texts(given.queries), head.videos(given.tokens, given.frame_mask))
        from_start = at_start.terms(at_start.texts(given.queries), at_start.videos(given.tokens, given.frame_mask))
        found = {
            "out.logits": terms.mean(),
            "out.video_sentence": terms.video_sentence,
            "out.video_word": terms.video_word,
            "out.sentence_frame": terms.sentence_frame,
            "out.frame_word": terms.frame_word,
            "out.frame_word_sent2frame_half": terms.words_first,
            "out.frame_word_video2word_half": terms.frames_first,
            "out.aosm_direct": terms.frame_word / head.logit_scale.exp(),
            "out.logits_identity_weights": from_start.mean(),
        }
    return found | _training(head, features(arrays, "train_in", requires_grad=True))


def _training(head: XClipHead, given: Features) -> dict[str, Tensor]:
    """Loss and gradients of a training batch."""
    logits = head.terms(head.texts(given.queries), head.videos(given.tokens, given.frame_mask)).mean()
    loss = contrastive(logits)
    loss.backward()
    gradients = {name: head.get_parameter(name).grad for name in MATRICES} | given.gradients()
    found = {"out.train_logits": logits, "out.train_loss": loss}
    return found | {f"out.train_grad.{name}": gradient for name, gradient in gradients.items() if gradient is not None}


def tolerance_of(name: str) -> Tolerance:
    """As the file's README says."""
    if "_grad." in name:
        return GRADIENTS
    return FEATURES if name == "out.aosm_direct" else LOGITS
