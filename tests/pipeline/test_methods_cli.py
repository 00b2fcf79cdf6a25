"""Every method that needs no weights answers on any store."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.rerankers import RERANKERS
from tests.pipeline.conftest import Run


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(RERANKERS))
def test_it_evaluates_and_reranks(method: str, finished_store: Path, clips: Path, run: Run, tmp_path: Path) -> None:
    folder = clips.parent
    answer = ("--store", finished_store, "--queries", folder / "queries.jsonl", "--method", method)
    found = run("evaluate", *answer, "--qrels", folder / "qrels.tsv", "--json")
    assert found.code == 0, found.err
    assert found.json["method"] == method
    done = run("rerank", *answer, "--output", tmp_path / "run.trec")
    assert done.code == 0, done.err
    assert f"re-ranked by {method}" in done.out
