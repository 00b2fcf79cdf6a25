from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash import kill_refresh, read_beside, refreshing, steps
from tests.forked import start_function


def small_forms(folder: Path) -> None:
    refreshing.preload()
    folders = [folder / name for name in ("changed", "first", "killed", "read")]
    for one in folders:
        one.mkdir()
    print("steps", len(steps.check(folders[0], steps.Plan(stride=30, offset=12))))
    print("steps", len(steps.check(folders[1], steps.Plan(stride=60, offset=30, first=True, fault="ENOSPC"))))
    print("kills", *kill_refresh.check(folders[2], 3, 1))
    print("answers", *read_beside.check(folders[3], 2))


@pytest.mark.crash
def test_a_refresh_that_is_ended_anywhere_loses_nothing_and_disturbs_no_reader(tmp_path: Path) -> None:
    """The whole forms are commands: python -m tests.crash.steps, kill_refresh, read_beside."""
    done = start_function(small_forms, tmp_path)
    out, err = done.communicate(timeout=1200)
    assert done.returncode == 0, err
    found = [line.split() for line in out.splitlines()]
    assert [name for name, *_ in found] == ["steps", "steps", "kills", "answers"]
    assert int(found[0][1]) >= 3
    assert int(found[2][1]) == 3
    assert int(found[3][2]) >= 3
