"""Ends a refresh at each of its durable steps, one after the other, and looks at the store each time.

    python -m tests.crash.steps
    python -m tests.crash.steps --fault ENOSPC

The source has new, changed, moved, copied, removed and broken videos. For every n, a copy of the store is refreshed by
a process that dies just before its n-th step (a write, fsync, rename, removal, SQL statement; a write is half done), or
for which the disk is full, broken or read-only from there on. Then: it ended as it must; ``verify --read-data`` finds
nothing; readers get a state that the undisturbed refresh went through, and never an earlier one after a later one; the
next refresh finishes, and the store equals the undisturbed one, row by row and byte by byte.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from index_store.settings import has_store_section
from tests.crash.killer import KILLED, Killer
from tests.crash.refreshing import (
    Source,
    answer,
    finish,
    fork,
    new_store,
    preload,
    refresh,
    refresh_well,
    require_clean,
    require_equal,
    rows,
    standing_answer,
)

CODES = {"ENOSPC": {14}, "EIO": {1}, "EROFS": {18}}
"""How a refresh must end where the disk fails in this way."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is tried."""

    stride: int = 1
    offset: int = 1
    first: bool = False
    """True = the store does not exist before."""
    fault: str = ""
    """Name of the error that the disk gives from then on; empty: the process is ended."""


def disturbed(step: int, store: Path, source: Path, log: Path, fault: str) -> str:
    """Refresh, disturbed at that step; gives the step, or nothing when it finished. Checks how it ended."""
    reader, writer = os.pipe()

    def action() -> int:
        number = getattr(errno, fault) if fault else 0
        Killer(store, step, lambda name: os.write(writer, name.encode()), number).install()
        return refresh(store, source)

    pid = fork(action, log)
    os.close(writer)
    name = os.read(reader, 1000).decode()
    os.close(reader)
    code = finish(pid)
    said = log.read_text()
    expected = {0, 3} if not name else {0, 3, *CODES[fault]} if fault else {KILLED}
    assert code in expected, f"step {step}, {name}: exit code {code}: {said}"
    assert "a bug in tbpipe" not in said, f"step {step}, {name}: {said}"
    return name


def check(folder: Path, plan: Plan) -> list[str]:
    """Raise AssertionError when anything is lost, mixed or different; gives the steps that were tried."""
    source, base, log = Source(folder), folder / "base", folder / "log"
    source.fill(5)
    new_store(base, folder)
    if not plan.first:
        refresh_well(base, source.videos, log)
    source.change()
    whole = folder / "undisturbed"
    shutil.copytree(base, whole)
    assert refresh_well(whole, source.videos, log) == 3
    require_clean(whole)
    assert standing_answer(whole) not in (b"", standing_answer(base))
    steps: list[str] = []
    states: list[object] = []
    store = folder / "store"
    for step in itertools.count(plan.offset, plan.stride):
        shutil.copytree(base, store)
        name = disturbed(step, store, source.videos, log, plan.fault)
        if not name:
            break
        if has_store_section(store / "tbpipe.toml"):
            require_clean(store)
            state = (rows(store), answer(store), standing_answer(store))
            if not states or states[-1] != state:
                assert state not in states, f"step {step}, {name}: a state that was left before"
                states.append(state)
        refresh_well(store, source.videos, log)
        require_equal(store, whole, f"ended at step {step}, {name}")
        shutil.rmtree(store)
        steps.append(name)
        print(f"{step:4d}  {name}", file=sys.stderr, flush=True)
    assert steps
    if plan.stride == plan.offset == 1:
        assert len(states) > 2, "it was never seen between its commits"
        assert plan.first or states[0] == (rows(base), answer(base), standing_answer(base))
    return steps


def main() -> None:
    """Parse and check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stride", type=int, default=1, help="try every so many steps")
    parser.add_argument("--offset", type=int, default=1, help="the first step to try")
    parser.add_argument("--first", action="store_true", help="the first refresh, which makes the store")
    parser.add_argument("--fault", choices=CODES, default="", help="the disk fails from that step on")
    plan = Plan(**vars(parser.parse_args()))
    preload()
    with tempfile.TemporaryDirectory() as name:
        steps = check(Path(name), plan)
    kinds = sorted({step.split()[0] for step in steps})
    print(f"{len(steps)} steps ({', '.join(kinds)}): after each, clean; finished, equal to the undisturbed store")


if __name__ == "__main__":
    main()
