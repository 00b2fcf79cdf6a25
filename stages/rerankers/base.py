"""What a reranker is: it gets queries, each with ALL its candidates at once, and scores every candidate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from index_store.records import ShapeError


@dataclass(frozen=True, slots=True, eq=False)
class QueryBatch:
    """The features of B queries, raw (not of unit length), in the joint space of width D."""

    sentence: Tensor
    """float32 [B, D]."""
    words: Tensor
    """float32 [B, W, D]."""
    word_mask: Tensor
    """bool [B, W], True = start, word or end of text."""

    def __post_init__(self) -> None:
        """Check shapes and dtypes."""
        _expect("sentence", self.sentence, (None, None), (torch.float32,))
        size, width = self.sentence.shape
        _expect("words", self.words, (size, None, width), (torch.float32,))
        _expect("word_mask", self.word_mask, (size, self.words.shape[1]), (torch.bool,))

    def __len__(self) -> int:
        """B."""
        return len(self.sentence)

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

    def __post_init__(self) -> None:
        """Check shapes and dtypes."""
        _expect("tokens", self.tokens, (None, None, None, None), (torch.float16, torch.int8, torch.float32))
        num_videos, num_frames, num_tokens, _ = self.tokens.shape
        _expect("frame_mask", self.frame_mask, (num_videos, num_frames), (torch.bool,))
        if (self.tokens.dtype == torch.int8) != (self.scales is not None):
            raise ShapeError("scales must be given for int8 tokens and only for them")
        if self.scales is not None:
            _expect("scales", self.scales, (num_videos, num_frames, num_tokens), (torch.float32,))
        _expect("index", self.index, (None, None), (torch.int64,))
        _expect("broad", self.broad, tuple(self.index.shape), (torch.float32,))

    def __repr__(self) -> str:
        """Shapes and dtype, not the numbers."""
        return f"CandidateBatch(tokens={self.tokens.dtype}{list(self.tokens.shape)}, index={list(self.index.shape)})"

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


class BroadReranker:
    """Leaves the order of the broad view as it is: what every focused view is compared with."""

    name = "broad"

    def rank(self, queries: QueryBatch, candidates: CandidateBatch) -> Tensor:
        """The broad scores float32 [B, K], -inf where there is no candidate."""
        return candidates.broad.masked_fill(~candidates.is_candidate, -torch.inf)


def _expect(name: str, tensor: Tensor, shape: tuple[int | None, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise ShapeError unless ``tensor`` has this shape (None = any size) and one of these dtypes."""
    fits = tensor.ndim == len(shape) and all(
        want in (None, size) for want, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype not in dtypes:
        raise ShapeError(f"{name} is {tensor.dtype}{list(tensor.shape)}, expected {dtypes}{list(shape)}")
