"""What every head with weights must do, whatever its method; without weights, ``test_rerankers`` asks the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from stages.rerankers import CandidateBatch
from stages.rerankers.clip4clip import Clip4ClipHead, Clip4ClipReranker, Clip4ClipTightHead
from stages.rerankers.eercf import EercfHead, EercfReranker, EercfWeights
from stages.rerankers.pairwise import PairwiseReranker
from stages.rerankers.wti import WtiHead, WtiReranker
from stages.rerankers.xclip import XClipHead, XClipReranker
from tests.stages.test_rerankers import draw

WIDTH = 64
ALL_LEVELS = EercfWeights(0.5, 0.8, 0.2, 0.2, 0.3)


def drawn(make: Callable[[], nn.Module]) -> nn.Module:
    """Random weights that a missing term or a wrong order would show; always the same."""
    generator = torch.manual_seed(0)
    head = make()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return head


RERANKERS: dict[str, Callable[[], PairwiseReranker]] = {
    "clip4clip-seqTransf": lambda: Clip4ClipReranker(drawn(lambda: Clip4ClipHead(WIDTH, 2))),  # type: ignore[arg-type]
    "clip4clip-seqLSTM": lambda: Clip4ClipReranker(drawn(lambda: Clip4ClipHead(WIDTH, recurrent=True))),  # type: ignore[arg-type]
    "clip4clip-tightTransf": lambda: Clip4ClipReranker(drawn(lambda: Clip4ClipTightHead(WIDTH, 1))),  # type: ignore[arg-type]
    "x-clip": lambda: XClipReranker(drawn(lambda: XClipHead(WIDTH, 1, num_words=9, num_frames=4))),  # type: ignore[arg-type]
    "eercf": lambda: EercfReranker(drawn(lambda: EercfHead(WIDTH, 1, num_frames=4, weights=ALL_LEVELS))),  # type: ignore[arg-type]
    "wti": lambda: WtiReranker(drawn(lambda: WtiHead(WIDTH, 1, weighted=True))),  # type: ignore[arg-type]
}
NAMES = sorted(RERANKERS)
SHAPE = (4, 3, WIDTH)


@pytest.mark.parametrize("name", NAMES)
def test_a_score_does_not_depend_on_what_else_is_in_the_batch(name: str) -> None:
    queries, candidates = draw(num_queries=25, shape=SHAPE, num_words=20)
    reranker = RERANKERS[name]()
    together = reranker.rank(queries, candidates)
    for row in (0, 1, 7, 24):
        part, videos = slice(row, row + 1), candidates.index[row][candidates.index[row] >= 0]
        alone = CandidateBatch(
            candidates.tokens[videos],
            None,
            candidates.frame_mask[videos],
            torch.arange(len(videos))[None],
            candidates.broad[part, : len(videos)],
        )
        assert torch.equal(reranker.rank(queries[part], alone)[0], together[row, : len(videos)])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_videos_and_candidates_and_the_threads_change_no_bit(name: str) -> None:
    queries, candidates = draw(num_queries=25, shape=SHAPE)
    order = torch.randperm(len(candidates.tokens), generator=torch.Generator().manual_seed(1))
    index = torch.where(candidates.index >= 0, order.argsort()[candidates.index], -1).flip(1)
    moved = replace(candidates, tokens=candidates.tokens[order], frame_mask=candidates.frame_mask[order], index=index)
    expected = RERANKERS[name]().rank(queries, candidates)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(RERANKERS[name]().rank(queries, moved).flip(1), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name: str) -> None:
    queries, candidates = draw(num_queries=9, shape=SHAPE)
    padding = torch.full((len(candidates.tokens), 2, *SHAPE[1:]), torch.nan, dtype=torch.float16)
    spoiled = candidates.tokens.clone()
    spoiled[~candidates.frame_mask] = torch.nan
    padded = replace(
        candidates,
        tokens=torch.cat([spoiled, padding], 1),
        frame_mask=torch.nn.functional.pad(candidates.frame_mask, (0, 2)),
    )
    reranker = RERANKERS[name]()
    torch.testing.assert_close(reranker.rank(queries, padded), reranker.rank(queries, candidates), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_both_directions_give_a_pair_one_score(name: str) -> None:
    queries, candidates = draw(num_queries=9, shape=SHAPE)
    num_videos, num_texts = len(candidates.tokens), len(queries)
    broad = torch.zeros(num_texts, num_videos)
    from_text = replace(candidates, index=torch.arange(num_videos).repeat(num_texts, 1), broad=broad)
    from_video = replace(candidates, index=torch.arange(num_texts).repeat(num_videos, 1), broad=broad.T.contiguous())
    reranker = RERANKERS[name]()
    assert torch.equal(reranker.rank_texts(queries, from_video), reranker.rank(queries, from_text).T)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_dict_of_official_names_makes_the_head_again(name: str) -> None:
    reranker = RERANKERS[name]()
    head = reranker.scorer
    again = type(head).of_state(head.state_dict())
    if name == "eercf":
        again.weights = ALL_LEVELS
    queries, candidates = draw(num_queries=9, shape=SHAPE)
    assert torch.equal(type(reranker)(again).rank(queries, candidates), reranker.rank(queries, candidates))  # type: ignore[call-arg]
