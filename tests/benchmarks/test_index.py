from __future__ import annotations

import pytest

from benchmarks import index


@pytest.mark.slow
def test_the_measurement_runs_and_updates_what_it_says() -> None:
    ratios = list(index.run(300))
    assert [ratio.detail.split(";")[0] for ratio in ratios] == ["1 of 300 x 512 changed", "3 of 300 x 512 changed"]
    assert all(ratio.value > 0 for ratio in ratios)
