"""X-CLIP (Ma et al., ACM MM 2022): contrast at several grains, and attention over the similarity matrix.

Without weights its matrices are the identity and there is no temporal transformer, which is where its training starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stages.rerankers.base import QueryBatch
from stages.rerankers.fixed_shape import linear, products
from stages.rerankers.matrices import aggregate, identity
from stages.rerankers.pairwise import PairwiseReranker, Shared
from stages.rerankers.temporal import NUM_POSITIONS, TemporalHead, pool, temporal_sizes
from stages.rerankers.words import RealWords


@dataclass(frozen=True, slots=True, eq=False)
class XClipTexts:
    """What does not depend on the video, of T texts; the axes of T may have any shape."""

    sentence: Tensor
    """float32 [T, D], unit length."""
    words: Tensor
    """float32 [T, W, D], unit length."""
    word_mask: Tensor
    """bool [T, W], True = takes part."""

    def __getitem__(self, rows: int | slice | Tensor) -> XClipTexts:
        """Some of the texts."""
        return XClipTexts(self.sentence[rows], self.words[rows], self.word_mask[rows])


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

    def texts(self, queries: QueryBatch) -> XClipTexts:
        """Unit-length sentences and words."""
        mask = torch.ones_like(queries.word_mask) if self.official else queries.word_mask
        return XClipTexts(normalize(queries.sentence, dim=-1), normalize(queries.words, dim=-1), mask)

    def videos(self, tokens: Tensor, frame_mask: Tensor) -> XClipVideos:
        """Frames and video as words and sentences meet them."""
        raw = tokens[:, :, 0]
        if not self.official:
            raw = raw.masked_fill(~frame_mask.unsqueeze(-1), 0.0)
        frames, pooled = normalize(raw, dim=-1), pool(self.temporal(raw, frame_mask), frame_mask).unsqueeze(1)
        taking_part = torch.ones_like(frame_mask) if self.official else frame_mask
        for_words = for_sentence = torch.cat([frames, pooled], 1)
        if self.local_mat_weight is not None and self.global_mat_weight is not None:
            for_words = torch.cat([linear(frames, self.local_mat_weight), pooled], 1)
            for_sentence = torch.cat([frames, linear(pooled, self.global_mat_weight)], 1)
        return XClipVideos(for_words, for_sentence, taking_part)

    def score(self, texts: XClipTexts, videos: XClipVideos) -> Tensor:
        """Scores float32 [c, Q] of the texts [1, Q, ...] with every video."""
        return self.terms(texts[0], videos).mean().T

    def terms(self, texts: XClipTexts, videos: XClipVideos) -> XClipTerms:
        """The four similarities of Q texts with c videos."""
        scale = self.logit_scale.exp()
        words = RealWords(texts.word_mask)
        cosines = _cosines(texts.words[texts.word_mask], videos.for_words)  # [R, c, F + 1], R words in all
        local, word_video = cosines[..., :-1].contiguous(), cosines[..., -1]
        sentence = _cosines(texts.sentence, videos.for_sentence)  # [Q, c, F + 1]
        frame_mask = None if bool(videos.frame_mask.all()) else videos.frame_mask
        by_frame = _over_words(words, local, self.word_mat_weight)  # [Q, c, F]
        by_word = aggregate(local, frame_mask, self.frame_mat_weight)  # [R, c]
        from_frames = aggregate(by_frame, frame_mask, self.frame_mat_weight2)
        from_words = _over_words(words, by_word, self.word_mat_weight2)
        return XClipTerms(
            video_sentence=scale * sentence[..., -1],
            video_word=scale * _over_words(words, word_video, self.word_logit_weight),
            sentence_frame=scale * aggregate(sentence[..., :-1], frame_mask, self.frame_logit_weight),
            words_first=scale * from_frames / 2,
            frames_first=scale * from_words / 2,
        )


class XClipReranker(PairwiseReranker):
    """X-CLIP as a reranker; without a head, its zero-shot form."""

    def __init__(self, head: XClipHead | None = None) -> None:
        super().__init__(head or XClipHead(), Shared(num_queries=32, num_videos=32))


def _over_words(words: RealWords, packed: Tensor, matrix: Tensor | None) -> Tensor:
    """A over the words of each text: [R, ...] -> [Q, ...]."""
    return aggregate(words.unpack(packed), words.mask.view(*words.mask.shape, *[1] * (packed.ndim - 1)), matrix, dim=1)


def _cosines(rows: Tensor, videos: Tensor) -> Tensor:
    """Of rows [R, D] with what they meet [c, N, D], unit length: [R, c, N]."""
    return products(rows, videos.flatten(0, 1)).view(len(rows), *videos.shape[:2])
