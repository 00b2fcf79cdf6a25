from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash import fuzz


@pytest.mark.slow
def test_broken_copies_of_real_clips_have_frames_or_a_reason_and_the_same_each_time(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = fuzz.real_clips([assets / "videos_tech"])
    assert fuzz.check(clips[::3], 14, 5, tmp_path) == {}
    counted = capsys.readouterr().out
    assert "partial" in counted
    assert "quarantined" in counted
