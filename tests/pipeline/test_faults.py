"""Disks that are full, broken or read-only, files that are not what they were, and clocks that go back: by command."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from index_store.store import Store
from stages.synthetic.render import VideoFormat, render_corpus
from tests.forked import ROOT
from tests.index_store.samples import SETTINGS
from tests.index_store.test_hostile import fill_up, mounted
from tests.pipeline.conftest import SMALL, Outcome, Run


def said(done: Outcome, code: int, *parts: str) -> None:
    """One line on stderr, with these parts."""
    assert done.code == code, (done.out, done.err)
    assert len(done.err.strip().splitlines()) == 1, done.err
    for part in parts:
        assert part in done.err


@pytest.fixture
def store(finished_store: Path, tmp_path: Path) -> Path:
    """A store that may be broken."""
    return shutil.copytree(finished_store, tmp_path / "store")


def is_clean(run: Run, store: Path) -> bool:
    return run("verify", "--store", store, "--read-data").code == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("options", [(), ("--json",)], ids=["table", "json"])
def test_output_that_finds_no_room_or_no_reader_is_not_taken_for_printed(tmp_path: Path, options: list[str]) -> None:
    store = Store.create(tmp_path / "store", SETTINGS).directory
    command = [sys.executable, "-m", "pipeline", "info", "--store", str(store), *options]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    said(Outcome(done.returncode, "", done.stderr), 14, "the disk is full where the output goes")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.slow
def test_a_refresh_on_a_full_disk_goes_on_when_there_is_room(clips: Path, run: Run, tmp_path: Path) -> None:
    videos = shutil.copytree(clips, tmp_path / "videos")
    with mounted(tmp_path / "disk", "size=24m") as disk:
        store = disk / "store"
        assert run("refresh", "--store", store, "--source", videos, *SMALL).code == 0
        before = run("search", "--store", store, "a red circle", "--json").json
        for number in range(3):
            (videos / f"new{number}.mp4").write_bytes((videos / "clip_00000.mp4").read_bytes() + bytes([number]))
        fill_up(disk / "filler", 0)
        full = run("refresh", "--store", store)
        assert full.code == 14, full.err
        assert "free some space and run again" in full.err
        assert run("search", "--store", store, "a red circle", "--json").json == before
        (disk / "filler").unlink()
        assert is_clean(run, store)
        assert run("refresh", "--store", store, "--json").json["videos"]["ok"] == 9
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        said(run("refresh", "--store", store), 18, "check its permissions and its mount")
        assert run("search", "--store", store, "a red circle").code == 0
        assert is_clean(run, store)


def test_a_shard_that_is_missing_is_named_and_the_rest_answers(store: Path, run: Run) -> None:
    (store / "shards" / "00000001.h5").unlink()
    said(run("search", "--store", store, "x", "--method", "eercf"), 13, "00000001.h5 is missing")
    assert "00000001.h5" in run("verify", "--store", store).out
    assert run("info", "--store", store).code == 0


def test_a_shard_that_cannot_be_read_is_named(store: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", broken)
    monkeypatch.setattr(os, "preadv", broken)
    done = run("search", "--store", store, "x", "--method", "eercf")
    assert "a bug in tbpipe" not in done.err
    said(done, 13, "00000001.h5", os.strerror(errno.EIO))


@pytest.fixture(scope="module")
def other_store(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same settings, number of videos and commits as finished_store, other videos."""
    folder = tmp_path_factory.mktemp("other")
    render_corpus(folder, seed=6, num_videos=6, video_format=VideoFormat(seconds=1.6))
    assert run("extract", folder / "videos", "--store", folder / "store", *SMALL).code == 0
    assert run("index", "--store", folder / "store").code == 0
    return folder / "store"


@pytest.mark.slow
def test_an_index_of_another_store_or_another_commit_is_not_used(
    store: Path, other_store: Path, clips: Path, run: Run, tmp_path: Path
) -> None:
    index = store / "index" / "00000001"
    kept = shutil.copytree(index, tmp_path / "kept")
    shutil.rmtree(index)
    shutil.copytree(other_store / "index" / "00000001", index)
    found = run("verify", "--store", store, "--read-data")
    assert (found.code, "index/00000001" in found.out) == (13, True)
    assert "6 videos or more have other vectors" in found.out
    assert run("repair", "--store", store).code == 0
    assert run("index", "--store", store).code == 0
    assert is_clean(run, store)
    (newest,) = (store / "index").iterdir()
    assert (newest / "index.faiss").read_bytes() == (kept / "index.faiss").read_bytes()
    extra = tmp_path / "extra.mp4"
    extra.write_bytes((clips / "clip_00000.mp4").read_bytes() + b"more")
    assert run("extract", extra, "--store", store).code == 0
    assert run("index", "--store", store).code == 0
    assert is_clean(run, store)
    newest = max((store / "index").iterdir())
    shutil.rmtree(newest)
    shutil.copytree(kept, newest)
    said(run("search", "--store", store, "x"), 13, "it is another index", "tbpipe index")


@pytest.mark.slow
def test_a_video_that_cannot_be_read_is_quarantined(clips: Path, run: Run, tmp_path: Path) -> None:
    """/proc/self/mem is a regular file whose first byte cannot be read."""
    shutil.copytree(clips, tmp_path / "videos")
    (tmp_path / "videos" / "broken.mp4").symlink_to("/proc/self/mem")
    done = run("extract", tmp_path / "videos", "--store", tmp_path / "store", *SMALL, "--json")
    assert (done.code, done.json["ok"], done.json["quarantined"]) == (3, 6, 1)
    assert set(done.json["reasons"]) <= {"unreadable", "empty_file"}


@pytest.mark.slow
def test_times_of_files_may_be_anything_and_clocks_may_go_back(
    clips: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos, store, metrics = shutil.copytree(clips, tmp_path / "videos"), tmp_path / "store", tmp_path / "t.prom"
    names = sorted(path.name for path in videos.iterdir())
    for name, seconds in zip(names, (-1.5, 0, 1, 4e9, 2**33, 1e9), strict=True):
        os.utime(videos / name, ns=(0, int(seconds * 1e9)))
    assert run("refresh", "--store", store, "--source", videos, *SMALL).code == 0

    def backwards() -> Iterator[float]:
        now = 1e9
        while True:
            now -= 3600
            yield now

    clock = backwards()
    monkeypatch.setattr(time, "time", lambda: next(clock))
    monkeypatch.setattr(time, "time_ns", lambda: int(next(clock) * 1e9))
    again = run("refresh", "--store", store, "--json", "--metrics-file", metrics)
    assert (again.code, again.json["unchanged"], again.json["extracted"]) == (0, 6, None), again.err
    (videos / names[0]).write_bytes((videos / names[1]).read_bytes() + b"more")
    os.utime(videos / names[0], ns=(0, int(-3e9)))  # changed, and older than it was
    changed = run("refresh", "--store", store, "--json", "--metrics-file", metrics)
    assert (changed.code, changed.json["changed"]) == (0, [names[0]]), changed.err
    values = dict(line.rsplit(" ", 1) for line in metrics.read_text().splitlines() if not line.startswith("#"))
    assert float(values["tbpipe_refresh_duration_seconds"]) >= 0
    assert all(float(value) >= 0 for name, value in values.items() if "step_seconds" in name)
    assert json.loads(run("info", "--store", store, "--json").out)["index_is_current"]
    with Store.open(store).snapshot() as snapshot:
        assert [record.mtime_ns for record in snapshot.videos() if record.key == names[0]] == [int(-3e9)]
