from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stages.rerankers import RERANKERS, CandidateBatch, QueryBatch, make_reranker
from stages.rerankers import pairs as pairs_module
from stages.rerankers.pairs import rank_texts_by_pairs
from tests.stages.test_rerankers import draw


def turned(queries: QueryBatch, candidates: CandidateBatch) -> tuple[CandidateBatch, CandidateBatch]:
    """Every text with every video, as candidates of texts and as candidates of videos."""
    num_videos, num_texts = len(candidates.tokens), len(queries)
    broad = torch.randn(num_texts, num_videos, generator=torch.Generator().manual_seed(3))
    from_text = replace(candidates, index=torch.arange(num_videos).repeat(num_texts, 1), broad=broad)
    return from_text, replace(
        candidates, index=torch.arange(num_texts).repeat(num_videos, 1), broad=broad.T.contiguous()
    )


@pytest.mark.slow
@pytest.mark.parametrize("text_bytes", [1, 3 * 4 * 16 * 9, 1 << 30])
@pytest.mark.parametrize("name", sorted(RERANKERS))
def test_pairwise_scores_are_the_same_both_ways(name: str, text_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "_TEXT_BYTES", text_bytes)
    queries, candidates = draw()
    from_text, from_video = turned(queries, candidates)
    reranker = make_reranker(name)
    expected = reranker.rank(queries, from_text).T
    assert torch.equal(reranker.rank_texts(queries, from_video), expected)
    index = from_video.index.clone()
    index[2, 1], index[4] = -1, -1
    holed = reranker.rank_texts(queries, replace(from_video, index=index))
    assert torch.equal(holed, expected.masked_fill(index < 0, -torch.inf))


def test_pairs_keep_their_broad_scores() -> None:
    queries, candidates = draw()
    _, from_video = turned(queries, candidates)
    assert torch.equal(rank_texts_by_pairs(make_reranker("broad").rank, queries, from_video), from_video.broad)


@pytest.mark.parametrize("name", sorted(RERANKERS))
def test_no_video_and_no_text_are_no_error(name: str) -> None:
    queries, candidates = draw()
    _, from_video = turned(queries, candidates)
    nothing = replace(from_video, index=from_video.index[:, :0], broad=from_video.broad[:, :0])
    assert make_reranker(name).rank_texts(queries, nothing).shape == (len(candidates.tokens), 0)
    nobody = CandidateBatch(
        candidates.tokens[:0], None, candidates.frame_mask[:0], from_video.index[:0], from_video.broad[:0]
    )
    assert make_reranker(name).rank_texts(queries, nobody).shape == (0, len(queries))


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(RERANKERS))
def test_the_gpu_ranks_texts_as_the_cpu_does(name: str) -> None:
    queries, candidates = draw(shape=(12, 50, 64))
    _, there = turned(queries, candidates)
    on_gpu = CandidateBatch(there.tokens.cuda(), None, there.frame_mask.cuda(), there.index, there.broad.cuda())
    scores = make_reranker(name).rank_texts(queries.to(torch.device("cuda")), on_gpu)
    torch.testing.assert_close(scores.cpu(), make_reranker(name).rank_texts(queries, there), atol=1e-5, rtol=0)


def test_batches_of_queries_can_be_cut_and_moved() -> None:
    queries, _ = draw()
    with_indicators = replace(queries, indicators=torch.randn(len(queries), 4, 16))
    rows = torch.tensor([3, 0, 3])
    for batch in (queries, with_indicators):
        for cut in (slice(1, 3), rows):
            part = batch[cut].to(torch.device("cpu"))
            assert torch.equal(part.sentence, batch.sentence[cut])
            assert torch.equal(part.words, batch.words[cut])
            assert torch.equal(part.word_mask, batch.word_mask[cut])
    assert torch.equal(with_indicators[rows].indicators, with_indicators.indicators[rows])  # type: ignore[index,arg-type]
    assert queries[rows].indicators is None
