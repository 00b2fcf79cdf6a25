"""The sums of the authors' released code, padding and all, in place of ours: for comparison with their numbers.

In their programs padding takes part in scores (``official`` of each head says how), so what it holds counts. A text is
cut to W tokens, and its words are all W positions, those after its end too, as the text tower leaves them. A frame that
is padding is a picture of zeros, as the image tower sees it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from index_store.errors import UsageError
from index_store.settings import KeepRule
from stages.models.clip import ClipModel
from stages.rerankers.base import Reranker
from stages.rerankers.ucofia import UcofiaHead
from stages.rerankers.wti import WtiHead
from stages.rerankers.xclip import XClipHead
from stages.tokens import keep_tokens

NUM_WORDS = 32
"""W in the released scripts of most datasets, where no matrix of weights says another."""

_ALIKE = ("broad", "clip4clip", "clip4clip-tight")
"""Methods whose released code computes what ours does."""


def follow_released_code(reranker: Reranker) -> bool:
    """From now on the sums are those of the released code; False: they were before.

    Raises UsageError for a method that no code was released of.
    """
    head: Any = getattr(reranker, "scorer", None)
    if hasattr(head, "official"):
        head.official = True
        return True
    if reranker.name in _ALIKE:
        return False
    raise UsageError(
        f"--official: no code of {reranker.name} is known that computes it otherwise; leave --official out"
    )


def words_read(reranker: Reranker) -> int | None:
    """W, the positions of a text that the released code compares with videos; None: it compares sentences only."""
    head: Any = getattr(reranker, "scorer", None)
    if not isinstance(head, (XClipHead, UcofiaHead, WtiHead)):
        return None
    matrix = getattr(head, "word_mat_weight", None)
    return NUM_WORDS if matrix is None else len(matrix)


def needs_padding_frame(reranker: Reranker) -> bool:
    """Whether frames that are padding take part in what ``follow_released_code`` makes of this method."""
    head: Any = getattr(reranker, "scorer", None)
    return hasattr(head, "padding_frame") and not isinstance(head, WtiHead)


def set_padding_frame(reranker: Reranker, clip: ClipModel, keep: KeepRule, device: torch.device) -> None:
    """Frames that are padding hold what the image tower makes of zeros; ``keep``: the tokens kept of a frame."""
    head: Any = getattr(reranker, "scorer", None)
    head.padding_frame = _padding_frame(clip, keep).to(device)


def _padding_frame(clip: ClipModel, keep: KeepRule) -> Tensor:
    """Float32 [P, D]."""
    size = clip.architecture.image_size
    return keep_tokens(clip.encode_frames(torch.zeros(1, 3, size, size)), keep)[0]
