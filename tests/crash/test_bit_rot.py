from __future__ import annotations

import pytest

from tests.crash import bit_rot


@pytest.mark.crash
def test_flipped_bytes_are_named_and_undone() -> None:
    """The short form: every file and every dataset once. The whole one: python -m tests.crash.bit_rot."""
    needed = bit_rot.check(num_positions=32, seed=1)
    assert set(needed) >= {"extract", "index alone", "repair alone", "shards", "catalog.sqlite", "catalog.sqlite-wal"}
    assert sum(needed[name] for name in ("extract", "index alone", "repair alone")) == 32
