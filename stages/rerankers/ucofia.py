"""UCoFiA (Wang et al., ICCV 2023): video against sentence, frames against sentence, selected patches against words.

The token shift, which its image tower has from TS2-Net, is in ``stages.models.token_shift``; the biases of its
evaluation, one for each of the three similarities, are in ``stages.normalise``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stages.rerankers.base import QueryBatch
from stages.rerankers.fixed_shape import COLUMNS, ROWS, linear, products
from stages.rerankers.matrices import TEMPERATURE, fitted, identity
from stages.rerankers.pairwise import PairwiseReranker, Shared
from stages.rerankers.selection import NUM_PATCHES, PredictorA, PredictorB, TokenSelector
from stages.rerankers.sharpened import mixing_of, over_last, over_words, real
from stages.rerankers.temporal import NUM_POSITIONS, TemporalHead, pool, temporal_sizes
from stages.rerankers.words import SentenceAndWords, TextsByLength

Term = Literal["video_sentence", "frame_sentence", "patch_word"]
TERMS: tuple[Term, ...] = ("video_sentence", "frame_sentence", "patch_word")

_COLUMNS, _ROWS = 8 * COLUMNS, 8 * ROWS
"""Tokens, and words, that meet together; few words meet as many more tokens. Words of one text length then go on
together, up to as many: smaller parts would stay in the nearest cache, but the calls for them cost more."""
_PREDICTOR = "visual_token_selector.score_predictor.in_conv.1.weight"
_UNUSED = frozenset({"word_logit_weight", "frame_mat_weight", "frame_mat_weight2", "word_mat_weight_for_pixel"})
"""Parameters of the released checkpoints that no formula has."""


@dataclass(frozen=True, slots=True, eq=False)
class UcofiaVideos:
    """What does not depend on the query, of c videos: matrices of weights are already multiplied into it."""

    for_sentence: Tensor
    """float32 [c, F + 1, D], what sentences meet: the unit-length frames and the video v G1 G^T."""
    for_words: Tensor
    """float32 [c, F, E, D], what words meet: [CLS] and the selected patches of each frame, times L1."""
    frame_mask: Tensor
    """bool [c, F], True = takes part."""

    def __getitem__(self, rows: slice | Tensor) -> UcofiaVideos:
        """Some of the videos."""
        return UcofiaVideos(self.for_sentence[rows], self.for_words[rows], self.frame_mask[rows])


class UcofiaHead(TemporalHead):
    """The mean of three similarities at three grains.

    With t, w, f the unit-length sentence, words and frames, v the mean direction of the frames after the temporal
    transformer, p the selected tokens of all frames as they are, and the twice sharpened sum
    B(x; M) = sum_j softmax(softmax(x / 0.01) M / 0.01)_j x_j:

        video_sentence = s (t G) . (v G1)
        frame_sentence = s B(t.f; M_1)                                    over the frames
        patch_word     = (B(B(C; M_2); M_3) + B(B(C; M_4); M_5)) / 2      with C = (w L) . (p L1): words first, then
                                                                          patches, and patches first, then words

    patch_word has no logit scale: the patches' own length, about 10, stands for it. That length is a property of
    OpenAI's weights, so the zero-shot head, without any matrices, takes patches of unit length and the scale s.

    Padding takes part in nothing, unless ``official`` asks for the sums of the released code. Those have no mask but
    the frames' in v, and in evaluation (``eval()``) they leave L1 out, though training (``train()``) has it.
    """

    name = "ucofia"
    sees_patches = True
    sees_lengths = True

    def __init__(
        self,
        width: int = 0,
        num_layers: int = 0,
        num_heads: int | None = None,
        num_positions: int = NUM_POSITIONS,
        *,
        num_words: int = 0,
        num_frames: int = 0,
        num_patches: int = NUM_PATCHES,
        predictor: PredictorA | PredictorB | None = None,
        official: bool = False,
    ) -> None:
        """D; the temporal transformer; W and F of the matrices of weights, 0 for none: then they are the identity.

        num_patches: k, patches kept of a frame; without a predictor they are selected as ``TokenSelector`` says.
        """
        super().__init__(width, num_layers, num_heads, num_positions)
        self.official = official
        self.visual_token_selector = TokenSelector(predictor, num_patches)
        self._has_matrices = num_words > 0 and num_frames > 0
        num_tokens = (1 + num_patches) * num_frames
        self.global_mat_weight = identity(width if self._has_matrices else 0)
        self.global_mat_weight_1 = identity(width if self._has_matrices else 0)
        self.local_mat_weight = identity(width if self._has_matrices else 0)
        self.local_mat_weight1 = identity(width if self._has_matrices else 0)
        self.frame_logit_weight = identity(num_frames)
        self.word_mat_weight = identity(num_words)
        self.word_mat_weight2 = identity(num_words)
        self.pixel_mat_weight = identity(num_tokens)
        self.pixel_mat_weight2 = identity(num_tokens)

    @classmethod
    def of_state(
        cls, state: Mapping[str, Tensor], num_heads: int | None = None, *, official: bool = False
    ) -> UcofiaHead:
        """With the weights of a released checkpoint, the image-text model's left out and ``clip.`` taken away.

        The shape of its predictor says which of the two it is.
        """
        width, num_frames = len(state["global_mat_weight"]), len(state["frame_logit_weight"])
        is_first = state[_PREDICTOR].shape[1] == width
        sizes = {"width": width, "num_words": len(state["word_mat_weight"]), "num_frames": num_frames}
        sizes |= {"num_patches": len(state["pixel_mat_weight"]) // num_frames - 1, **temporal_sizes(state)}
        predictor = PredictorA(width) if is_first else PredictorB(width)
        head = cls(num_heads=num_heads, predictor=predictor, official=official, **sizes)
        head.load_state_dict({name: weight for name, weight in state.items() if name not in _UNUSED})
        return head

    def texts(self, queries: QueryBatch) -> SentenceAndWords:
        """Unit-length sentences and words; the words' matrix is applied here: a text has fewer than a video patches."""
        mask = torch.ones_like(queries.word_mask) if self.official else queries.word_mask
        mask = mask | (torch.arange(mask.shape[1], device=mask.device) == 0) & ~mask.any(1, keepdim=True)
        words = normalize(queries.words, dim=-1)
        if self.local_mat_weight is not None:
            words = words.masked_scatter(mask.unsqueeze(-1), linear(words[mask], self.local_mat_weight.T))
        return SentenceAndWords(normalize(queries.sentence, dim=-1), words, mask)

    def videos(self, tokens: Tensor, frame_mask: Tensor, noise: Tensor | None = None) -> UcofiaVideos:
        """Frames, video and patches as texts meet them. ``noise``: that of ``TokenSelector``."""
        tokens = self.padded(tokens, frame_mask)
        selected = self.visual_token_selector(tokens, None if self.official else frame_mask, noise)
        return self.of_selected(tokens[:, :, 0], selected, frame_mask)

    def of_selected(self, frames: Tensor, selected: Tensor, frame_mask: Tensor) -> UcofiaVideos:
        """The same of frames float32 [c, F, D] and selected tokens [c, F, E, D], raw; row 0 of E = [CLS]."""
        if not self.official:
            frames = frames.masked_fill(~frame_mask.unsqueeze(-1), 0.0)
            selected = selected.masked_fill(~frame_mask[..., None, None], 0.0)
        video = pool(self.temporal(frames, frame_mask), frame_mask).unsqueeze(1)
        if self.global_mat_weight is not None and self.global_mat_weight_1 is not None:
            video = linear(linear(video, self.global_mat_weight_1.T), self.global_mat_weight)
        if not self._has_matrices:
            selected = normalize(selected, dim=-1)
        if self.local_mat_weight1 is not None and (self.training or not self.official):
            selected = linear(selected, self.local_mat_weight1.T)
        taking_part = torch.ones_like(frame_mask) if self.official else frame_mask
        return UcofiaVideos(torch.cat([normalize(frames, dim=-1), video], 1), selected, taking_part)

    def score(self, texts: SentenceAndWords, videos: UcofiaVideos) -> Tensor:
        """Scores float32 [c, Q] of the texts [1, Q, ...] with every video."""
        by_sentence = self._by_sentence(texts[0], videos)
        return ((by_sentence[0] + by_sentence[1] + self._patch_word(texts[0], videos)) / 3).T

    def term(self, name: Term, texts: SentenceAndWords, videos: UcofiaVideos) -> Tensor:
        """One of the similarities of Q texts with c videos, float32 [Q, c]."""
        if name == "patch_word":
            return self._patch_word(texts, videos)
        return self._by_sentence(texts, videos)[TERMS.index(name)]

    def _by_sentence(self, texts: SentenceAndWords, videos: UcofiaVideos) -> tuple[Tensor, Tensor]:
        """The first two of TERMS, [Q, c] each."""
        logits = _products(texts.sentence / TEMPERATURE, videos.for_sentence)  # [Q, c, F + 1]
        mixing = mixing_of(self.frame_logit_weight, logits.shape[-1] - 1)
        of_frames = over_last(logits[..., :-1], real(videos.frame_mask), mixing)
        scale = self.logit_scale.exp() * TEMPERATURE
        return scale * logits[..., -1], scale * of_frames

    def _patch_word(self, texts: SentenceAndWords, videos: UcofiaVideos) -> Tensor:
        """The third, [Q, c]; some videos at a time."""
        words, tokens = TextsByLength(texts.word_mask), videos.for_words.flatten(1, 2)
        packed, groups = words.pack(texts.words) / TEMPERATURE, list(words.groups(_ROWS))
        mask = real(videos.frame_mask)
        if mask is not None:
            mask = mask.repeat_interleave(videos.for_words.shape[2], 1)
        mixings = self._pixel_mixings(*videos.for_words.shape[1:3])
        step, parts = max(1, _COLUMNS * max(1, _ROWS // max(1, packed.shape[0])) // tokens.shape[1]), []
        for start in range(0, tokens.shape[0], step):
            part = slice(start, start + step)
            logits = _products(packed, tokens[part])  # [R, c, N]
            part_mask = None if mask is None else real(mask[part])
            parts.append(torch.cat([self._both_orders(group.of(logits), part_mask, mixings) for group in groups]))
        found = TEMPERATURE / 2 * words.in_order(torch.cat(parts, 1))
        return found if self._has_matrices else self.logit_scale.exp() * found

    def _both_orders(self, logits: Tensor, mask: Tensor | None, mixings: tuple[Tensor | None, Tensor | None]) -> Tensor:
        """The sum of both, float32 [n, c], of n texts of one length, whose similarities are [n, W, c, N], / 0.01.

        mask bool [c, N], True = takes part; mixings: of the tokens, first and last.
        """
        matrices = self.word_mat_weight, self.word_mat_weight2
        first, last = (mixing_of(matrix, logits.shape[1]) for matrix in matrices)
        by_word = over_last(logits, mask, mixings[0])  # [n, W, c]
        by_patch = over_words(logits, first)  # [n, c, N]
        return over_last(by_patch, mask, mixings[1]) + over_words(by_word, last)

    def _pixel_mixings(self, num_frames: int, per_frame: int) -> tuple[Tensor | None, Tensor | None]:
        first, last = (
            mixing_of(self._for_patches(matrix, num_frames, per_frame), num_frames * per_frame)
            for matrix in (self.pixel_mat_weight, self.pixel_mat_weight2)
        )
        return first, last

    def _for_patches(self, matrix: Tensor | None, num_frames: int, per_frame: int) -> Tensor | None:
        """A matrix over the 1 + k tokens of each frame for this many frames, where only E of the tokens are there."""
        if matrix is None:
            return None
        full = 1 + self.visual_token_selector.num_patches
        matrix = fitted(matrix, num_frames * full)
        if per_frame == full:
            return matrix
        rows = (torch.arange(num_frames)[:, None] * full + torch.arange(per_frame)).flatten()
        return matrix[rows][:, rows]


class _OneTerm:
    """One of the three similarities as a method of its own."""

    sees_patches = True
    sees_lengths = True

    def __init__(self, head: UcofiaHead, term: Term) -> None:
        self.name = f"{head.name} {term}"
        self._head, self._term = head, term
        self.texts, self.videos = head.texts, head.videos

    @property
    def logit_scale(self) -> Tensor:
        """The head's."""
        return self._head.logit_scale

    def score(self, texts: SentenceAndWords, videos: UcofiaVideos) -> Tensor:
        """Scores float32 [c, Q] of the texts [1, Q, ...] with every video."""
        return self._head.term(self._term, texts[0], videos).T


class UcofiaReranker(PairwiseReranker):
    """UCoFiA as a reranker; without a head, its zero-shot form."""

    def __init__(self, head: UcofiaHead | None = None) -> None:
        head = head or UcofiaHead()
        shared = Shared(num_queries=128)
        super().__init__(head, shared)
        self.parts = tuple(PairwiseReranker(_OneTerm(head, term), shared) for term in TERMS)
        """Rerankers by one similarity each, of which this one's score is the mean."""


def _products(rows: Tensor, videos: Tensor) -> Tensor:
    """Of rows float32 [R, D] and what they meet in videos [c, N, D]: [R, c, N]."""
    return products(rows, videos.flatten(0, 1)).view(len(rows), *videos.shape[:2])
