"""Contrastive losses of the published systems, each a function of a square matrix of scores.

Scores S [B, B], texts by videos, already times the scale; the diagonal holds the pairs that belong together. Every
loss is a scalar and can be differentiated. Where a direction is not said, both count, from text to video and back. A
score of -inf says that a pair is neither right nor wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Reduction = Literal["mean", "sum"]
"""Of the two directions: the mean in the CLIP4Clip family and in TokenBinder, the sum in CLIP-ViP."""

Contrast = Literal["mean", "sum", "dual-softmax", "mil-nce", "max-margin", "triplet"]
"""What ``tbpipe train`` can be told for the broad view; mean and sum are ``contrastive``."""
ON_COSINES = frozenset({"max-margin", "triplet"})
MARGIN = 0.2
"""Of those."""


def cross_entropy(scores: Tensor) -> Tensor:
    """Mean over the rows of -log softmax(S_i)_i: one direction."""
    return functional.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def contrastive(scores: Tensor, reduction: Reduction = "mean") -> Tensor:
    """InfoNCE: cross-entropy of S and of its transpose (CLIP4Clip, X-CLIP, TS2-Net, UCoFiA, EERCF; CLIP-ViP)."""
    total = cross_entropy(scores) + cross_entropy(scores.T)
    return total / 2 if reduction == "mean" else total


def dual_softmax_contrastive(scores: Tensor, reduction: Reduction = "sum") -> Tensor:
    """As ``contrastive``, S being replaced by S softmax(S, over the queries), in each direction by its own queries."""
    total = cross_entropy(_weighed(scores)) + cross_entropy(_weighed(scores.T))
    return total / 2 if reduction == "mean" else total


def _weighed(scores: Tensor) -> Tensor:
    """S softmax(S) over the rows; -inf stays, where 0 times it would be no number."""
    is_out = scores.isneginf()
    return (scores.masked_fill(is_out, 0) * scores.softmax(dim=0)).masked_fill(is_out, -torch.inf)


def hard_negatives(scores: Tensor, number: int, reduction: Reduction = "sum") -> Tensor:
    """Cross-entropy of each pair against the ``number`` largest wrong scores of its row, and of its column."""
    total = _first(scores.diagonal(), _wrong(scores).topk(number, dim=1).values)
    total = total + _first(scores.diagonal(), _wrong(scores.T).topk(number, dim=1).values)
    return total / 2 if reduction == "mean" else total


def mil_nce(scores: Tensor, group_size: int = 1) -> Tensor:
    """MIL-NCE (Miech et al., CVPR 2020): -log of what the right ones have of a video's column and its text's row.

    Rows and columns come in groups of ``group_size`` that belong together; all scores within a group are right. Of each
    group the item in the middle counts, as the published code has it.
    """
    middle = torch.arange(group_size // 2, len(scores), group_size, device=scores.device)
    group = torch.arange(len(scores), device=scores.device) // group_size
    same = group[middle, None] == group
    columns, rows = scores.T[middle], scores[middle]
    right = columns.masked_fill(~same, -torch.inf).logsumexp(dim=1)
    every = torch.cat([columns, rows.masked_fill(same, -torch.inf)], dim=1).logsumexp(dim=1)
    return (every - right).mean()


def max_margin(scores: Tensor, margin: float, group_size: int = 1, hard_negative_rate: float | None = None) -> Tensor:
    """Mean of relu(margin + S_ij - S_ii) + relu(margin + S_ij - S_jj) over all i, j.

    The diagonal counts too, with the constant 2 margin / B. With a rate, the entries within one of the G groups of
    ``group_size`` weigh G rate and all others (1 - rate) G / (G - 1); one group alone, and groups of one, weigh 1.
    """
    right = scores.diagonal()
    loss = functional.relu(margin + scores - right[:, None]) + functional.relu(margin + scores - right)
    num_groups = len(scores) // group_size
    if hard_negative_rate is not None and group_size > 1 and num_groups > 1:
        group = torch.arange(len(scores), device=scores.device) // group_size
        within, across = num_groups * hard_negative_rate, num_groups * (1 - hard_negative_rate) / (num_groups - 1)
        loss = loss * torch.where(group[:, None] == group, within, across).to(loss)
    return loss.mean()


def triplet(scores: Tensor, margin: float, is_hardest_only: bool = False) -> Tensor:
    """Sum of relu(margin + S_ij - S_ii) and relu(margin + S_ij - S_jj) over the wrong pairs (VSE++, BMVC 2018).

    With ``is_hardest_only`` only the largest one of each row and of each column counts.
    """
    right = scores.diagonal()
    is_wrong = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    rows = functional.relu(margin + scores - right[:, None]) * is_wrong
    columns = functional.relu(margin + scores - right) * is_wrong
    if is_hardest_only:
        return rows.amax(dim=1).sum() + columns.amax(dim=0).sum()
    return rows.sum() + columns.sum()


def shared_video(subtitles: Tensor, captions: Tensor) -> Tensor:
    """Two texts of each video that are no negatives of each other (CLIP-ViP's post-pretraining, "vsc").

    subtitles, captions [B, B]: scores of either kind of text with the videos. Each kind looks for its video; each video
    looks for its subtitle, and for its caption, among those and all wrong texts of both kinds. The four are added up.
    """
    wrong = torch.cat([_wrong(subtitles.T), _wrong(captions.T)], dim=1)
    to_texts = _first(subtitles.diagonal(), wrong) + _first(captions.diagonal(), wrong)
    return cross_entropy(subtitles) + cross_entropy(captions) + to_texts


def contrast(name: Contrast, scores: Tensor) -> Tensor:
    """The loss of that name; scores [B, B] are cosines for those ON_COSINES, times the scale for the others."""
    if name == "max-margin":
        return max_margin(scores, MARGIN)
    if name == "triplet":
        return triplet(scores, MARGIN)
    if name == "dual-softmax":
        return dual_softmax_contrastive(scores)
    return mil_nce(scores) if name == "mil-nce" else contrastive(scores, name)


def _wrong(scores: Tensor) -> Tensor:
    """[B, B - 1]: each row without the pair that belongs together."""
    size = len(scores)
    return scores[~torch.eye(size, dtype=torch.bool, device=scores.device)].view(size, size - 1)


def _first(right: Tensor, wrong: Tensor) -> Tensor:
    """Mean cross-entropy of right [B] against wrong [B, n]."""
    scores = torch.cat([right[:, None], wrong], dim=1)
    return functional.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device))


# -- CLIP-ViP's losses by their names --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """B videos with two texts and a frame each, all [B, D], unit length."""

    video: Tensor
    text: Tensor
    """The subtitle in post-pretraining, the caption in fine-tuning."""
    image: Tensor
    """The middle frame by itself."""
    caption: Tensor
    """What was generated about that frame."""
    log_scale: Tensor
    """Scalar; scores are multiplied by its exponential where the temperature is learned."""

    def scores(self, texts: Tensor, videos: Tensor) -> Tensor:
        """[T, V]."""
        return self.log_scale.exp() * texts @ videos.T


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """What some of the losses are told beside the features."""

    temperature: float = 0.05
    hard_negatives: int = 10
    margin: float = 0.2
    is_hardest_only: bool = False


def _learned(found: Sources) -> Tensor:
    return found.scores(found.text, found.video)


def _caption(found: Sources) -> Tensor:
    return found.scores(found.caption, found.video)


def _frame(found: Sources) -> Tensor:
    return found.scores(found.caption, found.image)


def _together(found: Sources) -> Tensor:
    """[2 B, 2 B]: texts and captions by videos and images; all but the own one are wrong."""
    return found.scores(torch.cat([found.text, found.caption]), torch.cat([found.video, found.image]))


def _cosines(found: Sources) -> Tensor:
    return found.text @ found.video.T


def _separate(found: Sources) -> Tensor:
    return contrastive(_learned(found), "sum") + contrastive(_caption(found), "sum")


def _shared(found: Sources) -> Tensor:
    return shared_video(_learned(found), _caption(found))


CLIP_VIP_LOSSES: dict[str, Callable[[Sources, Constants], Tensor]] = {
    "NCEContrastiveLoss": lambda found, told: contrastive(_cosines(found) / told.temperature, "sum"),
    "HardNegLoss": lambda found, told: hard_negatives(_cosines(found), told.hard_negatives),
    "TripletContrastiveLoss": lambda found, told: triplet(_cosines(found), told.margin, told.is_hardest_only),
    "MILNCEContrastiveLoss": lambda found, told: mil_nce(_cosines(found) / told.temperature),
    "NCELearnableTempLoss": lambda found, told: contrastive(_learned(found), "sum"),
    "NCELearnableTempDSLLoss": lambda found, told: dual_softmax_contrastive(_learned(found)),
    "VidImgNCELearnableTempLoss": lambda found, told: contrastive(_together(found), "sum"),
    "VidImgDivideNCELearnableTempLoss": lambda found, told: (
        contrastive(_learned(found), "sum") + contrastive(_frame(found), "sum")
    ),
    "NCELearnableTempLoss_vs_vc": lambda found, told: _separate(found),
    "NCELearnableTempLoss_vs_vc_fc": lambda found, told: _separate(found) + contrastive(_frame(found), "sum"),
    "NCELearnableTempLoss_vsc": lambda found, told: _shared(found),
    "NCELearnableTempLoss_vsc_fc": lambda found, told: _shared(found) + contrastive(_frame(found), "sum"),
}
"""CLIP-ViP's name of a loss -> it. vs: video and subtitle, vc: video and caption, fc: frame and caption."""
