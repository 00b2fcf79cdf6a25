"""Decodes broken copies of real clips, and says what became of each of them.

    python -m tests.crash.fuzz --mutations 1000 --seed 0

Every copy is decoded in worker processes twice, in another order, by another number of workers that are replaced at
other times, and then once more by ``tbpipe extract`` into a store. Wanted: each file has its frames or a known reason,
the same all three times; none is the fault of our own code; a file takes no longer than its time and no more than its
memory; at the end no process, descriptor or memory is left. ``--keep DIR`` keeps the files that broke a rule.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from index_store.settings import SamplingSettings
from index_store.store import Store
from stages.decode_pool import DecodePool, DecodeResult, DecodeTask
from stages.errors import REASONS
from tests.conftest import SHARED
from tests.crash.mutations import mutated

SAMPLING = SamplingSettings("uniform", 12)
LARGEST_CLIP_BYTES = 300_000
"""Small ones are as broken as large ones, and take less time."""
TIMEOUT_SECONDS = 60.0
MEMORY_BYTES = 1 << 30
LIBRARY_BYTES = 256 << 20
"""Of a worker's resident memory, what may be pages of shared libraries, which its limit does not count."""
SLACK_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is kept of one file; equal on every run."""

    content_hash: str
    status: str
    reason_code: str
    detail: str
    """Of an error, or the note of a file that was read."""
    pixels: str
    """SHA-256 of frames, times and duration."""


@dataclass(slots=True)
class Watch:
    """What the workers took."""

    peak_bytes: int = 0
    slowest: list[tuple[float, str]] = field(default_factory=list)


def make_files(clips: Iterable[Path], folder: Path, number: int, seed: int) -> list[str]:
    """Write that many broken copies; gives what is wrong with each."""
    originals = [path.read_bytes() for path in clips]
    names = []
    for index in range(number):
        rng = random.Random(f"{seed}/{index}")
        content, name = mutated(originals[index % len(originals)], rng.choice(originals), rng)
        (folder / f"{index:05d}.mp4").write_bytes(content)
        names.append(name)
    return names


def real_clips(folders: Iterable[Path]) -> list[Path]:
    """The small files in these folders, sorted, so that the same number always makes the same file."""
    found = [path for folder in folders for path in sorted(folder.iterdir()) if path.is_file()]
    return [path for path in found if 0 < path.stat().st_size <= LARGEST_CLIP_BYTES and path.suffix != ".md"]


def decode_all(paths: list[Path], num_workers: int, recycle_after: int, watch: Watch) -> dict[str, Verdict]:
    """Decode them in this order."""
    verdicts = {}
    pool = DecodePool(SAMPLING, num_workers, TIMEOUT_SECONDS, MEMORY_BYTES, recycle_after)
    with pool, watching_memory(watch):
        before = time.monotonic()
        for result in pool.map(DecodeTask(path) for path in paths):
            name = result.task.path.name
            verdicts[name] = verdict_of(result)
            result.release()
            now = time.monotonic()
            watch.slowest = sorted([*watch.slowest, (now - before, name)], reverse=True)[:5]
            before = now
        assert pool.held_bytes == 0, f"{pool.held_bytes} bytes of frames were never given back"
    return verdicts


def verdict_of(result: DecodeResult) -> Verdict:
    """Raises AssertionError for a result that contradicts itself."""
    batch, error = result.frames, result.error
    assert (batch is None) == (error is not None), "neither frames nor a reason, or both"
    if error is not None:
        assert error.reason_code in REASONS
        assert error.detail.isprintable()
        return Verdict(result.content_hash, "quarantined", error.reason_code, error.detail, "")
    assert batch is not None
    times = batch.timestamps_seconds
    assert 1 <= len(times) <= SAMPLING.frames
    assert batch.frames.dtype == np.uint8
    assert np.isfinite(times).all()
    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0
    assert np.isfinite(batch.duration_seconds)
    assert batch.duration_seconds >= times[-1], "the last frame is shown after the end"
    assert batch.note.isprintable()
    digest = hashlib.sha256(batch.frames.tobytes())
    digest.update(repr((times.tolist(), batch.duration_seconds, batch.decoder, batch.frames.shape)).encode())
    status = "partial" if batch.is_partial else "ok"
    return Verdict(result.content_hash, status, "", batch.note, digest.hexdigest())


@contextlib.contextmanager
def watching_memory(watch: Watch) -> Iterator[None]:
    """Look at the largest resident memory that any child of this process has had, many times a second."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.05):
            for child in children():
                with contextlib.suppress(OSError, IndexError):
                    text = Path(f"/proc/{child}/status").read_text()
                    watch.peak_bytes = max(watch.peak_bytes, int(text.split("VmHWM:")[1].split()[0]) << 10)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def children() -> set[int]:
    """Processes that this one has started and that are still known to the system."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found |= {int(child) for child in (task / "children").read_text().split()}
    return found


def what_is_held() -> tuple[set[int], int, int]:
    """Child processes, open descriptors, and maps of memory files of this process."""
    maps = Path("/proc/self/maps").read_text().count("tbpipe-frames")
    return children(), len(os.listdir("/proc/self/fd")), maps


def extract_all(folder: Path, store: Path) -> dict[str, tuple[str, str, str, str]]:
    """Run ``tbpipe extract``; gives content hash, status, reason and detail of each file, all features checked."""
    from click.testing import CliRunner

    from pipeline.cli import main

    options = ["--model", "tbpipe-small", "--device", "cpu", "--decode-memory", str(MEMORY_BYTES), "--quiet"]
    done = CliRunner().invoke(main, ["extract", str(folder), "--store", str(store), *options])
    assert done.exit_code in (0, 3), done.output
    with Store.open(store).snapshot() as snapshot:
        records = list(snapshot.videos())
        for record in records:
            if record.shard is not None:
                snapshot.verify_record(record.id)
    return {r.key: (r.content_hash, r.status, r.reason_code, r.reason_detail or r.decoder_note) for r in records}


def faults_of(verdict: Verdict) -> str:
    """Why a verdict is our fault; empty when it is not."""
    if verdict.reason_code == "decoder_crashed" and not verdict.detail.startswith("the worker was ended by"):
        return f"our own code failed: {verdict.detail}"
    if verdict.reason_code in ("unreadable", "missing", "not_a_file", "changed_while_reading", "not_finite"):
        return f"{verdict.reason_code} is not true: {verdict.detail}"
    return ""


def check(clips: list[Path], number: int, seed: int, folder: Path) -> dict[str, str]:
    """Print what became of the files; gives those that broke a rule, each with the rule."""
    files = folder / "files"
    files.mkdir()
    what = make_files(clips, files, number, seed)
    paths = sorted(files.iterdir())
    before, watch = what_is_held(), Watch()
    first = decode_all(paths, 2, 500, watch)
    alone = Watch(watch.peak_bytes)
    second = decode_all(paths[::-1], 1, 37, alone)  # one worker: the time between two results is the time of a file
    assert what_is_held() == before, f"{what_is_held()} is held after decoding, {before} was before"
    assert alone.peak_bytes <= MEMORY_BYTES + LIBRARY_BYTES, f"a worker took {alone.peak_bytes} bytes"
    assert alone.slowest[0][0] <= TIMEOUT_SECONDS + SLACK_SECONDS, f"a file took {alone.slowest[0]}"
    kept = extract_all(files, folder / "store")
    bad = {}
    for name, verdict in sorted(first.items()):
        found = kept[name]
        reason = "damaged" if verdict.status == "partial" else verdict.reason_code
        expected = (verdict.content_hash, verdict.status, reason, verdict.detail)
        if fault := faults_of(verdict):
            bad[name] = fault
        elif verdict != second[name]:
            bad[name] = f"two answers: {verdict} and {second[name]}"
        elif found != expected:
            bad[name] = f"the store has {found}, decoding gave {expected}"
    report(first, alone, what)
    return {name: f"{rule} (after {what[int(name[:5])]})" for name, rule in bad.items()}


def report(verdicts: dict[str, Verdict], watch: Watch, what: list[str]) -> None:
    """Print how often each thing was found."""
    for (status, reason), count in Counter((v.status, v.reason_code) for v in verdicts.values()).most_common():
        print(f"{count:6d}  {status} {reason}")
    for seconds, name in watch.slowest:
        print(f"{seconds:6.1f} s  {name}: {what[int(name[:5])]}, {verdicts[name].status} {verdicts[name].reason_code}")
    print(f"a worker took at most {watch.peak_bytes / 1e6:.0f} MB; its limit is {MEMORY_BYTES / 1e6:.0f} MB")


def main() -> int:
    """Parse and check; 1 when a file broke a rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--clips", type=Path, nargs="+", default=[SHARED / "assets" / n for n in ("videos", "videos_tech")]
    )
    parser.add_argument("--keep", type=Path, help="copy files that broke a rule there")
    arguments = parser.parse_args()
    clips = real_clips(arguments.clips)
    if not clips:
        parser.error(f"no file of at most {LARGEST_CLIP_BYTES} bytes in {arguments.clips}; name folders with --clips")
    with tempfile.TemporaryDirectory() as name:
        bad = check(clips, arguments.mutations, arguments.seed, Path(name))
        for broken, rule in bad.items():
            print(f"{broken}: {rule}")
            if arguments.keep:
                arguments.keep.mkdir(parents=True, exist_ok=True)
                shutil.copy(Path(name) / "files" / broken, arguments.keep)
    print(f"{arguments.mutations} mutations of {len(clips)} clips, seed {arguments.seed}: {len(bad)} broke a rule")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
