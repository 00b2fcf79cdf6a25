"""Ends a refresh at each of its durable steps, one after the other, and looks at the store each time.

    python -m tests.crash.steps
    python -m tests.crash.steps --stride 20

The source has new, changed, moved, copied, removed and broken videos. For every n, a copy of the store is refreshed by
a process that dies just before its n-th step (a write, fsync, rename, removal, SQL statement; a write is half done).
Then: ``verify --read-data`` finds nothing; readers get a state that the undisturbed refresh went through, and never an
earlier one after a later one; the next refresh finishes, and the store equals the undisturbed one, row by row and byte
by byte. With ``--first`` the store does not exist before.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.crash.killer import KILLED, Killer
from tests.crash.refreshing import (
    Source,
    answer,
    finish,
    fork,
    preload,
    refresh,
    refresh_well,
    require_clean,
    require_equal,
    rows,
)


def refresh_dying_at(step: int, store: Path, source: Path, log: Path) -> tuple[int, str]:
    """Exit code, and the step that it died before; an empty one when it finished."""
    reader, writer = os.pipe()

    def action() -> int:
        Killer(store, step, lambda name: os.write(writer, name.encode())).install()
        return refresh(store, source)

    pid = fork(action, log)
    os.close(writer)
    name = os.read(reader, 1000).decode()
    os.close(reader)
    return finish(pid), name


def undisturbed(base: Path | None, source: Path, folder: Path) -> Path:
    """The store as it must be in the end."""
    store = folder / "undisturbed"
    if base is not None:
        shutil.copytree(base, store)
    assert refresh_well(store, source, folder / "log") == 3
    require_clean(store)
    return store


def is_there(store: Path) -> bool:
    return (store / "tbpipe.toml").exists()


def check(folder: Path, stride: int = 1, first: bool = False, offset: int = 1) -> list[str]:
    """Raise AssertionError when anything is lost, mixed or different; gives the steps that were tried."""
    source = Source(folder)
    source.fill(5)
    base = None
    if not first:
        base = folder / "base"
        refresh_well(base, source.videos, folder / "log")
    source.change()
    whole = undisturbed(base, source.videos, folder)
    steps = []
    states: list[object] = []
    for step, name in kills(base, source.videos, folder, stride, offset):
        store = folder / "store"
        if is_there(store):
            require_clean(store)
            state = (rows(store), answer(store))
            if not states or states[-1] != state:
                assert state not in states, f"step {step}, {name}: a state that was left before"
                states.append(state)
        refresh_well(store, source.videos, folder / "log")
        require_equal(store, whole, f"ended at step {step}, {name}")
        shutil.rmtree(store)
        steps.append(name)
        print(f"{step:4d}  {name}", file=sys.stderr, flush=True)
    assert steps
    if stride == 1:
        assert len(states) > 2, "it was never seen between its commits"
        assert first or states[0] == (rows(base), answer(base))
    return steps


def kills(base: Path | None, source: Path, folder: Path, stride: int, offset: int) -> Iterator[tuple[int, str]]:
    """Number and name of each step that a refresh of ``folder/store``, a new copy of ``base``, just died at."""
    for step in itertools.count(offset, stride):
        store = folder / "store"
        if base is not None:
            shutil.copytree(base, store)
        code, name = refresh_dying_at(step, store, source, folder / "log")
        if not name:
            assert code == 3, (folder / "log").read_text()
            shutil.rmtree(store)
            return
        assert code == KILLED, f"step {step}, {name}: exit code {code}: {(folder / 'log').read_text()}"
        yield step, name


def main() -> None:
    """Parse and check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stride", type=int, default=1, help="try every so many steps")
    parser.add_argument("--offset", type=int, default=1, help="the first step to try")
    parser.add_argument("--first", action="store_true", help="the first refresh, which makes the store")
    arguments = parser.parse_args()
    preload()
    with tempfile.TemporaryDirectory() as name:
        steps = check(Path(name), arguments.stride, arguments.first, arguments.offset)
    kinds = sorted({step.split()[0] for step in steps})
    print(f"{len(steps)} steps ({', '.join(kinds)}): after each, clean; finished, equal to the undisturbed store")


if __name__ == "__main__":
    main()
