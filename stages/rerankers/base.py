"""What a reranker is: it gets queries, each with ALL its candidates at once, and scores every candidate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from index_store.records import ShapeError

if TYPE_CHECKING:
    from stages.models.clip import TextFeatures


@dataclass(frozen=True, slots=True, eq=False)
class QueryBatch:
    """The features of B queries, raw (not of unit length), in the joint space of width D."""

    sentence: Tensor
    """float32 [B, D]."""
    words: Tensor
    """float32 [B, W, D]."""
    word_mask: Tensor
    """bool [B, W], True = start, word or end of text."""
    indicators: Tensor | None = None
    """float32 [B, M, D], the query indicators I_1..I_M of a model that has some; I_1 is the sentence."""

    def __post_init__(self) -> None:
        """Check shapes and dtypes."""
        _expect("sentence", self.sentence, (None, None), (torch.float32,))
        size, width = self.sentence.shape
        _expect("words", self.words, (size, None, width), (torch.float32,))
        _expect("word_mask", self.word_mask, (size, self.words.shape[1]), (torch.bool,))
        if self.indicators is not None:
            _expect("indicators", self.indicators, (size, None, width), (torch.float32,))

    @staticmethod
    def of(features: TextFeatures) -> QueryBatch:
        """The features of texts as a text encoder gives them."""
        return QueryBatch(features.sentence, features.words, features.word_mask, features.indicators)

    def __len__(self) -> int:
        """B."""
        return len(self.sentence)

    def __getitem__(self, rows: slice | Tensor) -> QueryBatch:
        """Some of the queries: a slice, or int64 [n] rows, which may repeat."""
        return self._each(lambda part: part[rows])

    def to(self, device: torch.device) -> QueryBatch:
        """The same on ``device``."""
        return self if self.sentence.device == device else self._each(lambda part: part.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> QueryBatch:
        indicators = None if self.indicators is None else change(self.indicators)
        return QueryBatch(change(self.sentence), change(self.words), change(self.word_mask), indicators)

    def __repr__(self) -> str:
        """The shape, not the numbers."""
        return f"QueryBatch(sentence={list(self.sentence.shape)}, words={self.words.shape[1]})"


@dataclass(frozen=True, slots=True, eq=False)
class CandidateBatch:
    """The K candidates of each of B queries. A video that several queries share is here once: U distinct videos."""

    tokens: Tensor
    """float16 or int8 [U, F, P, D], as stored: raw, row 0 of P is the frame embedding, the others are patches."""
    scales: Tensor | None
    """float32 [U, F, P] for int8 tokens: token = int8 value x scale; None for float16."""
    frame_mask: Tensor
    """bool [U, F], True = real frame; every video has one."""
    index: Tensor
    """int64 [B, K] on the CPU: which of the U videos the candidate is, -1 = no candidate."""
    broad: Tensor
    """float32 [B, K], the score of the broad view; anything where there is no candidate."""
    places: Tensor | None = None
    """uint8 or int16 [U, F, P] where a store keeps some patches and says which: the number of each token in its frame,
    0 = the frame embedding. Only TokenBinder looks at it."""

    def __post_init__(self) -> None:
        """Check shapes and dtypes."""
        _expect("tokens", self.tokens, (None, None, None, None), (torch.float16, torch.int8, torch.float32))
        num_videos, num_frames, num_tokens, _ = self.tokens.shape
        _expect("frame_mask", self.frame_mask, (num_videos, num_frames), (torch.bool,))
        if (self.tokens.dtype == torch.int8) != (self.scales is not None):
            raise ShapeError("scales must be given for int8 tokens and only for them")
        if self.scales is not None:
            _expect("scales", self.scales, (num_videos, num_frames, num_tokens), (torch.float32,))
        if self.places is not None:
            _expect("places", self.places, (num_videos, num_frames, num_tokens), (torch.uint8, torch.int16))
        _expect("index", self.index, (None, None), (torch.int64,))
        _expect("broad", self.broad, tuple(self.index.shape), (torch.float32,))

    def __repr__(self) -> str:
        """Shapes and dtype, not the numbers."""
        return f"CandidateBatch(tokens={self.tokens.dtype}{list(self.tokens.shape)}, index={list(self.index.shape)})"

    def part(self, rows: slice, index: Tensor, broad: Tensor) -> CandidateBatch:
        """Some of the videos, as candidates of other queries."""
        scales = None if self.scales is None else self.scales[rows]
        places = None if self.places is None else self.places[rows]
        return CandidateBatch(self.tokens[rows], scales, self.frame_mask[rows], index, broad, places)

    @property
    def is_candidate(self) -> Tensor:
        """Mask bool [B, K] on the device of ``broad``: False where there is no candidate."""
        return (self.index >= 0).to(self.broad.device)


class Reranker(Protocol):
    """Scores the candidates of a query, knowing all of them."""

    @property
    def name(self) -> str:
        """What ``--reranker`` takes and the report shows."""
        ...

    def rank(self, queries: QueryBatch, candidates: CandidateBatch) -> Tensor:
        """The scores float32 [B, K], larger is better, -inf where there is no candidate.

        A query's scores depend on its own features and candidates only: not on the other queries of the batch, and not
        on the order of its candidates (the scores move with them).
        """
        ...

    def rank_texts(self, queries: QueryBatch, candidates: CandidateBatch) -> Tensor:
        """Roles turned, for retrieval from video to text: each of V videos has K candidate texts.

        queries: the T distinct texts. candidates.tokens [V, ...]: row v is video v; candidates.index int64 [V, K] on
        the CPU: row of ``queries``, -1 = no candidate; candidates.broad float32 [V, K]. The scores float32 [V, K],
        larger is better, -inf where there is no candidate. What a video's scores depend on is as in ``rank``.
        """
        ...


class BroadReranker:
    """Leaves the order of the broad view as it is: what every focused view is compared with."""

    name = "broad"

    def rank(self, queries: QueryBatch, candidates: CandidateBatch) -> Tensor:
        """The broad scores float32 [B, K], -inf where there is no candidate."""
        return candidates.broad.masked_fill(~candidates.is_candidate, -torch.inf)

    def rank_texts(self, queries: QueryBatch, candidates: CandidateBatch) -> Tensor:
        """The broad scores float32 [V, K], -inf where there is no candidate."""
        return self.rank(queries, candidates)


def _expect(name: str, tensor: Tensor, shape: tuple[int | None, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise ShapeError unless ``tensor`` has this shape (None = any size) and one of these dtypes."""
    fits = tensor.ndim == len(shape) and all(
        want in (None, size) for want, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype not in dtypes:
        raise ShapeError(f"{name} is {tensor.dtype}{list(tensor.shape)}, expected {dtypes}{list(shape)}")
