from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages.rerankers import CandidateBatch, QueryBatch, make_reranker
from stages.rerankers.matrices import fitted
from stages.rerankers.xclip import XClipHead, XClipReranker
from tests.stages.test_rerankers import draw


def transcribed(head: XClipHead | None, sentence: Tensor, words: Tensor, frames: Tensor) -> float:
    """X-CLIP's score of one pair as its formulas read, in double: [D], [W, D] and [F, D], none of them padding."""
    n = lambda x: x / x.norm(dim=-1, keepdim=True)  # noqa: E731
    t, w, f = n(sentence.double()), n(words.double()), n(frames.double())
    v = n(n(frames.double()).mean(0))
    g = m = lambda name, size: torch.eye(size, dtype=torch.float64)
    scale = 1.0
    if head is not None:
        contextual = head.temporal(frames[None], torch.ones(1, len(frames), dtype=torch.bool))[0]
        v = n(n(contextual.double()).mean(0))
        g = lambda name, size: head.get_parameter(f"{name}_mat_weight").double()  # noqa: E731
        m = lambda name, size: head.get_parameter(name).double()[:size, :size]  # noqa: E731
        scale = head.logit_scale.exp().item()
    width, num_words, num_frames = len(t), len(w), len(f)

    def a(x: Tensor, name: str) -> Tensor:
        return ((x / 0.01).softmax(-1) @ m(name, x.shape[-1]) * x).sum(-1)

    c = w @ g("local", width) @ f.T
    assert c.shape == (num_words, num_frames)
    fourth = a(a(c.T, "word_mat_weight"), "frame_mat_weight2") + a(a(c, "frame_mat_weight"), "word_mat_weight2")
    terms = [t @ g("global", width) @ v, a(w @ v, "word_logit_weight"), a(f @ t, "frame_logit_weight"), fourth / 2]
    return float(scale * sum(terms) / 4)


def drawn_head(width: int, num_words: int = 9, num_frames: int = 4, *, official: bool = False) -> XClipHead:
    generator = torch.manual_seed(0)
    head = XClipHead(width, 1, num_words=num_words, num_frames=num_frames, official=official)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return head


def expect_transcribed(head: XClipHead | None, queries: QueryBatch, candidates: CandidateBatch) -> None:
    scores = XClipReranker(head).rank(queries, candidates)
    for row, column in candidates.is_candidate.nonzero().tolist():
        video = int(candidates.index[row, column])
        frames = candidates.tokens[video, :, 0].float()[candidates.frame_mask[video]]
        expected = transcribed(head, queries.sentence[row], queries.words[row][queries.word_mask[row]], frames)
        assert scores[row, column].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shape", [(4, 6, 16), (1, 1, 16), (12, 2, 64)])
def test_it_equals_its_formulas_without_weights(shape: tuple[int, int, int]) -> None:
    queries, candidates = draw(num_queries=9, shape=shape)
    expect_transcribed(None, queries, candidates)
    assert make_reranker("x-clip").name == "x-clip"


@torch.no_grad()
def test_it_equals_its_formulas_with_weights() -> None:
    queries, candidates = draw(num_queries=9, shape=(4, 6, 64))
    expect_transcribed(drawn_head(64), queries, candidates)


def test_the_released_sums_are_the_same_where_nothing_is_padding() -> None:
    queries, candidates = draw(num_queries=9, shape=(4, 6, 64))
    candidates.frame_mask[:] = True
    full = QueryBatch(queries.sentence, queries.words + 0.1, torch.ones_like(queries.word_mask))
    ours, theirs = (XClipReranker(drawn_head(64, official=official)) for official in (False, True))
    torch.testing.assert_close(ours.rank(full, candidates), theirs.rank(full, candidates), atol=1e-6, rtol=0)


def test_the_released_sums_take_padding_in() -> None:
    queries, candidates = draw(num_queries=9, shape=(4, 6, 64))
    ours, theirs = (XClipReranker(drawn_head(64, official=official)) for official in (False, True))
    assert not torch.allclose(ours.rank(queries, candidates), theirs.rank(queries, candidates), atol=1e-3)
    filled = candidates.tokens.clone()
    filled[~candidates.frame_mask] = 9.0
    spoiled = CandidateBatch(filled, None, candidates.frame_mask, candidates.index, candidates.broad)
    assert torch.equal(ours.rank(queries, spoiled), ours.rank(queries, candidates))
    assert not torch.allclose(theirs.rank(queries, spoiled), theirs.rank(queries, candidates), atol=1e-3)


def test_matrices_of_another_size_go_on_as_the_identity() -> None:
    matrix = torch.tensor([[2.0, 3.0], [4.0, 5.0]])
    assert fitted(matrix, 1).tolist() == [[2.0]]
    assert fitted(matrix, 3).tolist() == [[2.0, 3.0, 0.0], [4.0, 5.0, 0.0], [0.0, 0.0, 1.0]]
