"""Does one thing to a store in many processes, the n-th of which dies at its n-th durable step.

    python -m tests.index_store.crash_child ACTION DIRECTORY STRIDE

DIRECTORY holds ``base``, a store (or nothing, for ``create``). Copy number n becomes ``DIRECTORY/n``; the process that
works on it ends, as by kill -9, just before step n: a write (half of it is done), fsync, rename, removal, mkdir or SQL
statement. Tried are the steps 1, 1 + STRIDE, ... until one process finishes; its copy is the last. Prints one line for
each: the number and the step.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from index_store.catalog import IndexManifestFields
from index_store.compact import compact as compact_store
from index_store.prepared import PreparedAbout
from index_store.repair import repair
from index_store.store import Store
from tests.index_store.samples import SETTINGS, bad, copy_of, ok

KILLED = 137
FILE_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


def create(directory: Path) -> None:
    Store.create(directory, SETTINGS)


def commit(directory: Path) -> None:
    with Store.open(directory).writer() as writer:
        writer.commit([ok("b", 20), ok("c", 3), bad("a"), copy_of("d", 2), copy_of("e", 3)])


def publish(directory: Path) -> None:
    def build(folder: Path) -> IndexManifestFields:
        for name in ("index.faiss", "ids.npy"):
            (folder / name).write_bytes(name.encode() * 100)
        return IndexManifestFields(2, "Flat", SETTINGS.fingerprint, 1)

    with Store.open(directory).writer() as writer:
        writer.publish_index(build)


def requeue(directory: Path) -> None:
    with Store.open(directory).writer() as writer:
        writer.requeue(None)


def prepare(directory: Path) -> None:
    """Rows 0 and 1 of every shard; what they hold says which."""
    about = PreparedAbout("method", "ab" * 32, SETTINGS.fingerprint, "", "", "cpu")
    with Store.open(directory).snapshot() as snapshot, snapshot.prepared_writer(about) as writer:
        writer.remove_others()
        for shard in snapshot.shards():
            if writer.reader().count(shard.id, np.arange(2)) < 2:
                with writer.file(shard) as file:
                    for row in (0, 1):
                        field = np.full((1, 3), 10 * shard.id + row, np.float32)
                        file.put([row], {"field": field, "mask": field > 0}, {"other": "field"})


def compact(directory: Path) -> None:
    """One shard of all."""
    compact_store(Store.open(directory))


def mend(directory: Path) -> None:
    repair(directory)


ACTIONS: dict[str, Callable[[Path], None]] = {
    "create": create,
    "commit": commit,
    "publish": publish,
    "requeue": requeue,
    "compact": compact,
    "repair": mend,
    "prepare": prepare,
}


class Killer:
    """Counts durable steps and ends this process before the n-th."""

    def __init__(self, last_step: int, report: int) -> None:
        self.remaining = last_step
        self.report = report
        self.active = True

    def step(self, name: str) -> bool:
        """Whether this is the step to die in."""
        self.remaining -= self.active
        if self.remaining == 0 and self.active:
            os.write(self.report, name.encode())
            return True
        return False

    def die_at(self, name: str) -> None:
        if self.step(name):
            os._exit(KILLED)

    def install(self) -> None:
        sys.addaudithook(self._on_audit)
        fsync, pwrite, connect = os.fsync, os.pwrite, sqlite3.connect

        def counted_fsync(descriptor: int) -> None:
            self.die_at("fsync")
            fsync(descriptor)

        def counted_pwrite(descriptor: int, data: Any, offset: int) -> int:
            if self.step("write"):
                pwrite(descriptor, memoryview(data)[: len(data) // 2], offset)
                os._exit(KILLED)
            return pwrite(descriptor, data, offset)

        def traced_connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*arguments, **options)
            connection.set_trace_callback(lambda sql: self.die_at(f"sql {' '.join(sql.split())[:30]}"))
            return connection

        os.fsync, os.pwrite, sqlite3.connect = counted_fsync, counted_pwrite, traced_connect  # type: ignore[assignment]

    def _on_audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            self.die_at(event)


def run(action: Callable[[Path], None], directory: Path, last_step: int) -> str:
    """Run ``action`` in a process of its own; returns the step it died at, or "" when it was finished."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            killer = Killer(last_step, writer)
            killer.install()
            action(directory)
            killer.active = False
        except BaseException as error:
            os.write(writer, f"failed: {error!r}".encode())
            os._exit(1)
        os._exit(0)
    os.close(writer)
    step = os.read(reader, 1000).decode()
    os.close(reader)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, KILLED):
        raise SystemExit(f"step {last_step}: exit code {code}, {step}")
    return step


def main(action: str, directory: Path, stride: int) -> None:
    for number in itertools.count(1, stride):
        copy = directory / str(number)
        if (directory / "base").exists():
            shutil.copytree(directory / "base", copy)
        step = run(ACTIONS[action], copy, number)
        print(number, step or "finished", flush=True)
        if not step:
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
