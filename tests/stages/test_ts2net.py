from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from stages.rerankers.pairwise import PairwiseReranker
from stages.rerankers.temporal import Frames
from stages.rerankers.ts2net import Ts2NetHead, Ts2NetReranker, weigh_frames
from tests.stages.test_rerankers import draw


def head(official: bool = False) -> Ts2NetHead:
    torch.manual_seed(0)
    return Ts2NetHead(16, num_layers=2, num_heads=2, official=official).requires_grad_(False)


def weighed(text: Tensor, frames: Tensor) -> Tensor:
    """The formula for one text [D] and one video's real frames [n, D]."""
    b = torch.nn.functional.normalize(frames, dim=-1) @ torch.nn.functional.normalize(text, dim=-1)
    return (torch.softmax(4 * b / b.norm(), 0) * b).sum()


def test_without_weights_it_is_the_weighted_mean_of_the_stored_frames() -> None:
    queries, candidates = draw()
    scores = Ts2NetReranker().rank(queries, candidates)
    for row, column in candidates.is_candidate.nonzero().tolist():
        video = int(candidates.index[row, column])
        frames = candidates.tokens[video, candidates.frame_mask[video], 0].float()
        torch.testing.assert_close(scores[row, column], weighed(queries.sentence[row], frames), atol=1e-6, rtol=0)


def test_padding_changes_no_score() -> None:
    queries, candidates = draw()
    garbage = candidates.tokens.masked_fill(~candidates.frame_mask[..., None, None], torch.nan)
    for scorer in (head(), Ts2NetHead()):
        reranker = PairwiseReranker(scorer)
        scores = reranker.rank(queries, candidates)
        assert torch.equal(reranker.rank(queries, replace(candidates, tokens=garbage)), scores)


def test_a_short_video_scores_like_the_same_video_without_padding() -> None:
    queries, candidates = draw(num_videos=1, num_candidates=1, num_queries=2)
    index, broad = torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1)
    mask = torch.tensor([[True, True, False, False]])
    padded = replace(candidates, frame_mask=mask, index=index, broad=broad)
    cut = replace(padded, tokens=candidates.tokens[:, :2], frame_mask=mask[:, :2])
    ours = PairwiseReranker(head())
    torch.testing.assert_close(ours.rank(queries, padded), ours.rank(queries, cut))
    theirs = PairwiseReranker(head(official=True))
    assert not torch.allclose(theirs.rank(queries, padded), theirs.rank(queries, cut))


def test_for_videos_of_full_length_both_masks_agree() -> None:
    queries, candidates = draw()
    full = replace(candidates, frame_mask=torch.ones_like(candidates.frame_mask))
    ours, theirs = (PairwiseReranker(head(official)).rank(queries, full) for official in (False, True))
    torch.testing.assert_close(ours, theirs)


def test_a_score_depends_on_its_pair_only() -> None:
    queries, candidates = draw(num_queries=9)
    reranker = PairwiseReranker(head())
    scores = reranker.rank(queries, candidates)
    part = replace(candidates, index=candidates.index[4:5], broad=candidates.broad[4:5])
    assert torch.equal(reranker.rank(queries[4:5], part), scores[4:5])


def test_one_text_for_all_videos_is_that_text_for_each() -> None:
    frames = torch.nn.functional.normalize(torch.randn(3, 4, 8), dim=-1)
    videos = Frames(frames, torch.ones(3, 4, dtype=torch.bool))
    texts = torch.nn.functional.normalize(torch.randn(1, 5, 8), dim=-1)
    torch.testing.assert_close(weigh_frames(texts, videos), weigh_frames(texts.repeat(3, 1, 1), videos))
