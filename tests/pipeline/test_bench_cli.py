"""``tbpipe bench``: on a store and on nothing, for people and for programs, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import bench_report
from stages.bench import scale
from stages.bench.machine import ScratchFile
from stages.bench.measure import Yardstick
from stages.bench.records import BenchReport, Growth, GrowthPoint, Limit, Machine, Part, Skipped, StageRow
from stages.bench.scale import QUICK, GrowthSizes
from stages.synthetic.render import VideoFormat
from tests.pipeline.conftest import Run

TINY = dataclasses.replace(
    QUICK,
    clip=VideoFormat(seconds=1.2),
    num_clips=2,
    num_videos=12,
    num_vectors=300,
    num_queries=3,
    repetitions=1,
    disk_bytes=1 << 20,
    growth=GrowthSizes(6, 2, (50, 100), (6, 9), (2, 4), (0.25, 0.5), (0, 0.1)),
)
REPORT = BenchReport(
    Machine("a processor", 2, 1, "no GPU used", "Python 3"),
    "drawn features",
    (Limit("memory", 12.34, "GB", "cpu", "read once"),),
    (
        StageRow(
            "reading",
            "videos",
            "wall",
            50.0,
            1000.0,
            (
                Part("disk", 0.0005, "GB", 0.0008),
                Part("SHA-256", 0.0001, "GB", 0.0002),
                Part("x", 1, "GB", 0.0001, True),
            ),
        ),
    ),
    (Skipped("extract", "no weights"),),
    (Growth("broad view", "videos", "queries", "cpu", (GrowthPoint(10, 0.002, 0.001),), 1.0, 0.9),),
)


def test_the_table_says_what_the_limit_is_made_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    bench_report.show_bench(REPORT, None, as_json=False)
    out, err = capsys.readouterr()
    assert err == "not measured: extract: no weights\n"
    assert "12.3 GB/CPU s" in out
    (row,) = [line for line in out.splitlines() if line.startswith("│ reading")]
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells[:4] == ["reading", "50 videos/s", "1,000 videos/s", "0.050"]
    assert cells[4] == "disk 80% (500 KB); SHA-256 20% (100 KB)"
    assert "10: 2 ms" in out


def test_programs_get_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    bench_report.show_bench(REPORT, None, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["stages"][0]["ratio"] == 0.05
    assert found["stages"][0]["bound"] == "disk"
    assert found["stages"][0]["parts"][2]["is_hidden"] is True
    assert found["growth"][0]["points"] == [{"size": 10, "seconds": 0.002, "limit_seconds": 0.001}]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--store", "nowhere"), 10, "no store in"),
        (("--method", "eerfc"), 2, "did you mean 'eercf'"),
        (("--plot", "ratios.gif"), 2, ".png, .svg"),
        (("--directory", "nowhere"), 17, "there is no folder nowhere"),
        (("--videos", "nowhere"), 17, "there is no nowhere"),
        (("--model", "ViT-B-33"), 2, "ViT-B-32"),
        (("--store", "s", "--model", "tbpipe-small"), 2, "leave --model out"),
        (("--pretrained", "w.safetensors"), 2, "--store"),
    ],
)
def test_what_cannot_be_measured_is_told_at_once(arguments: tuple[str, ...], code: int, message: str, run: Run) -> None:
    done = run("bench", "--quick", *arguments)
    assert (done.code, message in done.err) == (code, True), done.err
    assert done.out == ""


def test_a_stop_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, run: Run, tmp_path: Path) -> None:
    """Ctrl-C comes once something has been written."""
    monkeypatch.setattr(scale, "QUICK", TINY)

    def stop(scratch: ScratchFile) -> Iterator[Yardstick]:
        assert scratch.path.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(ScratchFile, "yardsticks", stop)
    done = run("bench", "--quick", "--directory", tmp_path)
    assert (done.code, done.out) == (130, "")
    assert "stopped" in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_everything_is_measured_on_drawn_data(monkeypatch: pytest.MonkeyPatch, run: Run, tmp_path: Path) -> None:
    monkeypatch.setattr(scale, "QUICK", TINY)
    options = ("--growth", "--json", "--method", "token-binder", "--plot", tmp_path / "ratios.svg")
    done = run("bench", "--quick", "--directory", tmp_path, *options)
    assert done.code == 0, done.err
    assert done.err == ""
    stages = {row["stage"]: row for row in done.json["stages"]}
    assert {"decode", "image tower", "extract", "text tower", "index", "reading, cached"} <= stages.keys()
    assert "rerank, token-binder" in stages
    assert sum(name.startswith("broad view") for name in stages) == 3
    assert {"decoder", "FAISS", "memory", "float32 products"} <= {limit["name"] for limit in done.json["limits"]}
    assert all(row["rate"] > 0 and row["limit"] > 0 for row in stages.values())
    assert stages["extract"]["parts"][1]["amount"] == 12
    assert [grown["variable"] for grown in done.json["growth"]] == ["videos", "videos", "K", "frames", "tokens a frame"]
    assert [path.name for path in tmp_path.iterdir()] == ["ratios.svg"]
    assert b"token-binder" in (tmp_path / "ratios.svg").read_bytes()


@pytest.mark.slow
def test_a_store_is_only_read(monkeypatch: pytest.MonkeyPatch, finished_store: Path, run: Run, tmp_path: Path) -> None:
    monkeypatch.setattr(scale, "QUICK", TINY)
    before = {path: path.read_bytes() for path in finished_store.rglob("*") if path.is_file()}
    done = run("bench", "--quick", "--store", finished_store, "--method", "eercf", "--json", "--directory", tmp_path)
    assert done.code == 0, done.err
    assert done.json["skipped"] == []
    assert str(finished_store) in done.json["about"]
    stages = {row["stage"]: row for row in done.json["stages"]}
    assert stages["broad view, one query"]["detail"] == "6 x 128, Flat, 50 results"
    assert stages["extract"]["detail"].startswith("tbpipe-small, 2 videos of")
    assert {path: path.read_bytes() for path in finished_store.rglob("*") if path in before} == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
def test_a_gpu_is_measured_by_the_wall(monkeypatch: pytest.MonkeyPatch, run: Run, tmp_path: Path) -> None:
    monkeypatch.setattr(scale, "QUICK", TINY)
    done = run("bench", "--quick", "--device", "cuda", "--method", "token-binder", "--json", "--directory", tmp_path)
    assert done.code == 0, done.err
    limits = {limit["name"]: limit for limit in done.json["limits"]}
    assert {"upload", "memory", "float16 products", "bfloat16 products", "float32 products"} <= limits.keys()
    assert limits["memory"]["clock"] == limits["upload"]["clock"] == "wall"
    stages = {row["stage"]: row for row in done.json["stages"]}
    assert all(stages[name]["clock"] == "wall" for name in ("image tower", "extract", "rerank, token-binder"))
    assert {part["limit"] for part in stages["extract"]["parts"]} == {"decode", "image tower", "upload"}
    assert sum(not part["is_hidden"] for part in stages["extract"]["parts"]) == 1, "they overlap"
