"""CLIP4Clip: the four similarity calculators, their loss and its gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.rerankers.clip4clip import Clip4ClipHead, Clip4ClipTightHead
from stages.training.losses import contrastive
from tests.golden.check import GRADIENTS, LOGITS, Arrays, Tolerance
from tests.golden.features import Features, features, head_state


def outputs(arrays: Arrays) -> dict[str, Tensor]:
    """Every ``out.*`` array."""
    found = {}
    for name in ("meanP", "seqTransf", "seqLSTM", "tightTransf"):
        kind = Clip4ClipTightHead if name == "tightTransf" else Clip4ClipHead
        head = kind.of_state(head_state(arrays, f"w.{name}"), int(arrays["cfg.H"]))
        head.eval()  # the file was made without dropout
        with torch.inference_mode():
            found[f"out.{name}.logits"] = _logits(head, features(arrays, "in"))
        given = features(arrays, "train_in", requires_grad=True)
        logits = _logits(head, given)
        loss = contrastive(logits)
        loss.backward()
        found |= {f"out.{name}.train_logits": logits, f"out.{name}.train_loss": loss}
        found |= {f"out.{name}.train_grad.{leaf}": gradient for leaf, gradient in given.gradients().items()}
    return found


def _logits(head: Clip4ClipHead | Clip4ClipTightHead, given: Features) -> Tensor:
    """[T, V]."""
    texts = head.texts(given.queries)[None]
    if isinstance(head, Clip4ClipTightHead):
        return head.score(texts, head.videos(given.tokens, given.frame_mask)).T
    return head.score(texts, head.videos(given.tokens, given.frame_mask)).T


def tolerance_of(name: str) -> Tolerance:
    """As the file's README says."""
    return GRADIENTS if "_grad." in name else LOGITS
