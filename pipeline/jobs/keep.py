"""``tbpipe verify``, ``repair`` and ``compact``: whether a store is whole, and what keeps it so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from index_store.compact import CompactReport
from index_store.compact import compact as compact_store
from index_store.repair import RepairReport
from index_store.repair import repair as repair_store
from index_store.store import Store
from index_store.verify import VerifyReport
from index_store.verify import verify as verify_store
from pipeline.progress import progress_bar
from pipeline.stop import stop_on_signals

_MEGABYTE = 1e6


def verify(directory: Path, read_data: bool, quiet: bool) -> VerifyReport:
    """Run ``tbpipe verify``."""
    with _bytes_read("verify", directory, quiet or not read_data) as on_bytes:
        return verify_store(directory, read_data, on_bytes)


def repair(directory: Path, accept_loss: bool, lock_timeout: float, quiet: bool) -> RepairReport:
    """Run ``tbpipe repair``."""
    with _bytes_read("repair", directory, quiet) as on_bytes:
        return repair_store(directory, lock_timeout, on_bytes, accept_loss)


def compact(
    directory: Path, waste: float, shard_size: int, dry_run: bool, lock_timeout: float, quiet: bool
) -> CompactReport:
    """Run ``tbpipe compact``; a signal ends it between two shards."""
    store = Store.open(directory)
    with stop_on_signals() as stop, _bytes_read("compact", directory, quiet or dry_run) as on_bytes:
        report = compact_store(store, waste, shard_size, dry_run, lock_timeout, on_bytes, stop)
    if report.interrupted:
        raise stop.error(f"stopped by a signal; {report.num_new} new shards are done: run the same command to go on")
    return report


@contextmanager
def _bytes_read(title: str, directory: Path, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar in MB, without a total: what must be read is known only when the catalog can be trusted."""
    with progress_bar(title, None, "MB", quiet) as advance:
        yield lambda count: advance(count / _MEGABYTE)
