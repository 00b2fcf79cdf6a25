"""Our code gives the numbers of the authors' own code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import SHARED
from tests.golden.check import EXACT, LOGITS, SYSTEMS, check, compare, main

GOLDEN = SHARED / "golden"
READY = [system for system in SYSTEMS if (Path(__file__).parent / f"{system}.py").exists()]
"""The systems that are done."""


@pytest.mark.parametrize("system", READY)
def test_every_array_agrees(system: str) -> None:
    if not GOLDEN.is_dir():
        pytest.skip(f"numbers of the authors' code not found at {GOLDEN}")
    outcomes = list(check(GOLDEN, system))
    assert outcomes
    assert [outcome for outcome in outcomes if not outcome.fits] == []


def test_a_wrong_number_a_wrong_shape_and_nan_are_misses() -> None:
    theirs = np.array([1.0, -np.inf, 3.0])
    assert compare("x", "out.a", theirs, theirs, EXACT).fits
    assert not compare("x", "out.a", theirs + np.array([0, 0, 1e-9]), theirs, EXACT).fits
    assert compare("x", "out.a", theirs + np.array([1e-4, 0, 0]), theirs, LOGITS).fits
    assert not compare("x", "out.a", np.array([1.0, 0.0, 3.0]), theirs, LOGITS).fits
    assert not compare("x", "out.a", np.array([1.0, -np.inf, np.nan]), theirs, LOGITS).fits
    assert not compare("x", "out.a", theirs[:2], theirs, LOGITS).fits
    assert compare("x", "out.a", theirs[:2], theirs, None).fits


def test_a_folder_without_the_files_is_a_miss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--golden", str(tmp_path)]) == 1
    assert f"{len(SYSTEMS)} missed" in capsys.readouterr().out
