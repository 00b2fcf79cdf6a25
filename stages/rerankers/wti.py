"""DRL's interactions (Wang et al., 2022): token-wise (TI), weighted token-wise (WTI) and the dot product (DP).

Without weights WTI weighs all words alike and all frames alike: that is TI.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from stages.rerankers.base import QueryBatch
from stages.rerankers.clip4clip import Clip4ClipHead
from stages.rerankers.fixed_shape import COLUMNS, linear, products, softmax
from stages.rerankers.pairwise import PairwiseReranker, Shared
from stages.rerankers.temporal import NUM_POSITIONS, TemporalHead, temporal_sizes
from stages.rerankers.words import WordsByPlace

_COLUMNS = 2 * COLUMNS
"""Frames that are looked at together: what 32 texts have of them stays in the cache."""


@dataclass(frozen=True, slots=True, eq=False)
class WtiTokens:
    """The N words of each of n texts, or frames of each of n videos."""

    tokens: Tensor
    """float32 [n, N, D], unit length; anything finite where padding."""
    weights: Tensor
    """float32 [n, N], sum 1, 0 where padding."""
    mask: Tensor
    """bool [n, N], True = a word or a real frame."""

    def __getitem__(self, rows: int | slice | Tensor | None) -> WtiTokens:
        """Some of the texts or videos."""
        return WtiTokens(self.tokens[rows], self.weights[rows], self.mask[rows])


class WtiHead(TemporalHead):
    """Each word finds its frame and each frame its word; what they find is averaged with weights.

    With w and f the unit-length words and frames, R = w.f and weights a, b from small networks on the raw features:

        score = s (sum_w a_w max_f R + sum_f b_f max_w R) / 2

    Padding takes part in nothing. In the released code its R is 0, which a maximum may pick: so with ``official``.
    """

    name = "wti"
    sees_patches = False
    sees_lengths = True

    def __init__(
        self,
        width: int = 0,
        num_layers: int = 0,
        num_heads: int | None = None,
        num_positions: int = NUM_POSITIONS,
        *,
        weighted: bool = False,
        official: bool = False,
    ) -> None:
        """D; the temporal transformer; networks for the weights, or all alike."""
        super().__init__(width, num_layers, num_heads, num_positions)
        self.official = official
        self.text_weight_fc = _weight_network(width) if weighted else None
        self.video_weight_fc = _weight_network(width) if weighted else None

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], num_heads: int | None = None, *, official: bool = False) -> WtiHead:
        """With the weights of a released checkpoint, the image-text model's left out and ``clip.`` taken away."""
        weighted = "text_weight_fc.0.weight" in state
        sizes = {"width": state["text_weight_fc.0.weight"].shape[1]} if weighted else {}
        head = cls(**(sizes | temporal_sizes(state)), num_heads=num_heads, weighted=weighted, official=official)
        head.load_state_dict(dict(state))
        return head

    def texts(self, queries: QueryBatch) -> WtiTokens:
        """Words with their weights."""
        return _tokens(queries.words, queries.word_mask, self.text_weight_fc)

    def videos(self, tokens: Tensor, frame_mask: Tensor) -> WtiTokens:
        """Frames with their weights."""
        frames = tokens[:, :, 0].masked_fill(~frame_mask.unsqueeze(-1), 0.0)
        return _tokens(self.temporal(frames, frame_mask), frame_mask, self.video_weight_fc)

    def score(self, texts: WtiTokens, videos: WtiTokens) -> Tensor:
        """Scores float32 [c, Q] of the texts [1, Q, ...] with every video."""
        texts, step = texts[0], max(1, _COLUMNS // videos.mask.shape[1])
        words = WordsByPlace(texts.mask)
        packed, weights = words.pack(texts.tokens), words.pack(texts.weights).unsqueeze(-1)
        has_padding = ~texts.mask.all(1)[words.order]
        parts = [
            self._by_length(words, packed, weights, has_padding, videos[start : start + step])
            for start in range(0, len(videos.mask), step)
        ]
        return self.logit_scale.exp() * words.in_order(torch.cat(parts, 1)).T

    def _by_length(
        self, words: WordsByPlace, packed: Tensor, weights: Tensor, has_padding: Tensor, videos: WtiTokens
    ) -> Tensor:
        """[Q, c], the texts by length: their R words and weights [R, D], [R, 1], and whether they have padding [Q]."""
        nothing = 0.0 if self.official else -torch.inf
        found = products(packed, videos.tokens.flatten(0, 1)).view(-1, *videos.mask.shape)
        found = found.masked_fill(~videos.mask, nothing)  # [R, c, F]
        of_words = words.total(found.amax(-1) * weights)  # [Q, c]
        by_text = words.amax(found)  # [Q, c, F]
        if self.official:
            by_text = torch.where(has_padding[:, None, None], by_text.clamp_min(0.0), by_text)
        of_frames = (by_text.masked_fill(~videos.mask, 0.0) * videos.weights).sum(-1)
        return (of_words + of_frames) / 2


class DpHead(Clip4ClipHead):
    """The dot product: CLIP4Clip with the last word as the sentence."""

    name = "dp"

    def texts(self, queries: QueryBatch) -> Tensor:
        """Unit-length last words float32 [B, D]."""
        last = queries.word_mask.sum(1).clamp_min(1) - 1
        return normalize(queries.words[torch.arange(len(queries), device=last.device), last], dim=-1)


class WtiReranker(PairwiseReranker):
    """WTI as a reranker; without a head, TI."""

    def __init__(self, head: WtiHead | None = None) -> None:
        super().__init__(head or WtiHead(), Shared(num_queries=32))


def _weight_network(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))


def _tokens(raw: Tensor, mask: Tensor, network: nn.Sequential | None) -> WtiTokens:
    """From raw features float32 [n, N, D]; those where mask bool [n, N] is False may be anything."""
    real = raw[mask]
    logits = torch.zeros_like(real[:, 0]) if network is None else _through(network, real)
    everywhere = logits.new_full(mask.shape, -torch.inf).masked_scatter(mask, logits)
    unit = normalize(raw, dim=-1).masked_fill(~mask.unsqueeze(-1), 0.0)
    return WtiTokens(unit, _softmax(everywhere), mask)


def _through(network: nn.Sequential, raw: Tensor) -> Tensor:
    """[n, D] -> [n]."""
    first, relu, last = network
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    return linear(relu(linear(raw, first.weight, first.bias)), last.weight, last.bias).squeeze(-1)


def _softmax(logits: Tensor) -> Tensor:
    """Over the last axis of [n, N]; taken over the first of the transpose, where padding changes no bit."""
    return softmax(logits.T, 0).T
