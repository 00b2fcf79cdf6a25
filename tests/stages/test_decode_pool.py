from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from index_store.errors import ComponentMissingError
from index_store.settings import SamplingSettings
from stages import decode_pool
from stages.decode_pool import DecodePool, DecodeResult, DecodeTask
from stages.video import decode
from tests.stages.clips import numbers_in, write_clip

UNIFORM = SamplingSettings("uniform", 4)
ODD = ("tests.stages.odd_decoder",)
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes and descriptors of POSIX systems")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "good.mp4", 20)


@pytest.fixture(scope="module")
def odd_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecodePool]:
    """One worker with the odd decoder, running, for tests that leave it as it is."""
    warm = write_clip(tmp_path_factory.mktemp("warm") / "good.mp4", 3)
    with DecodePool(UNIFORM, num_workers=1, decoders=ODD) as pool:
        assert states(pool, [warm]) == ["ok"]
        yield pool


@pytest.fixture(autouse=True)
def _nothing_is_left(odd_pool: DecodePool) -> Iterator[None]:
    """No child process, shared memory, or descriptor outlives a test."""
    gc.collect()  # what earlier tests dropped is not this one's
    before, num_open = (children(), shared_memory()), len(os.listdir("/proc/self/fd"))
    yield
    assert (children(), shared_memory()) == before
    assert len(os.listdir("/proc/self/fd")) <= num_open  # fewer, where an earlier test's went meanwhile


def children(of: int | None = None) -> set[int]:
    """Processes whose parent is ``of`` (this process if None)."""
    found: set[int] = set()
    for task in Path(f"/proc/{of or os.getpid()}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found |= {int(child) for child in (task / "children").read_text().split()}
    return found


def shared_memory() -> list[str]:
    """Segments that no foreign process, as another run of these tests, has mapped."""
    names = sorted(os.listdir("/dev/shm"))
    return [name for name in names if not is_mapped_elsewhere(name)]


def is_mapped_elsewhere(name: str) -> bool:
    own = {os.getpid(), *children()}
    for process in [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]:
        with contextlib.suppress(OSError):  # it has just ended, or is somebody else's
            if process not in own and f"/dev/shm/{name}" in Path(f"/proc/{process}/maps").read_text():
                return True
    return False


def copies(clip: Path, names: list[str]) -> list[Path]:
    paths = [clip.parent / name for name in names]
    for path in paths:
        path.write_bytes(clip.read_bytes())
    return paths


def state(result: DecodeResult) -> str:
    """One word for what became of a task; releases its frames."""
    if result.error is not None:
        return result.error.reason_code
    word = "known" if result.frames is None else "partial" if result.frames.is_partial else "ok"
    result.release()
    return word


def states(pool: DecodePool, paths: list[Path]) -> list[str]:
    return [state(result) for result in pool.map(DecodeTask(path) for path in paths)]


def test_results_come_in_order_and_equal_a_decode_in_this_process(tmp_path: Path) -> None:
    paths = [write_clip(tmp_path / f"{n}.mp4", 5 + n, size=(96, 64 + 16 * (n % 3))) for n in range(5)]
    paths.insert(2, tmp_path / "missing.mp4")
    with DecodePool(UNIFORM, num_workers=2) as pool:
        results = list(pool.map(DecodeTask(path) for path in paths))
    assert [result.task.path for result in results] == paths
    for path, result in zip(paths, results, strict=True):
        if path.stem == "missing":
            assert state(result) == "missing"
            continue
        expected, found = decode(path, UNIFORM), result.frames
        assert found is not None
        assert np.array_equal(found.frames, expected.frames)
        assert np.array_equal(found.timestamps_seconds, expected.timestamps_seconds)
        assert (found.duration_seconds, found.decoder, found.note) == (
            expected.duration_seconds,
            expected.decoder,
            expected.note,
        )
        assert result.content_hash == hashlib.sha256(path.read_bytes()).hexdigest()
        facts = path.stat()
        assert (result.size_bytes, result.mtime_ns, result.inode) == (facts.st_size, facts.st_mtime_ns, facts.st_ino)


def test_known_content_is_hashed_but_not_decoded(clip: Path, odd_pool: DecodePool) -> None:
    crash = copies(clip, ["crash.mp4"])[0]  # decoding it would end the worker
    content_hash = hashlib.sha256(clip.read_bytes()).hexdigest()
    (result,) = odd_pool.map([DecodeTask(crash, frozenset({content_hash, "0" * 64}))])
    assert state(result) == "known"
    assert result.content_hash == content_hash


BAD = {
    "hang.mp4": "decode_timeout",
    "crash.mp4": "decoder_crashed",
    "exit.mp4": "decoder_crashed",
    "bug.mp4": "decoder_crashed",
    "throw.mp4": "out_of_memory",
    "hungry.mp4": "out_of_memory",
    "grow.mp4": "changed_while_reading",
    "shrink.mp4": "changed_while_reading",
}


@pytest.mark.slow
def test_bad_files_cost_themselves_only(clip: Path) -> None:
    paths = copies(clip, ["good_1.mp4", *BAD, "good_2.mp4"])
    with DecodePool(UNIFORM, num_workers=2, timeout_seconds=2.0, memory_bytes=512 << 20, decoders=ODD) as pool:
        assert states(pool, paths) == ["ok", *BAD.values(), "ok"]


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_its_reason_as_the_first_of_a_worker(name: str, clip: Path) -> None:
    with DecodePool(UNIFORM, num_workers=1, timeout_seconds=2.0, memory_bytes=512 << 20, decoders=ODD) as pool:
        assert states(pool, copies(clip, [name, "good.mp4"])) == [BAD[name], "ok"]


@pytest.mark.slow
def test_a_bad_file_gets_the_same_reason_after_good_ones(clip: Path) -> None:
    names = [name for number, bad in enumerate(BAD) for name in (f"good_{number}.mp4", f"good_{number}b.mp4", bad)]
    with DecodePool(UNIFORM, num_workers=1, timeout_seconds=2.0, memory_bytes=512 << 20, decoders=ODD) as pool:
        assert states(pool, copies(clip, names)) == [BAD.get(name, "ok") for name in names]


@pytest.mark.slow
def test_a_hung_worker_is_killed_at_its_limit_not_later(clip: Path) -> None:
    paths = copies(clip, ["good.mp4", "hang.mp4"])
    with DecodePool(UNIFORM, num_workers=1, timeout_seconds=0.5, decoders=ODD) as pool:
        results = pool.map(DecodeTask(path) for path in paths)
        assert state(next(results)) == "ok"
        before = time.monotonic()
        error = next(results).error
        assert 0.2 < time.monotonic() - before < 5
        assert error is not None
        assert error.detail == "not finished after 0.5 s"


@pytest.mark.slow
def test_a_file_that_fails_only_in_a_used_worker_is_not_blamed(clip: Path) -> None:
    paths = copies(clip, ["good.mp4", "fragile_1.mp4", "fragile_2.mp4", "last.mp4"])
    with DecodePool(UNIFORM, num_workers=1, decoders=ODD) as pool:
        assert states(pool, paths) == ["ok", "ok", "ok", "ok"]


@pytest.mark.slow
def test_a_file_that_crashes_does_not_go_through_all_workers(clip: Path) -> None:
    paths = copies(clip, ["slow_1.mp4", "slow_2.mp4", "crash.mp4", "process_1.mp4", "process_2.mp4", "slow_3.mp4"])
    before = children()
    with DecodePool(UNIFORM, num_workers=2, decoders=ODD) as pool:
        results = pool.map(DecodeTask(path) for path in paths)
        assert state(next(results)) == "ok"
        used = children() - before
        assert [state(result) for result in results] == ["ok", "decoder_crashed", "ok", "ok", "ok"]
        assert len(used & children()) == 1


@pytest.mark.slow
def test_a_worker_that_somebody_kills_costs_nothing(clip: Path) -> None:
    paths = copies(clip, ["good.mp4", "slow_1.mp4", "slow_2.mp4"])
    before = children()
    with DecodePool(UNIFORM, num_workers=1, decoders=ODD) as pool:
        results = pool.map(DecodeTask(path) for path in paths)
        assert state(next(results)) == "ok"
        time.sleep(0.2)  # it is at work on the next one
        for process in children() - before:
            os.kill(process, signal.SIGKILL)
        assert [state(result) for result in results] == ["ok", "ok"]


@pytest.mark.slow
def test_workers_ignore_the_signals_that_stop_a_run(clip: Path) -> None:
    paths = copies(clip, ["good.mp4", "slow_1.mp4", "slow_2.mp4"])
    before = children()
    with DecodePool(UNIFORM, num_workers=1, decoders=ODD) as pool:
        results = pool.map(DecodeTask(path) for path in paths)
        assert state(next(results)) == "ok"
        (process,) = children() - before
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(process, number)
        assert [state(result) for result in results] == ["ok", "ok"]
        assert children() - before == {process}
        assert os.getpgid(process) != os.getpgid(0)  # so Ctrl-C in a terminal does not even reach it


def test_workers_load_nothing_heavy(clip: Path, odd_pool: DecodePool) -> None:
    path = copies(clip, ["modules.mp4"])[0]
    (result,) = odd_pool.map([DecodeTask(path)])
    assert result.frames is not None
    assert result.frames.note == "tests.stages.odd_decoder: heavy:"


@pytest.mark.slow
def test_workers_are_recycled(clip: Path) -> None:
    paths = copies(clip, [f"process_{n}.mp4" for n in range(6)])
    for recycle_after, num_processes in ((3, 2), (100, 1)):
        with DecodePool(UNIFORM, num_workers=1, recycle_after=recycle_after, decoders=ODD) as pool:
            results = list(pool.map(DecodeTask(path) for path in paths))
        assert len({result.frames.note for result in results if result.frames is not None}) == num_processes


def test_hostile_places_do_not_block(tmp_path: Path, odd_pool: DecodePool) -> None:
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "dangling.mp4").symlink_to("nothing.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "directory.mp4").mkdir()
    odd = tmp_path / os.fsdecode(b"bad\xff.mp4")
    write_clip(tmp_path / "clip.mp4", 3).rename(odd)
    paths = [*(tmp_path / f"{name}.mp4" for name in ("fifo", "dangling", "loop", "empty", "directory")), odd]
    assert states(odd_pool, paths) == ["not_a_file", "missing", "not_a_file", "empty_file", "not_a_file", "ok"]


def test_tasks_are_taken_as_they_are_needed(clip: Path, odd_pool: DecodePool) -> None:
    taken = 0

    def endless() -> Iterator[DecodeTask]:
        nonlocal taken
        while True:
            taken += 1
            yield DecodeTask(clip)

    results = odd_pool.map(endless())
    for _ in range(5):
        next(results).release()
    assert taken <= 5 + 32
    results.close()
    assert states(odd_pool, [clip]) == ["ok"]  # the pool is free again


@pytest.mark.slow
def test_frames_that_wait_are_bounded_in_bytes(tmp_path: Path) -> None:
    batch_bytes = 4 * 96 * 128 * 3
    paths = [write_clip(tmp_path / f"{n}.mp4", 8, size=(96, 128)) for n in range(12)]
    with DecodePool(UNIFORM, num_workers=2, lookahead_bytes=3 * batch_bytes) as pool:
        kept = []
        for number, result in enumerate(pool.map(DecodeTask(path) for path in paths)):
            time.sleep(0.1)  # the workers would like to go on
            kept.append(result)
            assert pool.held_bytes <= (3 + 2 + max(0, number + 1 - 3)) * batch_bytes
        assert len(kept) == 12  # a consumer that keeps everything gets everything, one file at a time
        assert pool.held_bytes == 12 * batch_bytes
        for result in kept:
            result.release()
        assert pool.held_bytes == 0


def test_frames_stay_valid_after_release_for_whoever_still_looks_at_them(clip: Path, odd_pool: DecodePool) -> None:
    (result,) = odd_pool.map([DecodeTask(clip)])
    assert result.frames is not None
    pixels = result.frames.frames
    result.release()
    assert odd_pool.held_bytes == pixels.nbytes
    assert numbers_in(pixels) == [2, 7, 12, 17]
    pixels[:] = 0  # and they may be written to


@pytest.mark.slow
def test_closing_is_quick_whatever_the_workers_do(clip: Path) -> None:
    paths = copies(clip, ["good.mp4", "hang_1.mp4", "hang_2.mp4"])
    with DecodePool(UNIFORM, num_workers=2, timeout_seconds=1000, decoders=ODD) as pool:
        results = pool.map(DecodeTask(path) for path in paths)
        assert state(next(results)) == "ok"
        before = time.monotonic()
        pool.close()
        assert time.monotonic() - before < 2
        with pytest.raises(RuntimeError, match="closed"):
            next(results)


def test_closing_ends_a_map_that_waits_in_another_thread(clip: Path) -> None:
    hang = copies(clip, ["hang.mp4"])[0]
    errors = []

    def consume(pool: DecodePool) -> None:
        try:
            list(pool.map([DecodeTask(hang)]))
        except RuntimeError as error:
            errors.append(str(error))

    with DecodePool(UNIFORM, timeout_seconds=1000, decoders=ODD) as pool:
        thread = threading.Thread(target=consume, args=(pool,))
        thread.start()
        time.sleep(0.1)
    thread.join(5)
    assert errors == ["the decode pool was closed"]


def test_one_map_at_a_time(clip: Path, odd_pool: DecodePool) -> None:
    first = odd_pool.map([DecodeTask(clip), DecodeTask(clip)])
    next(first)
    with pytest.raises(RuntimeError, match="busy"):
        next(odd_pool.map([DecodeTask(clip)]))
    first.close()


def test_an_error_in_the_tasks_reaches_the_caller(clip: Path, odd_pool: DecodePool) -> None:
    def tasks() -> Iterator[DecodeTask]:
        yield DecodeTask(clip)
        raise OSError("the list ends here")

    with pytest.raises(OSError, match="the list ends here"):
        list(odd_pool.map(tasks()))
    assert states(odd_pool, [clip]) == ["ok"]


def test_no_tasks_start_no_worker() -> None:
    before = children()
    with DecodePool(UNIFORM) as pool:
        assert list(pool.map([])) == []
        assert children() == before


def test_workers_that_cannot_start_are_an_error_not_a_wait(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_pool, "BOOT", "raise SystemExit('no such library')")
    with DecodePool(UNIFORM) as pool, pytest.raises(ComponentMissingError, match="no such library"):
        list(pool.map([DecodeTask(clip)]))


@pytest.mark.slow
def test_a_parent_that_is_killed_takes_its_workers_along(clip: Path) -> None:
    hang = copies(clip, ["hang.mp4"])[0]
    script = (
        "from pathlib import Path\nfrom stages.decode_pool import DecodePool, DecodeTask\n"
        "from index_store.settings import SamplingSettings\n"
        f"with DecodePool(SamplingSettings('uniform', 4), 2, decoders=('{ODD[0]}',)) as pool:\n"
        f"    for result in pool.map([DecodeTask(Path({str(clip)!r})), DecodeTask(Path({str(hang)!r}))]):\n"
        "        print(result.error, flush=True)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline() == "None\n"
        workers = children(parent.pid)
        assert workers
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 5
    while any(is_alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(is_alive(worker) for worker in workers)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
