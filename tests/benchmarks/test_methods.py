from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.methods.__main__ import main
from benchmarks.methods.cost import Cost
from benchmarks.methods.picture import draw
from benchmarks.methods.plan import ROWS, Row, Scale, config_of
from benchmarks.methods.report import to_json, to_markdown
from benchmarks.methods.results import NAME, Found, Result, append, by_row, read_results
from benchmarks.near_duplicates import corpus_to_test_on, make
from index_store.store import Store
from stages.rerankers import RERANKERS, TOKEN_BINDER
from stages.rerankers.head_weights import HEADS
from stages.synthetic.render import DEMO_SEED

SCALE = Scale(videos=96, test_videos=48, test_seed=5, steps=3, top_k=10, seed=0)
START = Path(__file__).parents[2] / "stages" / "models" / "small" / "token_binder.safetensors"
X_CLIP = [row for row in ROWS if row.method == "x-clip"]


def result_of(row: Row, at_1: float = 30.0, scale: Scale = SCALE) -> Result:
    return Result(
        label=row.label,
        form=row.form,
        scale=asdict(scale),
        config=asdict(config_of(row, scale)) if row.form == "trained" else {},
        t2v=Found(at_1, 60.0, 18.0, 95.0),
        v2t=Found(29.0, 59.0, 17.0, 94.0),
        cost=Cost(12e-6, 1_137_000.0),
        prepared=Cost(4e-6, 98_000.0) if row.method == "x-clip" else None,
        bytes_prepared=6668,
        training_seconds=90.0 if row.form == "trained" else 0.0,
    )


# -- the plan ---------------------------------------------------------------------------------------------------------


def test_every_method_has_a_row_in_every_form_that_it_has() -> None:
    assert {row.method for row in ROWS if row.form == "zero-shot"} == set(RERANKERS)
    assert {row.method for row in ROWS if row.form == "trained"} == {*HEADS, TOKEN_BINDER}
    assert len({row.key for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("steps", [1, 3, 200])
def test_all_trainings_have_the_steps_that_were_asked_for(steps: int) -> None:
    scale = replace(SCALE, videos=9000, steps=steps)
    for config in [config_of(row, scale) for row in ROWS if row.form == "trained"]:
        trained_on = scale.videos - round(config.validation * scale.videos)
        assert -(-config.epochs * trained_on // config.batch_size) == steps
        assert config.patience * config.evaluate_every >= steps
        assert (config.num_candidates, config.pool) == (scale.top_k, scale.test_videos)


# -- results ----------------------------------------------------------------------------------------------------------


def test_a_row_is_finished_at_its_own_scale_only(tmp_path: Path) -> None:
    untrained, trained = X_CLIP
    for row in X_CLIP:
        append(tmp_path, result_of(row))
    with (tmp_path / NAME).open("a") as file:
        file.write('{"label": "cut by a k')
    results = read_results(tmp_path)
    assert set(by_row(ROWS, SCALE, results)) == {untrained.key, trained.key}
    assert set(by_row(ROWS, replace(SCALE, steps=4, start="other"), results)) == {untrained.key}
    assert not by_row(ROWS, replace(SCALE, top_k=20), results)


def test_a_line_that_means_something_else_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / NAME).write_text('{"label": "x-clip"}\n')
    assert main(["--work", str(tmp_path), "--start", str(START), "--report-only"]) == 17
    assert "line 1 is not a result of this benchmark" in capsys.readouterr().err


# -- the report -------------------------------------------------------------------------------------------------------


def test_the_table_has_all_rows_and_says_what_is_missing() -> None:
    results = {X_CLIP[1].key: result_of(X_CLIP[1], at_1=31.0)}
    text = to_markdown(X_CLIP, SCALE, results)
    assert "| x-clip | zero-shot | - | - | - | - | - | - | - | - | - |" in text
    assert "| x-clip | trained | 31.0 | 60.0 | 29.0 | 18.0 | 12 | 1137 | 4 | 98 | 1.5 |" in text
    assert "3 steps on 96 videos" in text
    assert "NOT COMPLETE: no result yet for x-clip, zero-shot." in text
    found = json.loads(to_json(X_CLIP, SCALE, results))
    assert found["missing"] == ["x-clip, zero-shot"]
    assert found["rows"][0]["cost"] == {"seconds_per_pair": 12e-6, "bytes_per_query": 1_137_000.0}
    assert found["scale"]["steps"] == 3


@pytest.mark.slow
def test_the_picture_is_drawn_of_what_there_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    for results in ({}, {row.key: result_of(row) for row in ROWS}):
        assert draw(ROWS, results, SCALE, tmp_path / "methods.png").read_bytes().startswith(b"\x89PNG")


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rows_are_run_once_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    arguments = [
        "--work",
        str(tmp_path),
        "--videos",
        "24",
        "--test-videos",
        "12",
        "--steps",
        "2",
        "--methods",
        "x-clip",
    ]
    arguments += ["--start", str(START)]
    assert main(arguments) == 0
    assert "2 of 2, x-clip, trained: R@1 " in capsys.readouterr().err
    untrained, trained = read_results(tmp_path)
    width, patches, frames = 128, 37, 12
    assert untrained.cost.bytes_per_query >= 10 * 2 * width * patches * frames
    for result in (untrained, trained):
        assert result.prepared is not None
        assert result.prepared.bytes_per_query < result.cost.bytes_per_query / 4
        assert 0 <= result.t2v.at_1 <= result.t2v.at_5 <= result.t2v.ceiling
    assert trained.training_seconds > 0
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert (len(read_results(tmp_path)), err) == (2, "")
    assert "NOT COMPLETE" not in out + (tmp_path / "methods.md").read_text()
    assert len(json.loads((tmp_path / "methods.json").read_text())["rows"]) == 2
    assert (tmp_path / "methods.png").read_bytes().startswith(b"\x89PNG")
    moved = tmp_path / "elsewhere"
    corpus = corpus_to_test_on(moved, 12, DEMO_SEED)
    shutil.copytree(tmp_path / corpus.directory.name, corpus.directory)
    make(moved, (corpus,), "cpu", 1)  # where it lies now, its videos would be new ones
    with Store.open(corpus.store).snapshot() as snapshot:
        assert snapshot.num_searchable == 12


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--methods", "xclip"), 2, "no method is called 'xclip'; there are broad, "),
        (("--top-k", "0"), 2, "'0' is not a whole number from 1"),
    ],
)
def test_what_cannot_be_run_is_said(
    tmp_path: Path, arguments: tuple[str, str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=str(code)):
        main(["--work", str(tmp_path), *arguments])
    assert message in capsys.readouterr().err
