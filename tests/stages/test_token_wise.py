"""TI, WTI, DP and late interaction: each word finds its frame or patch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from stages.rerankers import CandidateBatch, QueryBatch, make_reranker
from stages.rerankers.clip4clip import Clip4ClipReranker
from stages.rerankers.pairwise import PairwiseReranker
from stages.rerankers.wti import DpHead, WtiHead, WtiReranker
from stages.training.decorrelation import correlations, decorrelation, token_correlations
from tests.stages.test_heads import drawn
from tests.stages.test_rerankers import draw


def pairs(queries: QueryBatch, candidates: CandidateBatch) -> list[tuple[int, int, Tensor, Tensor]]:
    """Row, column, words and tokens [F, P, D] of every pair, nothing of them padding, raw."""
    found = []
    for row, column in candidates.is_candidate.nonzero().tolist():
        video = int(candidates.index[row, column])
        tokens = candidates.tokens[video].double()[candidates.frame_mask[video]]
        found.append((row, column, queries.words[row].double()[queries.word_mask[row]], tokens))
    return found


def test_token_wise_interaction_equals_its_formula() -> None:
    queries, candidates = draw(num_queries=9)
    scores = make_reranker("wti").rank(queries, candidates)
    for row, column, words, tokens in pairs(queries, candidates):
        cosines = normalize(words, dim=-1) @ normalize(tokens[:, 0], dim=-1).T
        expected = (cosines.amax(1).mean() + cosines.amax(0).mean()) / 2
        assert scores[row, column].item() == pytest.approx(expected.item(), abs=1e-6)


@torch.no_grad()
def test_weighted_token_wise_interaction_equals_its_formula() -> None:
    queries, candidates = draw(num_queries=9, shape=(4, 2, 64))
    head = drawn(lambda: WtiHead(64, weighted=True))
    assert isinstance(head, WtiHead)
    scores = WtiReranker(head).rank(queries, candidates)
    assert head.text_weight_fc is not None
    assert head.video_weight_fc is not None
    for row, column, words, tokens in pairs(queries, candidates):
        frames = tokens[:, 0]
        cosines = normalize(words, dim=-1) @ normalize(frames, dim=-1).T
        of_words = head.text_weight_fc(words.float()).squeeze(-1).softmax(0).double()
        of_frames = head.video_weight_fc(frames.float()).squeeze(-1).softmax(0).double()
        expected = (of_words @ cosines.amax(1) + of_frames @ cosines.amax(0)) / 2
        assert scores[row, column].item() == pytest.approx(expected.item() * head.logit_scale.exp().item(), abs=1e-5)


def test_the_released_maximum_may_pick_padding() -> None:
    """Where all cosines are below 0, a padded frame or word with its 0 is the best one."""
    words = -torch.eye(4)[None, :2].repeat(1, 2, 1)
    queries = QueryBatch(words[:, 0], words, torch.tensor([[True, True, False, False]]))
    tokens = torch.eye(4)[:2].view(1, 2, 1, 4).half().repeat(1, 2, 1, 1)
    mask = torch.tensor([[True, True, False, False]])
    candidates = CandidateBatch(tokens, None, mask, torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1))
    shifted = CandidateBatch(tokens + 0.5, None, mask, candidates.index, candidates.broad)
    ours, theirs = (WtiReranker(WtiHead(official=official)) for official in (False, True))
    assert ours.rank(queries, shifted).item() < -0.1
    assert theirs.rank(queries, shifted).item() == 0.0


def test_the_dot_product_takes_the_last_word() -> None:
    queries, candidates = draw(num_queries=9)
    scores = PairwiseReranker(DpHead()).rank(queries, candidates)
    last = queries.words[torch.arange(9), queries.word_mask.sum(1) - 1]
    same = QueryBatch(last, queries.words, queries.word_mask)
    assert torch.equal(scores, Clip4ClipReranker().rank(same, candidates))


@pytest.mark.parametrize("shape", [(4, 6, 16), (1, 2, 16), (5, 1, 16)])
def test_late_interaction_equals_its_formula(shape: tuple[int, int, int]) -> None:
    queries, candidates = draw(num_queries=9, shape=shape)
    scores = make_reranker("late-interaction").rank(queries, candidates)
    for row, column, words, tokens in pairs(queries, candidates):
        means = [
            (normalize(words, dim=-1) @ normalize(part.flatten(0, 1), dim=-1).T).amax(1).mean()
            for part in (tokens[:, :1], tokens[:, 1:])
            if part.shape[1]
        ]
        assert scores[row, column].item() == pytest.approx(float(sum(means) / len(means)), abs=1e-6)


def test_features_that_vary_alike_and_apart_cost_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    features, _ = torch.linalg.qr(torch.randn(500, 8, generator=generator).sub_(0.01))
    features = features - features.mean(0)
    matrix = correlations(features, 2 * features + 3)
    torch.testing.assert_close(matrix.diagonal(), torch.full((8,), 1 - 1 / 500))
    assert decorrelation(matrix, 1.0, 0.0).item() == pytest.approx(8 / 500**2, rel=1e-2)
    assert decorrelation(torch.eye(4) + 0.5, 2.0, 3.0).item() == pytest.approx(2 * 4 * 0.25 + 3 * 12 * 0.25)
    assert decorrelation(correlations(features, features.flip(1)), 1.0, 1.0).item() > 1


def test_words_are_compared_with_the_frames_they_find() -> None:
    """Every word is one of the frames of its video: what it finds is itself."""
    head = WtiHead()
    _, candidates = draw(num_videos=40, shape=(6, 1, 16))
    videos = head.videos(candidates.tokens.float(), candidates.frame_mask)
    for weighted in (False, True):
        matrix = token_correlations(videos, videos, weighted=weighted)
        torch.testing.assert_close(matrix, matrix.T, atol=1e-5, rtol=1e-5)
        if not weighted:
            number = int(candidates.frame_mask.sum())
            torch.testing.assert_close(matrix.diagonal(), torch.full((16,), 1 - 1 / number), atol=1e-5, rtol=0)
