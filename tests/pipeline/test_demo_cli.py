from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.jobs.evaluate import EvaluateJob, evaluate
from stages.synthetic.families import FAMILIES
from tests.pipeline.conftest import Run
from tests.pipeline.test_cli import one_line_error

NUM_VIDEOS = 96


@pytest.mark.slow
def test_the_shipped_weights_tell_near_duplicates_apart_that_the_broad_view_cannot(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    done = run("demo", "--seed", 77, "--videos", NUM_VIDEOS, "--directory", folder, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    found = done.json
    assert (found["videos"], found["queries"], found["method"]) == (NUM_VIDEOS, NUM_VIDEOS, "token-binder")
    assert found["focused"]["R@1"] >= found["broad"]["R@1"] + 15
    assert found["focused"]["R@5"] >= found["broad"]["R@5"]
    assert set(found["families"]) == set(FAMILIES)
    evaluated = evaluate(
        EvaluateJob(
            store=folder / "store",
            captions=folder / "captions.jsonl",
            method="token-binder",
            top_k=found["top_k"],
            direction="t2v",
            quiet=True,
        )
    ).text_to_video
    assert evaluated is not None
    for view in ("broad", "focused"):
        recall_at = getattr(evaluated, view).recall_at
        assert found[view] == pytest.approx({"R@1": recall_at[1], "R@5": recall_at[5]})
    one_line_error(run("demo", "--directory", folder), 17, "not empty")


@pytest.mark.slow
def test_the_few_chosen_queries_are_shown_with_what_was_found(run: Run) -> None:
    done = run("demo", "--device", "cpu", "--quiet")
    assert done.code == 0, done.err
    assert "focused" in done.out
    assert "R@1" in done.out


@pytest.mark.parametrize(("arguments", "part"), [(("--videos", "1"), "--videos"), (("--seed", "x"), "--seed")])
def test_wrong_values_are_usage_errors(run: Run, arguments: tuple[str, str], part: str) -> None:
    done = run("demo", *arguments)
    assert done.code == 2
    assert part in done.err
