"""Token selection of TS2-Net (Liu et al., ECCV 2022) and UCoFiA (Wang et al., ICCV 2023): a few patches of each frame.

A small network scores the tokens of a frame; its [CLS] and the best patches are kept. In training the choice of the
best is perturbed, so that a gradient reaches the scores; here the noise is given, and without noise the choice is
plain and the same every time (the released code draws noise in its evaluation too, so its scores are random).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.rerankers.fixed_shape import linear

NUM_PATCHES = 3
"""k, patches kept of a frame; [CLS] is kept beside them."""
SIGMA = 0.05
"""Scale of the noise; the authors draw it 500 times."""

_FEWEST_COLUMNS = 4
"""With fewer, a product of one frame may be summed in another order than that of several."""
_SMALLEST_NORM = 1e-12


class TokenSelector(nn.Module):
    """Keeps [CLS] and the k best patches of each frame.

    Parameters have the names under ``visual_token_selector.`` of the released checkpoints. Without a predictor, which
    is the form for weights that have none, the best patches are those nearest to the frame's [CLS] by cosine: nothing
    is published for that case.
    """

    def __init__(self, predictor: PredictorA | PredictorB | None = None, num_patches: int = NUM_PATCHES) -> None:
        super().__init__()
        self.score_predictor = predictor
        self.num_patches = num_patches

    def scores(self, tokens: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """How good each token is: tokens float32 [c, F, P, D], raw, row 0 of P = [CLS]; float32 [c, F, P]."""
        if self.score_predictor is not None:
            found: Tensor = self.score_predictor(tokens, frame_mask)
            return found
        return _cosines_with_first(tokens)

    def forward(
        self, tokens: Tensor, frame_mask: Tensor | None = None, noise: Tensor | None = None, sigma: float = SIGMA
    ) -> Tensor:
        """[CLS] and k patches, float32 [c, F, 1 + k, D], of tokens float32 [c, F, P, D]; fewer where P - 1 < k.

        frame_mask bool [c, F], True = real frame: padding has no say in the scores of real frames; without it, as in
        the released code, it has. noise float32 [c * F, draws, P - 1], frames of a video side by side: each kept patch
        is the mean of what the draws keep. Without it: the best patches themselves, in the order of the image.
        """
        patches = tokens[:, :, 1:]
        scores = self.scores(tokens, frame_mask)[..., 1:]
        number = min(self.num_patches, scores.shape[-1])
        if noise is None:
            best = hard_top_k(scores, number).unsqueeze(-1)
            kept = patches.gather(2, best.expand(-1, -1, -1, patches.shape[-1]))
        else:
            indicators = perturbed_top_k(scores.flatten(0, 1), noise, sigma, number)
            kept = torch.bmm(indicators, patches.flatten(0, 1)).view(*tokens.shape[:2], number, -1)
        return torch.cat([tokens[:, :, :1], kept], dim=2)


class PredictorA(nn.Module):
    """h = GELU(LN(z) U1); tanh(GELU([h, h of [CLS]] U2) U3): what each token is beside its frame.

    In all of TS2-Net, and in UCoFiA's training and video-to-text evaluation.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.in_conv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, half, bias=False), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(2 * half, half, bias=False), nn.GELU(), nn.Linear(half, 1, bias=False), nn.Tanh()
        )

    def forward(self, tokens: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Scores float32 [c, F, P], between -1 and 1, of tokens float32 [c, F, P, D], raw; no frame sees another."""
        hidden = _run(self.in_conv, tokens)
        return _run(self.out_conv, torch.cat([hidden, hidden[:, :, :1].expand_as(hidden)], dim=-1))[..., 0]


class PredictorB(nn.Module):
    """h = GELU(LN([z, z of [CLS]]) U1); tanh(GELU([h, sum over frames of h of [CLS]] U2) U3).

    In UCoFiA's text-to-video evaluation only, whose weights therefore are not those that were trained.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width, bias=False), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(2 * width, width, bias=False), nn.GELU(), nn.Linear(width, 1, bias=False), nn.Tanh()
        )

    def forward(self, tokens: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """As of ``PredictorA``; the sum goes over the real frames of frame_mask bool [c, F], over all without it."""
        hidden = _run(self.in_conv, torch.cat([tokens, tokens[:, :, :1].expand_as(tokens)], dim=-1))
        frames = hidden[:, :, 0]
        if frame_mask is not None:
            frames = frames.masked_fill(~frame_mask.unsqueeze(-1), 0.0)
        video = frames.sum(1)[:, None, None].expand_as(hidden)
        return _run(self.out_conv, torch.cat([hidden, video], dim=-1))[..., 0]


def hard_top_k(scores: Tensor, number: int) -> Tensor:
    """The places of the ``number`` largest scores [..., P], int64 [..., number], ascending; of equal ones the first."""
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :number].sort(dim=-1).values


def perturbed_top_k(scores: Tensor, noise: Tensor, sigma: float, number: int) -> Tensor:
    """Mean over draws of the one-hot rows of the top k of scores + sigma noise: float32 [n, number, P].

    scores float32 [n, P], noise float32 [n, draws, P]; row k is the k-th place in ascending order. The gradient is that
    of the released code, written by hand: of the perturbed optimiser's Jacobian (Berthet et al., NeurIPS 2020) it
    keeps the diagonal, grad_p = sum_k g_kp mean_draws(onehot_kp noise_p) / sigma.
    """
    indicators: Tensor = _PerturbedTopK.apply(scores, noise, sigma, number)
    return indicators


class _PerturbedTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, noise: Tensor, sigma: float, number: int) -> Tensor:
        best = hard_top_k(scores[:, None] + sigma * noise, number)
        one_hot = functional.one_hot(best, scores.shape[-1]).to(scores.dtype)  # [n, draws, k, P]
        ctx.save_for_backward(torch.einsum("ndkp,ndp->nkp", one_hot, noise.to(scores.dtype)) / (noise.shape[1] * sigma))
        return one_hot.mean(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return (grads[0] * slope).sum(1), None, None, None


def _cosines_with_first(tokens: Tensor) -> Tensor:
    """The cosines float32 [c, F, P] of the tokens [c, F, P, D] of each frame with its token 0; 0 for a token of 0."""
    first = functional.normalize(tokens[:, :, 0], dim=-1)
    columns = first.flatten(0, 1).unsqueeze(-1).expand(-1, -1, _FEWEST_COLUMNS)
    products = torch.bmm(tokens.flatten(0, 1), columns)[..., 0].view(tokens.shape[:-1])
    cosines: Tensor = products / torch.linalg.vector_norm(tokens, dim=-1).clamp_min(_SMALLEST_NORM)
    return cosines


def _run(layers: nn.Sequential, hidden: Tensor) -> Tensor:
    """The layers one after the other, products in one fixed shape."""
    for layer in layers:
        hidden = linear(hidden, layer.weight) if isinstance(layer, nn.Linear) else layer(hidden)
    return hidden
