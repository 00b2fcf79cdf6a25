"""Reranking by a score of each (text, video) pair: a method says what it prepares once and how a pair is scored."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from stages.rerankers.base import CandidateBatch, QueryBatch
from stages.rerankers.pairs import rank_texts_by_pairs
from stages.rerankers.visits import Block, blocks, shared_blocks, videos_per_block


class Rows(Protocol):
    """Something of several texts or videos, the first axis of all its tensors."""

    def __getitem__(self, rows: Any, /) -> Any:
        """That of some rows: a slice, or int64 rows of any shape, which takes the place of the first axis, or None."""
        ...


Texts = TypeVar("Texts", bound=Rows)
Videos = TypeVar("Videos", bound=Rows)


class PairScorer(Protocol[Texts, Videos]):
    """A method whose score of a pair depends on that text and that video only.

    What a row comes out as must not depend, to the last bit, on how many rows there are: products with a matrix of
    weights go through ``fixed_shape.linear``, products within a pair through ``torch.bmm``.
    """

    @property
    def name(self) -> str:
        """What ``--method`` takes and the report shows."""
        ...

    @property
    def sees_patches(self) -> bool:
        """False: ``videos`` gets the frame embeddings only, P = 1."""
        ...

    @property
    def sees_lengths(self) -> bool:
        """False: only the direction of each token counts, so int8 tokens come without their scales."""
        ...

    def texts(self, queries: QueryBatch, /) -> Texts:
        """What does not depend on the video, of each query."""
        ...

    def videos(self, tokens: Tensor, frame_mask: Tensor, /) -> Videos:
        """What does not depend on the query, of c videos; it may keep ``tokens`` and hold views of it.

        tokens float32 [c, F, P, D], raw, row 0 of P the frame embedding; frame_mask bool [c, F], True = real frame.
        Tokens of a frame that is padding may be anything, NaN too.
        """
        ...

    def score(self, texts: Texts, videos: Videos, /) -> Tensor:
        """Scores float32 [c, Q] of the texts [c, Q, ...] with the video of their row, or [1, Q, ...] with every one."""
        ...


@dataclass(frozen=True, slots=True)
class Shared:
    """Queries with the same candidates look at them together: for methods whose texts are as heavy as their videos.

    The scorer then gets texts [1, Q, ...] only, of any Q, and sees to the shapes of its products itself
    (``fixed_shape.products``).
    """

    num_queries: int
    """Q at most."""
    num_videos: int = 0
    """c at most; 0: all that they share, which the scorer cuts itself."""


class PairwiseReranker:
    """Gives every query's candidates the scores of a PairScorer, each video prepared once."""

    def __init__(self, scorer: PairScorer[Any, Any], shared: Shared | None = None) -> None:
        """By default each video is visited by a fixed number of queries."""
        self.scorer = scorer
        self._shared = shared

    @property
    def name(self) -> str:
        """The method's."""
        return self.scorer.name

    @torch.inference_mode()
    def rank(self, queries: QueryBatch, candidates: CandidateBatch) -> Tensor:
        """The scores float32 [B, K], -inf where there is no candidate."""
        scorer = self.scorer
        tokens = candidates.tokens if scorer.sees_patches else candidates.tokens[:, :, :1]
        device = tokens.device
        texts = scorer.texts((queries if self._shared else _with_nobody(queries)).to(device))
        scores = torch.full((candidates.index.numel() + 1,), -torch.inf, device=device)
        block_size = videos_per_block(math.prod(tokens.shape[1:]), device)
        if self._shared is not None:  # smaller blocks would cut visits short
            block_size = max(block_size, self._shared.num_videos)
        block_size = min(len(tokens), block_size)
        buffer = torch.empty(block_size, *tokens.shape[1:], device=device)
        for block in self._blocks(candidates.index, len(tokens), max(1, block_size), device):
            raw = buffer[: block.videos.stop - block.videos.start].copy_(tokens[block.videos])
            if candidates.scales is not None and scorer.sees_lengths:
                raw *= candidates.scales[block.videos, :, : raw.shape[2], None]
            videos = scorer.videos(raw, candidates.frame_mask[block.videos])
            for visit in block.visits:
                whole = isinstance(visit.videos, slice) and visit.videos == slice(0, len(raw))
                visited = videos if whole else videos[visit.videos]
                asking = texts[visit.queries]
                scores[visit.cells] = scorer.score(asking[None] if self._shared else asking, visited)
        return scores[:-1].view(candidates.index.shape)

    def rank_texts(self, queries: QueryBatch, candidates: CandidateBatch) -> Tensor:
        """The scores float32 [V, K] of the candidate texts of each video: those that ``rank`` gives the same pairs."""
        return rank_texts_by_pairs(self.rank, queries, candidates)

    def _blocks(self, index: Tensor, num_videos: int, block_size: int, device: torch.device) -> Iterator[Block]:
        if self._shared is None:
            return blocks(index, num_videos, block_size, device)
        sizes = self._shared.num_queries, self._shared.num_videos
        return shared_blocks(index, num_videos, block_size, device, *sizes)


def _with_nobody(queries: QueryBatch) -> QueryBatch:
    """The queries and one more, of zeros: who visits where there is no visitor."""
    return replace(
        queries,
        sentence=pad(queries.sentence, (0, 0, 0, 1)),
        words=pad(queries.words, (0, 0, 0, 0, 0, 1)),
        word_mask=pad(queries.word_mask, (0, 0, 0, 1), value=True),
        indicators=None if queries.indicators is None else pad(queries.indicators, (0, 0, 0, 0, 0, 1)),
    )
