from __future__ import annotations

from benchmarks import rerank
from benchmarks.corpus import settings


def test_the_plain_form_gives_the_same_scores_and_every_claim_is_measured() -> None:
    ratios = {ratio.name: ratio for ratio in rerank.run(30, 5, 4, 6, settings(3, 4, 32))}
    assert len(ratios) == 4
    assert all(ratio.value > 0 for ratio in ratios.values())
    same = ratios["token-binder, largest difference of scores"]
    assert same.value < 1e-5
    assert "moves them by 0.0" in same.detail
    assert "moves them by 0.000" not in same.detail
