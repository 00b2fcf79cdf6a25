from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.conftest import Run
from tests.pipeline.test_cli import one_line_error

FIRST = "q%201 Q0 a.mp4 1 0.9 x\nq%201 Q0 my%20clip.mp4 2 0.5 x\nq2 Q0 a.mp4 1 1 x\n"
SECOND = "q%201 Q0 my%20clip.mp4 7 9 y\nq%201 Q0 c.mp4 3 9 y\nq%201 Q0 a.mp4 1 1e-3 y\n"
"""Its ranks say otherwise than its scores: scores count, ranks where they tie."""


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "first.trec", tmp_path / "second.run"
    for path, text in zip(paths, (FIRST, SECOND), strict=True):
        path.write_text(text, "utf-8")
    return paths


def test_two_runs_become_one(runs: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    done = run("fuse", *runs, "--output", tmp_path / "fused.trec", "--json")
    assert done.code == 0, done.err
    assert done.json == {"num_runs": 2, "num_queries": 2, "incomplete": 1, "output": str(tmp_path / "fused.trec")}
    assert "1 of 2 queries are not in every run" in done.err
    rows = [line.split() for line in (tmp_path / "fused.trec").read_text("utf-8").splitlines()]
    assert [row[:4] + row[5:] for row in rows] == [
        ["q%201", "Q0", "a.mp4", "1", "fused"],
        ["q%201", "Q0", "my%20clip.mp4", "2", "fused"],
        ["q%201", "Q0", "c.mp4", "3", "fused"],
        ["q2", "Q0", "a.mp4", "1", "fused"],
    ]
    expected = [1 / 61 + 1 / 63, 2 / 62, 1 / 61, 1 / 61]
    assert [float(row[4]) for row in rows] == pytest.approx(expected, rel=1e-6)


def test_fewer_videos_another_k_and_standard_output(runs: tuple[Path, Path], run: Run) -> None:
    done = run("fuse", *runs, "--output", "-", "--k", 0, "--top-k", 1, "--tag", "mine")
    assert done.out == "q%201 Q0 a.mp4 1 1.3333334 mine\nq2 Q0 a.mp4 1 1.0 mine\n"


def test_runs_of_two_methods_fuse(finished_store: Path, clips: Path, run: Run, tmp_path: Path) -> None:
    queries, names = clips.parent / "queries.jsonl", ("eercf", "x-clip")
    for name in names:
        answer = ("--output", tmp_path / f"{name}.trec", "--method", name)
        assert run("rerank", "--store", finished_store, "--queries", queries, *answer).code == 0
    done = run("fuse", *(tmp_path / f"{name}.trec" for name in names), "--output", tmp_path / "fused.trec")
    assert done.code == 0, done.err
    assert f"2 runs of {len(queries.read_text().splitlines())} queries fused" in done.out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q Q0 a 1 0.5\n", "six columns"),
        ("q Q0 a one 0.5 x\n", "six columns"),
        ("q Q0 a 1 nan x\n", "finite"),
        ("q Q0 a 1 2 x\nq Q0 a 2 1 x\n", "each pair once"),
        ("\n", "no ranking"),
    ],
)
def test_a_broken_run_is_named(runs: tuple[Path, Path], run: Run, text: str, message: str, tmp_path: Path) -> None:
    runs[1].write_text(text, "utf-8")
    one_line_error(run("fuse", *runs, "--output", tmp_path / "x.trec"), 17, "second.run", message)
    assert not (tmp_path / "x.trec").exists()


def test_one_run_and_other_formats_are_refused(runs: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    one_line_error(run("fuse", runs[0], "--output", tmp_path / "x.trec"), 2, "two runs")
    one_line_error(run("fuse", *runs, "--output", tmp_path / "x.jsonl"), 2, ".trec")
