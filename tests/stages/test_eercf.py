"""EERCF with weights, and its loss; without weights, ``test_rerankers`` holds its formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stages.rerankers.eercf import EercfHead, EercfReranker, EercfWeights, two_stages
from stages.training.eercf_loss import EercfLossWeights, eercf_terms, pearson
from tests.stages.test_heads import drawn
from tests.stages.test_rerankers import draw


def test_the_released_sums_differ_by_padding_only() -> None:
    queries, candidates = draw(num_queries=9, shape=(4, 3, 64))
    ours, theirs = (
        EercfReranker(drawn(lambda official=official: EercfHead(64, 1, num_frames=4, official=official)))  # type: ignore[misc,arg-type]
        for official in (False, True)
    )
    assert not torch.allclose(ours.rank(queries, candidates), theirs.rank(queries, candidates), atol=1e-3)
    full = replace(candidates, frame_mask=torch.ones_like(candidates.frame_mask))
    torch.testing.assert_close(ours.rank(queries, full), theirs.rank(queries, full), atol=1e-5, rtol=1e-5)


def test_each_level_counts_as_its_weight_says() -> None:
    queries, candidates = draw(num_queries=9, shape=(4, 3, 64))
    none = dict.fromkeys(("sentence_video", "frame_weak", "frame_strong", "patch_weak", "patch_strong"), 0.0)
    alone = {name: EercfReranker(EercfHead(weights=EercfWeights(**{**none, name: 1.0}))) for name in none}
    weights = {name: number + 1.0 for number, name in enumerate(none)}
    together = EercfReranker(EercfHead(weights=EercfWeights(**weights)))
    expected = sum(weights[name] * reranker.rank(queries, candidates) for name, reranker in alone.items())
    torch.testing.assert_close(together.rank(queries, candidates), expected, atol=1e-5, rtol=1e-5)


def test_only_the_coarse_best_are_lifted() -> None:
    coarse = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.5, -1.0]])
    focused = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert two_stages(coarse, focused, 2).tolist() == [[101.0, 1.0, 103.0], [104.0, 105.0, -1.0]]
    assert torch.equal(two_stages(coarse, focused, 9), 100 + focused)


def test_the_constraint_is_zero_only_for_features_that_vary_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn(1000, 8, generator=generator)
    scale = 1 - 1 / 1000  # of the mean of products, to the standard deviation that divides by B - 1
    assert pearson(texts, 3 * texts + 1).item() == pytest.approx(0.14 * 8 * (scale - 1) ** 2, abs=1e-6)
    assert pearson(texts, -texts).item() == pytest.approx(0.14 * 8 * (scale + 1) ** 2, rel=1e-4)
    assert pearson(texts, torch.randn(1000, 8, generator=generator)).item() == pytest.approx(0.14 * 8, rel=0.1)


def test_training_makes_matching_pairs_score_more() -> None:
    queries, candidates = draw(num_queries=11, shape=(4, 3, 64))
    tokens, head = candidates.tokens.float(), EercfHead(64, num_frames=4)
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        loss = eercf_terms(head, queries, tokens, candidates.frame_mask).loss(EercfLossWeights())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
