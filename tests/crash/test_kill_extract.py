from __future__ import annotations

import pytest

from tests.crash import kill_extract
from tests.forked import start_function


@pytest.mark.crash
def test_extract_killed_twenty_times_loses_nothing_and_repeats_nothing() -> None:
    """Of fewer videos than ``python -m tests.crash.kill_extract`` has."""
    done = start_function(kill_extract.check, 20, 1, 60)
    out, err = done.communicate(timeout=900)
    assert done.returncode == 0, err
    assert "equals the undisturbed one" in out
