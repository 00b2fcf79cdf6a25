"""Reranking by a score of each (text, video) pair: a method says what it prepares once and how a pair is scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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


@dataclass(frozen=True, slots=True, eq=False)
class PreparedCandidates:
    """The K candidates of each of B queries, U distinct videos, as a PairScorer's ``videos`` left them."""

    videos: Rows
    """Of the U videos, on any device."""
    move: Callable[[Any], Any]
    """Takes some of them to the device of ``broad``."""
    num_videos: int
    """U."""
    block_size: int
    """Videos that are taken there at once."""
    index: Tensor
    """int64 [B, K] on the CPU: which of the U videos the candidate is, -1 = no candidate."""
    broad: Tensor
    """float32 [B, K], as in a CandidateBatch."""

    def of(self, rows: slice) -> Any:
        """Some of the videos, on the device of ``broad``."""
        return self.move(self.videos[rows])

    def part(self, rows: slice, index: Tensor, broad: Tensor) -> PreparedCandidates:
        """Some of the videos, as candidates of other queries."""
        videos = self.videos[rows]
        return replace(self, videos=videos, num_videos=rows.stop - rows.start, index=index, broad=broad)


class VideoSide:
    """Computes ``videos`` of a scorer for some of U videos at a time; what it gives lasts until the next time."""

    def __init__(
        self,
        scorer: PairScorer[Any, Any],
        tokens: Tensor,
        scales: Tensor | None,
        frame_mask: Tensor,
        at_least: int = 1,
    ) -> None:
        """Tokens [U, F, P, D], scales and frame_mask as in a CandidateBatch; ``at_least`` so many at a time."""
        self._scorer = scorer
        self._tokens = tokens if scorer.sees_patches else tokens[:, :, :1]
        self._scales = scales if scorer.sees_lengths else None
        self._frame_mask = frame_mask
        shape = self._tokens.shape[1:]
        at_once = max(at_least, videos_per_block(math.prod(shape), tokens.device))
        self.block_size = max(1, min(len(tokens), at_once))
        self._buffer = torch.empty(self.block_size, *shape, device=tokens.device)

    def of(self, rows: slice) -> Any:
        """V of these videos, ``block_size`` of them at most."""
        raw = self._buffer[: rows.stop - rows.start].copy_(self._tokens[rows])
        if self._scales is not None:
            raw *= self._scales[rows, :, : raw.shape[2], None]
        return self._scorer.videos(raw, self._frame_mask[rows])


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

    @property
    def shares_visits(self) -> bool:
        """Whether queries with the same candidates look at them together, and one with its own at all of them."""
        return self._shared is not None

    @torch.inference_mode()
    def rank(self, queries: QueryBatch, candidates: CandidateBatch) -> Tensor:
        """The scores float32 [B, K], -inf where there is no candidate."""
        tokens = candidates.tokens
        video_side = VideoSide(self.scorer, tokens, candidates.scales, candidates.frame_mask, self._least_block)
        return self._rank(queries, candidates.index, len(tokens), video_side.block_size, tokens.device, video_side.of)

    @torch.inference_mode()
    def rank_prepared(self, queries: QueryBatch, candidates: PreparedCandidates) -> Tensor:
        """``rank`` of videos whose side was computed before: the same scores float32 [B, K], to the last bit."""
        block_size = max(candidates.block_size, self._least_block)
        device = candidates.broad.device
        if self._shared is not None and device.type == "cpu":  # nothing is moved: a query finds all it has at once
            block_size = max(block_size, candidates.num_videos)
        return self._rank(queries, candidates.index, candidates.num_videos, block_size, device, candidates.of)

    def _rank(
        self,
        queries: QueryBatch,
        index: Tensor,
        num_videos: int,
        block_size: int,
        device: torch.device,
        videos_of: Callable[[slice], Any],
    ) -> Tensor:
        scorer = self.scorer
        texts = scorer.texts((queries if self._shared else _with_nobody(queries)).to(device))
        scores = torch.full((index.numel() + 1,), -torch.inf, device=device)
        for block in self._blocks(index, num_videos, block_size, device):
            videos, count = videos_of(block.videos), block.videos.stop - block.videos.start
            for visit in block.visits:
                whole = isinstance(visit.videos, slice) and visit.videos == slice(0, count)
                visited = videos if whole else videos[visit.videos]
                asking = texts[visit.queries]
                scores[visit.cells] = scorer.score(asking[None] if self._shared else asking, visited)
        return scores[:-1].view(index.shape)

    def rank_texts(self, queries: QueryBatch, candidates: CandidateBatch) -> Tensor:
        """The scores float32 [V, K] of the candidate texts of each video: those that ``rank`` gives the same pairs."""
        return rank_texts_by_pairs(self.rank, queries, candidates)

    def rank_texts_prepared(self, queries: QueryBatch, candidates: PreparedCandidates) -> Tensor:
        """``rank_texts`` of videos whose side was computed before: the same scores float32 [V, K]."""
        return rank_texts_by_pairs(self.rank_prepared, queries, candidates)

    @property
    def _least_block(self) -> int:
        """Smaller blocks would cut visits short."""
        return 1 if self._shared is None else self._shared.num_videos

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
