from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from index_store.records import Hit, Query, Ranking
from stages.normalise import DenseBlock, Method, Sinkhorn, make_normaliser
from stages.normalised import Normalisation, logit_factor, normalised
from stages.rerankers.base import BroadReranker, Reranker
from stages.rerankers.pairwise import PairwiseReranker
from stages.rerankers.ts2net import Ts2NetHead

IDS = np.array([3, 5, 8, 13, 21])
SCALE = 20.0


def cosines(texts: Iterable[str]) -> NDArray[np.float64]:
    """A text is the seed of its scores, float64 [T, 5]; video 8 is liked by all."""
    rows = [0.3 + 0.1 * np.random.default_rng(int(text)).standard_normal(len(IDS)) for text in texts]
    return np.array(rows) + np.array([0, 0, 0.2, 0, 0])


def rank(queries: Iterable[Query], reranker: Reranker) -> Iterator[Ranking]:
    """By ``cosines``; a reranker called 'bent' squares them."""
    for query in queries:
        scores = cosines([query.text])[0] ** (2 if reranker.name == "bent" else 1)
        hits = [
            Hit(int(number), f"v{number}", 0.0, float(score), 1.5) for number, score in zip(IDS, scores, strict=True)
        ]
        yield Ranking(query.id, tuple(sorted(hits, key=lambda hit: -hit.score)))


class Bent(BroadReranker):
    name = "bent"


class Mean(BroadReranker):
    name = "mean"
    parts = (BroadReranker(), Bent())


def by_id(ranking: Ranking) -> list[float]:
    return [hit.score for hit in sorted(ranking.hits, key=lambda hit: hit.video_id)]


@pytest.mark.parametrize("method", ["sinkhorn", "dual-softmax", "qb-norm"])
@pytest.mark.parametrize("bank", [("70", "71", "72"), ()])
def test_rankings_are_normalised_as_whole_matrices_are(method: Method, bank: tuple[str, ...]) -> None:
    texts = [str(number) for number in range(6)]
    queries = [Query(f"q{text}", text) for text in texts]
    found = list(normalised(Normalisation(method, bank, SCALE), rank, BroadReranker(), queries, IDS))
    block = DenseBlock(cosines(bank or texts).astype(np.float32))
    whole = make_normaliser(method, lambda: [block], len(IDS), SCALE)
    expected = whole(cosines(texts), np.broadcast_to(np.arange(len(IDS)), (6, len(IDS))))
    assert [ranking.query_id for ranking in found] == [query.id for query in queries]
    np.testing.assert_allclose([by_id(ranking) for ranking in found], expected, rtol=1e-5)
    for ranking in found:
        assert [hit.score for hit in ranking.hits] == sorted((hit.score for hit in ranking.hits), reverse=True)
        assert all((hit.key, hit.moment_seconds) == (f"v{hit.video_id}", 1.5) for hit in ranking.hits)


def test_with_a_bank_a_ranking_depends_on_no_other_query() -> None:
    asked = Normalisation("sinkhorn", ("70", "71", "72"), SCALE)
    queries = [Query(str(number), str(number)) for number in range(4)]
    together = list(normalised(asked, rank, BroadReranker(), queries, IDS))
    assert [next(normalised(asked, rank, BroadReranker(), [query], IDS)) for query in queries] == together


def test_a_method_of_several_similarities_has_a_bias_for_each() -> None:
    bank = ("70", "71", "72")
    (found,) = normalised(Normalisation("sinkhorn", bank, SCALE), rank, Mean(), [Query("q", "1")], IDS)
    biases = [
        Sinkhorn.of(lambda power=power: [DenseBlock(cosines(bank) ** power)], len(IDS), SCALE).biases  # type: ignore[misc]
        for power in (1, 2)
    ]
    np.testing.assert_allclose(by_id(found), cosines(["1"])[0] + np.mean(biases, axis=0), rtol=1e-5)


def test_scores_with_a_logit_scale_of_their_own_are_logits() -> None:
    head = Ts2NetHead()
    assert logit_factor(PairwiseReranker(head), 100.0) == 100.0
    assert logit_factor(BroadReranker(), 100.0) == 100.0
    head.logit_scale.data.fill_(4.6)
    assert logit_factor(PairwiseReranker(head), 100.0) == 1.0
