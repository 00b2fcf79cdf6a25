from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.peers import report
from benchmarks.peers.__main__ import main
from benchmarks.peers.clips import make_clips
from benchmarks.peers.environment import NotInstallableError, python_of
from benchmarks.peers.extraction import compare
from benchmarks.peers.plan import OURS, PEERS
from benchmarks.peers.processes import CommandFailedError, count_cpu_seconds
from benchmarks.peers.results import Result, append, read_results
from benchmarks.peers.searching import recall_of
from index_store.errors import InputError
from stages.synthetic.render import VideoFormat, render_corpus

PROGRAMS = Path(report.__file__).parent / "programs"


# -- the plan ---------------------------------------------------------------------------------------------------------


def test_every_peer_has_a_program_or_a_reason() -> None:
    assert all((PROGRAMS / peer.program).is_file() for peer in PEERS.values() if not peer.obstacle)
    assert {peer.program for peer in PEERS.values() if peer.program} | {"timing.py"} == {
        path.name for path in PROGRAMS.glob("*.py")
    }
    assert all(PEERS[name].kind == kind for kind, name in OURS.items())


def test_programs_of_others_use_nothing_of_ours() -> None:
    for path in PROGRAMS.glob("[!t]*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
        modules = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        modules |= {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
        assert modules.isdisjoint({"stages", "pipeline", "index_store", "benchmarks"}), path
        assert "job" in path.read_text("utf-8")


def test_a_peer_that_is_no_package_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotInstallableError, match="it is no package"):
        python_of(PEERS["video_features"], tmp_path)
    assert python_of(PEERS["plain-script"], tmp_path) == Path(sys.executable)


# -- counting ---------------------------------------------------------------------------------------------------------

BURN = "import time\nwhile time.process_time() < 0.4: pass\n"
ORPHAN = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {BURN!r}], start_new_session=True)"
IGNORED = "import signal, subprocess, sys, time; signal.signal(signal.SIGCHLD, signal.SIG_IGN);" + (
    f"child = subprocess.Popen([sys.executable, '-c', {BURN!r}]); time.sleep(1.5)"
)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of processes that outlive their parents")
@pytest.mark.slow
@pytest.mark.parametrize("code", [BURN, ORPHAN, IGNORED], ids=["own", "orphan", "nobody waits"])
def test_every_process_counts(code: str, tmp_path: Path) -> None:
    seconds = count_cpu_seconds([sys.executable, "-c", code], os.environ, tmp_path / "log", 60)
    assert 0.25 < seconds < 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of processes that outlive their parents")
def test_nothing_is_left_running(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "print(child.pid, flush=True)"
    )
    started = time.monotonic()
    count_cpu_seconds([sys.executable, "-c", code], os.environ, tmp_path / "log", 60)
    assert not Path("/proc", (tmp_path / "log").read_text().strip()).exists()
    assert time.monotonic() - started < 60


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has processes adopted")
def test_processes_of_others_are_adopted_only_while_it_counts(tmp_path: Path) -> None:
    count_cpu_seconds([sys.executable, "-c", ""], os.environ, tmp_path / "log", 60)
    code = "import subprocess; print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid)"
    orphan = int(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout)
    try:
        assert f"PPid:\t{os.getpid()}\n" not in Path(f"/proc/{orphan}/status").read_text()
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_a_program_that_fails_is_quoted(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('first'); sys.exit('no such weights')"]
    with pytest.raises(CommandFailedError, match="ended with 1: first no such weights"):
        count_cpu_seconds(command, os.environ, tmp_path / "log", 60)
    with pytest.raises(CommandFailedError, match="was stopped after 0 s"):
        count_cpu_seconds([sys.executable, "-c", "import time; time.sleep(600)"], os.environ, tmp_path / "log", 0.3)


# -- equal output -----------------------------------------------------------------------------------------------------


def embeddings(seed: int, spread: float) -> np.ndarray:
    """Three clips whose frames lie ``spread`` around one direction."""
    rng = np.random.default_rng(seed)
    drawn = (np.ones(64) + spread * rng.standard_normal((3, 12, 64))).astype(np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=-1, keepdims=True))


def test_rounding_is_the_same_output() -> None:
    ours = embeddings(0, 0.05)
    agreement, same = compare((ours + 1e-4 * embeddings(1, 1.0)).astype(np.float32), ours)
    assert same
    assert agreement["found"] == 1.0


def test_other_frames_are_another_output_however_close() -> None:
    ours = embeddings(0, 0.05)
    agreement, same = compare(np.roll(ours, 1, axis=1), ours)
    assert agreement["cosine"] > 0.99
    assert agreement["found"] == 0.0
    assert not same
    assert not compare(embeddings(2, 1.0), ours)[1]


def test_recall_counts_what_was_found_in_any_order() -> None:
    expected = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert recall_of(expected[:, ::-1], expected) == 1.0
    assert recall_of(np.array([[1, 2, 3, -1], [9, 9, 9, 9]]), expected) == 3 / 8


# -- the report -------------------------------------------------------------------------------------------------------


def test_the_report_has_ratios_and_reasons(tmp_path: Path) -> None:
    scale = {"clips": 24}
    ours = Result("tbpipe", "measured", seconds={"clip": 0.5, "start": 2.0}, same=True, scale=scale)
    script = replace(ours, name="plain-script", seconds={"clip": 1.5, "start": 1.0}, agreement={"cosine": 0.999})
    other = replace(script, name="clip-video-encode", agreement={"cosine": 0.9}, same=False)
    gone = Result("video_features", "not installable", "it is no package", scale=scale)
    failed = Result("ray-data", "failed", "ended with 1: out of memory", scale=scale)
    elsewhere = replace(script, scale={"clips": 99}, seconds={"clip": 100.0, "start": 1.0})
    report.write({"extraction": scale}, [ours, script, other, gone, failed, elsewhere], tmp_path)
    text = (tmp_path / "peers.md").read_text("utf-8")
    assert "| decord + open_clip script | same: cosine 0.9990 | 1.5 | 3.00 x as fast | 1 |" in text
    assert "| clip-video-encode | DIFFERS: cosine 0.9000 |" in text
    assert "- video_features: not installable: it is no package" in text
    assert "- the same in Ray Data: failed: ended with 1: out of memory" in text
    found = json.loads((tmp_path / "peers.json").read_text("utf-8"))["extraction"]
    assert found["scale"] == scale
    assert [row["ratio"] for row in found["results"]] == [None, 3.0, None, 3.0, None]


# -- the command ------------------------------------------------------------------------------------------------------


def test_an_unknown_peer_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clip-video-encod", "--work", str(tmp_path / "work")]) == 2
    assert "no peer is called 'clip-video-encod'; there are extraction, search" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_a_second_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["numpy-product", "--work", str(tmp_path), "--vectors", "3000"]
    assert main(arguments) == 0
    found = json.loads((tmp_path / "peers.json").read_text("utf-8"))["search"]["results"]
    assert [(row["name"], row["status"], row["same"]) for row in found] == [
        ("tbpipe-search", "measured", True),
        ("numpy-product", "measured", True),
    ]
    assert found[1]["ratio"] == found[1]["seconds"]["search"] / found[0]["seconds"]["search"]
    assert "numpy" in found[1]["versions"]
    rerank = Result("tbpipe-rerank", "measured", seconds={"reading": 1.0, "all": 2.0}, same=True, scale={"videos": 7})
    append(tmp_path, rerank)
    before = read_results(tmp_path)
    capsys.readouterr()
    assert main(arguments) == 0
    assert read_results(tmp_path) == before
    printed = capsys.readouterr().out
    assert "NumPy product" in printed
    assert "videos 7." in printed, "a table that this run is not about is gone"


@pytest.mark.slow
def test_clips_have_one_length_and_are_made_once(tmp_path: Path) -> None:
    render_corpus(tmp_path / "source", 1, 2, video_format=VideoFormat(width=64, height=48, seconds=4.0))
    (tmp_path / "flat").mkdir()
    for path in (tmp_path / "source" / "videos").rglob("*.mp4"):
        path.rename(tmp_path / "flat" / path.name)
    (tmp_path / "flat" / "broken.mp4").write_bytes(b"no video")
    clips = make_clips(tmp_path, tmp_path / "flat", 2)
    for clip in clips:
        with av.open(str(clip)) as container:
            stream = container.streams.video[0]
            assert (stream.frames, stream.average_rate, stream.width, stream.height) == (300, 30, 64, 48)
    before = [clip.stat().st_mtime_ns for clip in clips]
    with pytest.raises(InputError, match=r"has 2 usable videos .* expected 3; give --clips 2"):
        make_clips(tmp_path, tmp_path / "flat", 3)
    assert [clip.stat().st_mtime_ns for clip in clips] == before
