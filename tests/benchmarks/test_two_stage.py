from __future__ import annotations

import pytest

from benchmarks.two_stage import METHODS, run


@pytest.mark.slow
def test_two_stages_find_what_scoring_everything_finds() -> None:
    """Scores are compared to the last bit; the CPU time of so few videos says nothing."""
    ratios = {ratio.name: ratio for ratio in run(num_videos=120, growth=(60, 120), num_queries=4)}
    assert all(ratio.value > 0 for ratio in ratios.values())
    for name in METHODS:
        assert ratios[f"{name}, same ten best of K, percent"].value == 100
        assert ratios[f"{name}, first places kept, percent"].holds
        assert "only reading" in ratios[f"{name}, all scored / two stages"].detail
        for number in (120, 240):
            row = ratios[f"one query, {name}, all scored / two stages, {number} videos"]
            assert "rankings as among the others" in row.detail
