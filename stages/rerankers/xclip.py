"""X-CLIP (Ma et al., ACM MM 2022): contrast at several grains, and attention over the similarity matrix.

Without weights its matrices are the identity and there is no temporal transformer, which is where its training starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stages.rerankers.base import QueryBatch
from stages.rerankers.fixed_shape import COLUMNS, ROWS, linear, products
from stages.rerankers.matrices import TEMPERATURE, aggregate_over, identity
from stages.rerankers.pairwise import PairwiseReranker, Shared
from stages.rerankers.temporal import NUM_POSITIONS, TemporalHead, mean_direction, temporal_sizes, without_padding
from stages.rerankers.words import SentenceAndWords, TextsByLength

_SMALLEST_NORM = 1e-12
_COLUMNS = 8 * COLUMNS
"""Frames and videos that are looked at together."""
_ROWS = 8 * ROWS
"""Words of texts of one length that go on together."""


@dataclass(frozen=True, slots=True, eq=False)
class XClipVideos:
    """What does not depend on the query, of c videos: matrices of weights are already multiplied into it."""

    for_words: Tensor
    """float32 [c, F + 1, D], what words meet: the frames B f, anything finite where padding, and the video v."""
    for_sentence: Tensor
    """float32 [c, F + 1, D], what sentences meet: the frames f and the video G v."""
    frame_mask: Tensor
    """bool [c, F], True = takes part."""

    def __getitem__(self, rows: slice | Tensor) -> XClipVideos:
        """Some of the videos."""
        for_words = self.for_words[rows]
        same = self.for_words is self.for_sentence
        return XClipVideos(for_words, for_words if same else self.for_sentence[rows], self.frame_mask[rows])


@dataclass(frozen=True, slots=True, eq=False)
class XClipTerms:
    """The similarities, float32 [Q, c] each, times the logit scale."""

    video_sentence: Tensor
    video_word: Tensor
    sentence_frame: Tensor
    words_first: Tensor
    """The half of frame_word that gathers words, then frames."""
    frames_first: Tensor
    """Its other half."""

    @property
    def frame_word(self) -> Tensor:
        """The fourth similarity."""
        return self.words_first + self.frames_first

    def mean(self) -> Tensor:
        """X-CLIP's score."""
        return (self.video_sentence + self.video_word + self.sentence_frame + self.frame_word) / 4


@dataclass(frozen=True, slots=True, eq=False)
class _Asking:
    """Q texts as they meet some videos after the other."""

    texts: TextsByLength
    rows: Tensor
    """float32 [R + Q, D]: the words, then the sentences by length."""

    @staticmethod
    def of(texts: SentenceAndWords) -> _Asking:
        by_length = TextsByLength(texts.word_mask)
        return _Asking(by_length, torch.cat([by_length.pack(texts.words), texts.sentence[by_length.order]]))

    def similarities(self, videos: XClipVideos) -> tuple[Tensor, Tensor]:
        """Of words and sentences with what they meet, [R, F + 1, c] and [Q, F + 1, c], in units of 0.01."""
        number = self.rows.shape[0] - self.texts.order.shape[0]
        if videos.for_words is videos.for_sentence:
            found = _similarities(self.rows, videos.for_words)
            return found[:number], found[number:]
        words, sentences = self.rows[:number], self.rows[number:]
        return _similarities(words, videos.for_words), _similarities(sentences, videos.for_sentence)


class XClipHead(TemporalHead):
    """The mean of four similarities, each a sum of cosines weighted by themselves.

    With t, w, f the unit-length sentence, words and frames, v the mean direction of the frames after the temporal
    transformer and A(x; M) = sum_j (softmax(x / 0.01) M)_j x_j:

        video_sentence = s t G v
        video_word     = s A(w.v; M_1)                                    over the words
        sentence_frame = s A(t.f; M_2)                                    over the frames
        frame_word     = s (A(A(C; M_3); M_4) + A(A(C; M_5); M_6)) / 2    with C = w B f: words first, then frames,
                                                                          and frames first, then words

    Padding takes part in nothing, unless ``official`` asks for the sums of the released code, which have no mask.
    """

    name = "x-clip"
    sees_patches = False
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
        official: bool = False,
    ) -> None:
        """D; the temporal transformer; W and F of the matrices of weights, 0 for none: then they are the identity."""
        super().__init__(width, num_layers, num_heads, num_positions)
        self.official = official
        has_matrices = num_words > 0 and num_frames > 0
        self.global_mat_weight = identity(width if has_matrices else 0)
        self.local_mat_weight = identity(width if has_matrices else 0)
        self.word_logit_weight = identity(num_words)
        self.word_mat_weight = identity(num_words)
        self.word_mat_weight2 = identity(num_words)
        self.frame_logit_weight = identity(num_frames)
        self.frame_mat_weight = identity(num_frames)
        self.frame_mat_weight2 = identity(num_frames)

    @classmethod
    def of_state(
        cls, state: Mapping[str, Tensor], num_heads: int | None = None, *, official: bool = False
    ) -> XClipHead:
        """With the weights of a released checkpoint, the image-text model's left out and ``clip.`` taken away."""
        sizes = {"num_words": len(state["word_logit_weight"]), "num_frames": len(state["frame_logit_weight"])}
        sizes |= {"width": len(state["global_mat_weight"]), **temporal_sizes(state)}
        head = cls(num_heads=num_heads, official=official, **sizes)
        head.load_state_dict(dict(state))
        return head

    def texts(self, queries: QueryBatch) -> SentenceAndWords:
        """Sentences and words of length 1 / 0.01: their similarities are in units of the temperature."""
        mask = torch.ones_like(queries.word_mask) if self.official else queries.word_mask
        return SentenceAndWords(_directions(queries.sentence), _directions(queries.words), mask)

    def videos(self, tokens: Tensor, frame_mask: Tensor) -> XClipVideos:
        """Frames and video as words and sentences meet them."""
        frames = self.padded(tokens, frame_mask)[:, :, 0]
        raw = frames if self.official else without_padding(frames, frame_mask)
        frames = normalize(raw, dim=-1)
        contextual = frames if self.transformerClip is None else normalize(self.temporal(raw, frame_mask), dim=-1)
        pooled = mean_direction(contextual, frame_mask).unsqueeze(1)
        taking_part = torch.ones_like(frame_mask) if self.official else frame_mask
        for_words = for_sentence = torch.cat([frames, pooled], 1)
        if self.local_mat_weight is not None and self.global_mat_weight is not None:
            for_words = torch.cat([linear(frames, self.local_mat_weight), pooled], 1)
            for_sentence = torch.cat([frames, linear(pooled, self.global_mat_weight)], 1)
        return XClipVideos(for_words, for_sentence, taking_part)

    def score(self, texts: SentenceAndWords, videos: XClipVideos) -> Tensor:
        """Scores float32 [c, Q] of the texts [1, Q, ...] with every video."""
        asking = _Asking.of(texts[0])
        step = max(1, _COLUMNS // videos.for_words.shape[1])
        parts = [
            self._terms(asking, videos[start : start + step]).mean()
            for start in range(0, videos.frame_mask.shape[0], step)
        ]
        return asking.texts.in_order(torch.cat(parts, 1)).T

    def terms(self, texts: SentenceAndWords, videos: XClipVideos) -> XClipTerms:
        """The four similarities of Q texts with c videos."""
        asking = _Asking.of(texts)
        found = self._terms(asking, videos)
        return XClipTerms(*(asking.texts.in_order(getattr(found, field.name)) for field in fields(found)))

    def _terms(self, asking: _Asking, videos: XClipVideos) -> XClipTerms:
        """Those of the texts by length."""
        mask = None if bool(videos.frame_mask.all()) else videos.frame_mask.T
        words, sentences = asking.similarities(videos)
        groups = asking.texts.groups(_ROWS)
        by_words = zip(*(self._by_words(group.of(words), mask) for group in groups), strict=True)
        video_word, by_frame, frames_first = (torch.cat(of_groups) for of_groups in by_words)
        terms = (
            sentences[:, -1],
            video_word,
            aggregate_over(1, sentences[:, :-1], mask, self.frame_logit_weight),
            aggregate_over(1, by_frame, mask, self.frame_mat_weight2) / 2,
            frames_first / 2,
        )
        scale = TEMPERATURE * self.logit_scale.exp()
        return XClipTerms(*(scale * term for term in terms))

    def _by_words(self, found: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """What the words of n texts of one length make of float32 [n, W, F + 1, c], in units of 0.01.

        video_word [n, c], each frame's similarity [n, F, c], and the half of frame_word that gathers frames first,
        times 2, [n, c]; mask bool [F, c], True = takes part.
        """
        by_word = aggregate_over(2, found[:, :, :-1], mask, self.frame_mat_weight)
        frames_first = aggregate_over(1, by_word, matrix=self.word_mat_weight2)
        if self.word_mat_weight is None:
            by_text = aggregate_over(1, found)
            return by_text[:, -1], by_text[:, :-1], frames_first
        by_frame = aggregate_over(1, found[:, :, :-1], matrix=self.word_mat_weight)
        return aggregate_over(1, found[:, :, -1], matrix=self.word_logit_weight), by_frame, frames_first


class XClipReranker(PairwiseReranker):
    """X-CLIP as a reranker; without a head, its zero-shot form."""

    def __init__(self, head: XClipHead | None = None) -> None:
        super().__init__(head or XClipHead(), Shared(num_queries=128))


def _similarities(rows: Tensor, videos: Tensor) -> Tensor:
    """Of rows [R, D] with what they meet [c, N, D]: [R, N, c], videos last: what is done to one is done to many."""
    columns = videos.transpose(0, 1)
    return products(rows, columns.flatten(0, 1)).view(rows.shape[0], *columns.shape[:2])


def _directions(raw: Tensor) -> Tensor:
    """Of length 1 / 0.01."""
    lengths: Tensor = torch.linalg.vector_norm(raw, dim=-1, keepdim=True)
    return raw / (lengths.clamp_min(_SMALLEST_NORM) * TEMPERATURE)
