from __future__ import annotations

import pytest

from benchmarks.prepared import METHODS, run


@pytest.mark.slow
def test_rankings_are_the_same_and_less_is_read() -> None:
    """``run`` compares the rankings before it measures; the CPU time of so few videos says nothing."""
    ratios = list(run(num_videos=12, num_queries=1, repetitions=1))
    assert len(ratios) == 2 * len(METHODS)
    assert all(ratio.holds for ratio in ratios if "bytes" in ratio.name)
