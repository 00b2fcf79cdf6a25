from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.rerankers.base import QueryBatch
from stages.rerankers.pairwise import PairwiseReranker
from stages.rerankers.visits import VISIT_QUERIES
from tests.stages.test_rerankers import draw


@dataclass
class Plain:
    """Dot product of the sentence with the sum of the real frames' tokens; remembers the shapes it was given."""

    sees_patches: bool = True
    sees_lengths: bool = True
    name = "plain"

    def __post_init__(self) -> None:
        self.shapes: set[tuple[int, ...]] = set()

    def texts(self, queries: QueryBatch) -> Tensor:
        return queries.sentence

    def videos(self, tokens: Tensor, frame_mask: Tensor) -> Tensor:
        self.shapes.add(tuple(tokens.shape[1:]))
        return tokens.masked_fill(~frame_mask[..., None, None], 0.0).sum((1, 2))

    def score(self, texts: Tensor, videos: Tensor) -> Tensor:
        assert texts.shape[:2] == (len(videos), VISIT_QUERIES)
        return (texts * videos[:, None]).sum(-1)


def expected(queries: QueryBatch, tokens: Tensor, mask: Tensor, index: Tensor) -> Tensor:
    videos = (tokens.float() * mask[..., None, None]).sum((1, 2))
    return torch.einsum("bd,bkd->bk", queries.sentence, videos[index]).masked_fill(index < 0, -torch.inf)


def test_every_candidate_gets_the_score_of_its_pair() -> None:
    queries, candidates = draw(num_queries=30)
    scores = PairwiseReranker(Plain()).rank(queries, candidates)
    wanted = expected(queries, candidates.tokens, candidates.frame_mask, candidates.index)
    torch.testing.assert_close(scores, wanted, atol=1e-3, rtol=1e-5)


def test_who_sees_frames_only_gets_no_patches() -> None:
    queries, candidates = draw()
    scorer = Plain(sees_patches=False)
    scores = PairwiseReranker(scorer).rank(queries, candidates)
    assert scorer.shapes == {(4, 1, 16)}
    wanted = expected(queries, candidates.tokens[:, :, :1], candidates.frame_mask, candidates.index)
    torch.testing.assert_close(scores, wanted, atol=1e-3, rtol=1e-5)


def test_int8_tokens_get_their_length_where_it_matters() -> None:
    queries, candidates = draw()
    scales = candidates.tokens.float().abs().amax(-1).clamp_min(1e-3) / 127
    quantised = (candidates.tokens.float() / scales[..., None]).round().to(torch.int8)
    stored = replace(candidates, tokens=quantised, scales=scales)
    for sees_patches in (True, False):
        meant = replace(candidates, tokens=quantised.float() * scales[..., None])
        scorer = Plain(sees_patches=sees_patches)
        assert torch.equal(
            PairwiseReranker(scorer).rank(queries, stored), PairwiseReranker(scorer).rank(queries, meant)
        )
        short, bare = Plain(sees_patches, False), replace(candidates, tokens=quantised.float())
        assert torch.equal(PairwiseReranker(short).rank(queries, stored), PairwiseReranker(scorer).rank(queries, bare))
