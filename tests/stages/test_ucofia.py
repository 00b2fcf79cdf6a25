from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stages.rerankers import CandidateBatch, QueryBatch, make_reranker
from stages.rerankers.base import Reranker
from stages.rerankers.selection import PredictorA, PredictorB
from stages.rerankers.ucofia import TERMS, UcofiaHead, UcofiaReranker
from tests.stages.test_rerankers import draw

FRAMES, WORDS = 4, 9


def drawn_head(
    width: int = 16, *, predictor: type[PredictorA] | type[PredictorB] = PredictorA, official: bool = False
) -> UcofiaHead:
    generator = torch.manual_seed(0)
    head = UcofiaHead(
        width, 1, 2, num_words=WORDS, num_frames=FRAMES, predictor=predictor(width), official=official
    ).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return head.requires_grad_(False)


def transcribed(head: UcofiaHead | None, sentence: Tensor, words: Tensor, tokens: Tensor) -> float:
    """UCoFiA's score of one pair as its formulas read, in double: [D], [W, D] and [F, P, D], none of it padding."""
    n = lambda x: x / x.norm(dim=-1, keepdim=True)  # noqa: E731
    real = torch.ones(1, len(tokens), dtype=torch.bool)
    t, w, f = n(sentence.double()), n(words.double()), n(tokens[:, 0].double())
    selected = (head or UcofiaHead()).visual_token_selector(tokens[None], real)[0].flatten(0, 1).double()
    contextual = tokens[:, 0].double()
    scale, patch_scale = 1.0, 1.0
    m = lambda name, size: torch.eye(size, dtype=torch.float64)  # noqa: E731
    if head is None:
        selected = n(selected)
    else:
        contextual = head.temporal(tokens[None, :, 0], real)[0].double()
        m = lambda name, size: head.get_parameter(name).double()[:size, :size]  # noqa: E731
        scale = head.logit_scale.exp().item()
    v = n(n(contextual).mean(0))

    def b(x: Tensor, name: str) -> Tensor:
        weights = (x / 0.01).softmax(-1) @ m(name, x.shape[-1])
        return ((weights / 0.01).softmax(-1) * x).sum(-1)

    width = len(t)
    c = w @ m("local_mat_weight", width) @ (selected @ m("local_mat_weight1", width)).T
    third = b(b(c.T, "word_mat_weight"), "pixel_mat_weight2") + b(b(c, "pixel_mat_weight"), "word_mat_weight2")
    first = (t @ m("global_mat_weight", width)) @ (v @ m("global_mat_weight_1", width))
    terms = [scale * first, scale * b(f @ t, "frame_logit_weight"), patch_scale * third / 2]
    return float(sum(terms) / 3)


def expect_transcribed(
    head: UcofiaHead | None, queries: QueryBatch, candidates: CandidateBatch, tolerance: float = 2e-5
) -> None:
    scores = UcofiaReranker(head).rank(queries, candidates)
    for row, column in candidates.is_candidate.nonzero().tolist():
        video = int(candidates.index[row, column])
        tokens = candidates.tokens[video].float()[candidates.frame_mask[video]]
        expected = transcribed(head, queries.sentence[row], queries.words[row][queries.word_mask[row]], tokens)
        assert scores[row, column].item() == pytest.approx(expected, abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(4, 6, 16), (1, 1, 16), (3, 2, 16), (12, 7, 64)])
def test_it_equals_its_formulas_without_weights(shape: tuple[int, int, int]) -> None:
    queries, candidates = draw(num_queries=9, shape=shape)
    expect_transcribed(None, queries, candidates)
    assert make_reranker("ucofia").name == "ucofia"


@pytest.mark.slow
@pytest.mark.parametrize("predictor", [PredictorA, PredictorB])
def test_it_equals_its_formulas_with_weights(predictor: type[PredictorA] | type[PredictorB]) -> None:
    queries, candidates = draw(num_queries=9, shape=(FRAMES, 6, 16))
    expect_transcribed(drawn_head(predictor=predictor), queries, candidates)


def test_the_parts_add_up() -> None:
    queries, candidates = draw(num_queries=9)
    for head in (None, drawn_head()):
        reranker = UcofiaReranker(head)
        parts = [part.rank(queries, candidates) for part in reranker.parts]
        torch.testing.assert_close(sum(parts) / len(TERMS), reranker.rank(queries, candidates))
        assert [part.name for part in reranker.parts] == [f"ucofia {term}" for term in TERMS]


def test_padding_changes_no_score_unless_asked_for() -> None:
    queries, candidates = draw(num_queries=9)
    padding = ~candidates.frame_mask[..., None, None]
    spoiled = replace(candidates, tokens=candidates.tokens.masked_fill(padding, 9.0))
    garbage = replace(candidates, tokens=candidates.tokens.masked_fill(padding, torch.nan))
    for head in (None, drawn_head()):
        ours = UcofiaReranker(head)
        scores = ours.rank(queries, candidates)
        assert torch.equal(ours.rank(queries, spoiled), scores)
        assert torch.equal(ours.rank(queries, garbage), scores)
    theirs = UcofiaReranker(drawn_head(official=True))
    assert not torch.allclose(theirs.rank(queries, spoiled), theirs.rank(queries, candidates), atol=1e-3)


def test_the_released_evaluation_leaves_a_matrix_out() -> None:
    """Nothing is padding here, so that in training form both are one."""
    queries, candidates = draw(num_queries=9)
    candidates.frame_mask[:] = True
    full = QueryBatch(queries.sentence, queries.words + 0.1, torch.ones_like(queries.word_mask))
    ours, theirs = drawn_head(), drawn_head(official=True)
    expected = UcofiaReranker(ours).rank(full, candidates)
    assert not torch.allclose(UcofiaReranker(theirs).rank(full, candidates), expected, atol=1e-3)
    torch.testing.assert_close(UcofiaReranker(theirs.train()).rank(full, candidates), expected, atol=1e-5, rtol=0)
    del ours.local_mat_weight1
    ours.local_mat_weight1 = None
    torch.testing.assert_close(
        UcofiaReranker(ours).rank(full, candidates),
        UcofiaReranker(theirs.eval()).rank(full, candidates),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.slow
@pytest.mark.parametrize("num_words", [3, WORDS, 14])
def test_scores_with_weights_do_not_depend_on_the_batch(num_words: int) -> None:
    queries, candidates = draw(num_queries=40, shape=(FRAMES, 6, 64), num_words=num_words)
    reranker: Reranker = UcofiaReranker(drawn_head(64))
    together = reranker.rank(queries, candidates)
    for row in (0, 7, 39):
        part = slice(row, row + 1)
        videos = candidates.index[row]
        alone = CandidateBatch(
            candidates.tokens[videos],
            None,
            candidates.frame_mask[videos],
            torch.arange(len(videos))[None],
            candidates.broad[part],
        )
        words = int(queries.word_mask[row].sum())
        own = QueryBatch(queries.sentence[part], queries.words[part, :words], queries.word_mask[part, :words])
        assert torch.equal(reranker.rank(own, alone)[0], together[row])


def test_far_apart_similarities_follow_the_formulas() -> None:
    """Powers below exp(-60) are taken for exp(-60), which costs no time: the score must be the same."""
    queries, candidates = draw(num_queries=3, shape=(FRAMES, 6, 16))
    far = replace(candidates, tokens=(candidates.tokens.float() * 30).half())
    expect_transcribed(drawn_head(), queries, far, tolerance=1e-3)


def test_a_state_dict_of_official_names_makes_a_head() -> None:
    for predictor in (PredictorA, PredictorB):
        head = drawn_head(predictor=predictor)
        unused = {"word_logit_weight": torch.zeros(WORDS, WORDS), "frame_mat_weight": torch.zeros(FRAMES, FRAMES)}
        again = UcofiaHead.of_state({**head.state_dict(), **unused}, num_heads=2).eval()
        assert isinstance(again.visual_token_selector.score_predictor, predictor)
        queries, candidates = draw()
        assert torch.equal(
            UcofiaReranker(again).rank(queries, candidates), UcofiaReranker(head).rank(queries, candidates)
        )
