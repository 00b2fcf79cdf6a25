from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.crash
def test_extract_killed_twenty_times_loses_nothing_and_repeats_nothing() -> None:
    command = [sys.executable, "-m", "tests.crash.kill_extract", "--kills", "20", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "equals the undisturbed one" in done.stdout
