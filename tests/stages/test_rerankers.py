from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from index_store.errors import UsageError
from index_store.records import ShapeError
from stages.rerankers import RERANKERS, CandidateBatch, QueryBatch, make_reranker
from stages.rerankers.eercf import EercfReranker
from stages.rerankers.visits import VISIT_QUERIES, blocks, shared_blocks


def draw(
    num_queries: int = 5,
    num_candidates: int = 7,
    num_videos: int = 11,
    shape: tuple[int, int, int] = (4, 6, 16),
    seed: int = 0,
    num_words: int = 7,
) -> tuple[QueryBatch, CandidateBatch]:
    """Correlated raw features; videos of 1 to F frames, texts of 2 to W words; the second query lacks a candidate."""
    generator = torch.Generator().manual_seed(seed)
    num_frames, _, width = shape
    mask = torch.arange(num_frames) < torch.randint(1, num_frames + 1, (num_videos, 1), generator=generator)
    tokens = 3 * torch.randn(num_videos, *shape, generator=generator) + torch.randn(width, generator=generator)
    index = torch.stack([torch.randperm(num_videos, generator=generator)[:num_candidates] for _ in range(num_queries)])
    index[1:2, -1] = -1
    sentence = 5 * torch.randn(num_queries, width, generator=generator)
    words = 4 * torch.randn(num_queries, num_words, width, generator=generator) + sentence[:, None] / 5
    word_mask = torch.arange(num_words) < torch.randint(2, num_words + 1, (num_queries, 1), generator=generator)
    queries = QueryBatch(sentence, words * word_mask[..., None], word_mask)
    broad = torch.randn(index.shape, generator=generator)
    return queries, CandidateBatch((tokens * mask[..., None, None]).half(), None, mask, index, broad)


def transcribed(sentence: Tensor, tokens: Tensor, mask: Tensor) -> float:
    """EERCF's score of one pair as its formulas read, in double: sentence [D], tokens [F, P, D], mask [F]."""
    n = lambda x: x / x.norm(dim=-1, keepdim=True)  # noqa: E731
    aggregate = lambda x: (torch.softmax(x / 0.01, 0) * x).sum()  # noqa: E731
    t, real = n(sentence.double()), tokens[mask].double()
    f, p = n(real[:, 0]), n(real[:, 1:].flatten(0, 1))
    v = n(f.mean(0))
    r = n((torch.softmax(f @ t / 0.1, 0)[:, None] * f).sum(0))
    patch_weak = aggregate(p @ t) if len(p) else torch.tensor(0.0)
    return float(0.8 * aggregate(f @ t) + 0.2 * t @ r + 0.2 * patch_weak + 0.5 * t @ v)


@pytest.mark.parametrize("shape", [(4, 6, 16), (1, 2, 16), (12, 50, 64), (5, 1, 16)])
def test_eercf_equals_its_formulas(shape: tuple[int, int, int]) -> None:
    queries, candidates = draw(shape=shape)
    scores = EercfReranker().rank(queries, candidates)
    assert scores.shape == candidates.index.shape
    for row, column in candidates.is_candidate.nonzero().tolist():
        video = int(candidates.index[row, column])
        expected = transcribed(queries.sentence[row], candidates.tokens[video], candidates.frame_mask[video])
        assert scores[row, column].item() == pytest.approx(expected, abs=1e-5)
    assert scores[1, -1] == -torch.inf


def test_int8_tokens_are_scored_by_their_direction() -> None:
    queries, candidates = draw()
    scales = candidates.tokens.float().abs().amax(-1).clamp_min(1e-3) / 127
    quantised = (candidates.tokens.float() / scales[..., None]).round().to(torch.int8)
    scores = EercfReranker().rank(queries, replace(candidates, tokens=quantised, scales=scales))
    exact = EercfReranker().rank(queries, replace(candidates, tokens=quantised.float() * scales[..., None]))
    torch.testing.assert_close(scores, exact, atol=1e-5, rtol=0)


# -- what every reranker must do --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(RERANKERS))
def test_the_order_of_the_candidates_only_moves_the_scores(name: str) -> None:
    queries, candidates = draw()
    order = torch.randperm(candidates.index.shape[1], generator=torch.Generator().manual_seed(1))
    moved = replace(candidates, index=candidates.index[:, order], broad=candidates.broad[:, order])
    reranker = make_reranker(name)
    assert torch.equal(reranker.rank(queries, moved), reranker.rank(queries, candidates)[:, order])


@pytest.mark.parametrize("name", sorted(RERANKERS))
def test_the_order_of_the_videos_changes_nothing(name: str) -> None:
    queries, candidates = draw(num_queries=40, num_candidates=9)
    order = torch.randperm(len(candidates.tokens), generator=torch.Generator().manual_seed(1))
    index = torch.where(candidates.index >= 0, order.argsort()[candidates.index], -1)
    moved = replace(candidates, tokens=candidates.tokens[order], frame_mask=candidates.frame_mask[order], index=index)
    reranker = make_reranker(name)
    assert torch.equal(reranker.rank(queries, moved), reranker.rank(queries, candidates))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(4, 6, 16), (12, 50, 64), (3, 17, 48), (12, 4, 512), (1, 1, 64), (2, 1, 64)])
@pytest.mark.parametrize("name", sorted(RERANKERS))
def test_a_score_does_not_depend_on_what_else_is_in_the_batch(name: str, shape: tuple[int, int, int]) -> None:
    queries, candidates = draw(num_queries=3 * VISIT_QUERIES + 1, shape=shape)
    reranker = make_reranker(name)
    together = reranker.rank(queries, candidates)
    for row in range(len(queries)):
        videos = candidates.index[row][candidates.index[row] >= 0]
        alone = CandidateBatch(
            candidates.tokens[videos],
            None,
            candidates.frame_mask[videos],
            torch.arange(len(videos))[None],
            candidates.broad[row : row + 1, : len(videos)],
        )
        part = slice(row, row + 1)
        query = QueryBatch(queries.sentence[part], queries.words[part], queries.word_mask[part])
        assert torch.equal(reranker.rank(query, alone)[0], together[row, : len(videos)])


@pytest.mark.parametrize("name", sorted(RERANKERS))
def test_a_longer_text_in_the_batch_changes_no_bit(name: str) -> None:
    queries, candidates = draw(shape=(12, 17, 64))
    expected = make_reranker(name).rank(queries, candidates)
    for more in (1, 5, 25, 70):
        words = torch.nn.functional.pad(queries.words, (0, 0, 0, more))
        longer = QueryBatch(queries.sentence, words, torch.nn.functional.pad(queries.word_mask, (0, more)))
        assert torch.equal(make_reranker(name).rank(longer, candidates), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RERANKERS))
def test_the_number_of_threads_changes_no_bit(name: str) -> None:
    queries, candidates = draw(num_queries=20, num_candidates=12, num_videos=30, shape=(12, 50, 64))
    before = torch.get_num_threads()
    try:
        scores = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            scores.append(make_reranker(name).rank(queries, candidates))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], scores[2])


@pytest.mark.parametrize("name", sorted(RERANKERS))
def test_padding_changes_nothing(name: str) -> None:
    queries, candidates = draw()
    garbage = torch.full((len(candidates.tokens), 3, *candidates.tokens.shape[2:]), torch.nan, dtype=torch.float16)
    padded = replace(
        candidates,
        tokens=torch.cat([candidates.tokens, garbage], 1),
        frame_mask=torch.nn.functional.pad(candidates.frame_mask, (0, 3)),
        index=torch.nn.functional.pad(candidates.index, (0, 2), value=-1),
        broad=torch.nn.functional.pad(candidates.broad, (0, 2), value=torch.nan),
    )
    wordier = QueryBatch(
        queries.sentence,
        torch.nn.functional.pad(queries.words, (0, 0, 0, 4), value=torch.nan),
        torch.nn.functional.pad(queries.word_mask, (0, 4)),
    )
    reranker = make_reranker(name)
    scores = reranker.rank(wordier, padded)
    torch.testing.assert_close(scores[:, :-2], reranker.rank(queries, candidates), atol=1e-6, rtol=0)
    assert (scores[:, -2:] == -torch.inf).all()


@pytest.mark.parametrize("name", sorted(RERANKERS))
def test_no_query_or_no_candidate_is_no_error(name: str) -> None:
    queries, candidates = draw()
    reranker = make_reranker(name)
    nobody = QueryBatch(queries.sentence[:0], queries.words[:0], queries.word_mask[:0])
    assert reranker.rank(nobody, replace(candidates, index=candidates.index[:0], broad=candidates.broad[:0])).shape == (
        0,
        7,
    )
    nothing = replace(candidates, index=torch.full_like(candidates.index, -1))
    assert (reranker.rank(queries, nothing) == -torch.inf).all()


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(RERANKERS))
def test_the_gpu_gives_the_scores_of_the_cpu(name: str) -> None:
    queries, candidates = draw(shape=(12, 50, 64))
    on_gpu = CandidateBatch(
        candidates.tokens.cuda(), None, candidates.frame_mask.cuda(), candidates.index, candidates.broad.cuda()
    )
    scores = make_reranker(name).rank(
        QueryBatch(queries.sentence.cuda(), queries.words.cuda(), queries.word_mask.cuda()), on_gpu
    )
    torch.testing.assert_close(scores.cpu(), make_reranker(name).rank(queries, candidates), atol=1e-5, rtol=0)


# -- the parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [1, 3, 100])
def test_every_pair_is_visited_once(block_size: int) -> None:
    index = torch.randint(-1, 6, (30, 4), generator=torch.Generator().manual_seed(0))
    seen = []
    for block in blocks(index, 6, block_size, torch.device("cpu")):
        videos = torch.arange(6)[block.videos]
        assert len(videos) <= block_size
        for visit in block.visits:
            assert visit.queries.shape[1] == VISIT_QUERIES
            for video, visitors, cells in zip(videos[visit.videos], visit.queries, visit.cells, strict=True):
                for query, cell in zip(visitors.tolist(), cells.tolist(), strict=True):
                    assert (query == 30) == (cell == index.numel())
                    if query < 30:
                        assert index.flatten()[cell] == video
                        seen.append(cell)
    assert sorted(seen) == (index.flatten() >= 0).nonzero().flatten().tolist()


@pytest.mark.parametrize(("block_size", "num_visited"), [(1, 0), (3, 0), (100, 0), (100, 2)])
def test_every_pair_is_visited_once_by_queries_that_share_videos(block_size: int, num_visited: int) -> None:
    generator = torch.Generator().manual_seed(0)
    index = torch.cat([torch.randint(-1, 6, (9, 4), generator=generator), torch.tensor([[4, 1, 0, 1]]).repeat(7, 1)])
    index[12] = torch.tensor([0, 1, 1, 4])  # the same videos in another order
    seen, largest = [], 0
    for block in shared_blocks(index, 6, block_size, torch.device("cpu"), 5, num_visited):
        videos = torch.arange(6)[block.videos]
        for visit in block.visits:
            visitors, visited = torch.arange(16)[visit.queries], videos[visit.videos]
            assert visit.cells.shape == (len(visited), len(visitors))
            assert len(visited) <= (num_visited or 4)
            largest = max(largest, len(visitors))
            for video, cells in zip(visited, visit.cells, strict=True):
                assert torch.equal(index.flatten()[cells], video.expand(len(cells)))
                assert torch.equal(cells // 4, visitors)
            seen += visit.cells.flatten().tolist()
    assert largest == 5
    assert sorted(seen) == (index.flatten() >= 0).nonzero().flatten().tolist()


def test_an_unknown_reranker_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'eercff'.*'eercf'"):
        make_reranker("eercff")
    assert {name: make_reranker(name).name for name in RERANKERS} == {name: name for name in RERANKERS}


def test_batches_check_their_shapes() -> None:
    queries, candidates = draw()
    with pytest.raises(ShapeError, match="words"):
        QueryBatch(queries.sentence, queries.words[:, :, 1:], queries.word_mask)
    with pytest.raises(ShapeError, match="frame_mask"):
        replace(candidates, frame_mask=candidates.frame_mask[:-1])
    with pytest.raises(ShapeError, match="scales"):
        replace(candidates, tokens=candidates.tokens.to(torch.int8))
    with pytest.raises(ShapeError, match="broad"):
        replace(candidates, broad=candidates.broad[:, 1:])
