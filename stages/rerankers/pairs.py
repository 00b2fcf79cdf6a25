"""From video to text with a reranker that scores each pair by itself: turned round, the pairs stay the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from stages.rerankers.base import QueryBatch


class Candidates(Protocol):
    """Videos and who looks at them: a CandidateBatch, or one of prepared videos."""

    @property
    def index(self) -> Tensor:
        """int64 [V, K] on the CPU."""
        ...

    @property
    def broad(self) -> Tensor:
        """float32 [V, K]."""
        ...

    def part(self: C, rows: slice, index: Tensor, broad: Tensor, /) -> C:
        """Some of the videos, as candidates of other queries."""
        ...


C = TypeVar("C", bound=Candidates)

_TEXT_BYTES = 64 << 20
"""Features of the texts of the pairs that are scored at once; a text is there once for each of its pairs."""


@torch.inference_mode()
def rank_texts_by_pairs(rank: Callable[[QueryBatch, C], Tensor], queries: QueryBatch, candidates: C) -> Tensor:
    """``rank_texts`` float32 [V, K] of a reranker whose scores depend on text and video only.

    Every (text, video) pair is given to ``rank`` as a query with one candidate, some videos at a time.
    """
    index = candidates.index
    scores = candidates.broad.new_full(index.shape, -torch.inf)
    for part in _parts(queries, index):
        videos, columns = (index[part] >= 0).nonzero(as_tuple=True)
        texts = index[part][videos, columns].to(queries.sentence.device)
        broad = candidates.broad[part][videos.to(scores.device), columns.to(scores.device)]
        pairs = candidates.part(part, videos[:, None], broad[:, None])
        found = rank(queries[texts], pairs)[:, 0]
        scores[part][videos.to(scores.device), columns.to(scores.device)] = found.to(scores)
    return scores


def _parts(queries: QueryBatch, index: Tensor) -> Iterator[slice]:
    """Videos in runs, one at least, whose pairs' texts stay below _TEXT_BYTES."""
    num_videos, num_texts = index.shape
    rows_each = 1 + queries.words.shape[1] + (0 if queries.indicators is None else queries.indicators.shape[1])
    video_bytes = max(1, num_texts * rows_each * 4 * queries.sentence.shape[1])
    step = max(1, _TEXT_BYTES // video_bytes)
    for start in range(0, num_videos, step):
        yield slice(start, min(start + step, num_videos))
