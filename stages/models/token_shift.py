"""TS2-Net's token shift (Liu et al., ECCV 2022): some patches look at what the frames beside them had in their place.

An image tower with the shift sees whole videos. It has no weights of its own: any CLIP tower can do it, and towers that
were fine-tuned with it (TS2-Net, UCoFiA) need it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from index_store.errors import UsageError

SUFFIX = "-tokenshift"
"""The end of the name of a model with the shift: another name, so a store made with it has another fingerprint."""
NUM_GROUPS = 7
"""One token of so many comes from the frame before, another one from the frame after."""
_FIRST_BACK, _FIRST_AHEAD = 1, 4
NUM_BLOCKS = 2
"""The last so many blocks shift: 10 and 11 of the 12 of ViT-B."""


def shift_tokens(tokens: Tensor, frame_mask: Tensor | None = None, num_groups: int = NUM_GROUPS) -> Tensor:
    """The tokens [V, F, N, C] of V videos, some of them replaced by those of the frame before or after.

    With fold = N // num_groups, tokens 1, 1 + fold, 1 + 2 fold, ... come from the frame before (the first frame keeps
    its own) and 4, 4 + fold, ... from the frame after (the last one keeps its own); where both want a token, the frame
    after has it. Token 0, the frame's embedding, stays. frame_mask bool [V, F], True = real frame: nothing comes from
    frames that are padding; without it they take part, as in the released code.

    Source: the shift before the attention of TS2-Net's last visual blocks. Raises UsageError where N < num_groups.
    """
    fold = tokens.shape[2] // num_groups
    if fold == 0:
        raise UsageError(f"the token shift needs {num_groups} tokens a frame, found {tokens.shape[2]}")
    back, ahead = slice(_FIRST_BACK, None, fold), slice(_FIRST_AHEAD, None, fold)
    shifted = tokens.clone()
    shifted[:, 1:, back] = tokens[:, :-1, back]
    following = tokens[:, 1:, ahead]
    if frame_mask is not None:
        following = following.where(frame_mask[:, 1:, None, None], shifted[:, :-1, ahead])
    shifted[:, :-1, ahead] = following
    return shifted


def run_blocks(transformer: Any, hidden: Tensor, num_frames: int, frame_mask: Tensor | None = None) -> Tensor:
    """What open_clip's ``transformer`` makes of hidden [V * F, N, C], its last blocks with the shift.

    Query, key and value of their attention are the shifted ``ln_1(hidden)``; what is added to is not shifted. Frames
    of a video follow each other, ``num_frames`` of each; frame_mask as in ``shift_tokens``.
    """
    if not transformer.batch_first:
        raise UsageError("the token shift needs a transformer with the batch first; this open_clip has it last")
    blocks = list(transformer.resblocks)
    for block in blocks[:-NUM_BLOCKS]:
        hidden = block(hidden)
    for block in blocks[-NUM_BLOCKS:]:
        normalised = block.ln_1(hidden).unflatten(0, (-1, num_frames))
        hidden = hidden + block.ls_1(block.attention(shift_tokens(normalised, frame_mask).flatten(0, 1)))
        hidden = hidden + block.ls_2(block.mlp(block.ln_2(hidden)))
    return hidden
