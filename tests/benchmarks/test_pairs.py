from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.pairs import METHODS, run


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])
def test_our_scores_are_those_of_the_formulas(method) -> None:  # type: ignore[no-untyped-def]
    """``run`` compares them before it measures; the ratio of so few pairs says nothing."""
    (ratio,) = run([replace(method, num_texts=5, num_videos=3)], repetitions=1)
    assert ratio.value > 0
    assert ratio.limit == method.limit
