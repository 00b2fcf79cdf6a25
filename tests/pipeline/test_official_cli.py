"""--official: the sums of the released code, from the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from index_store.store import Store
from stages.models import load_model
from stages.rerankers.base import QueryBatch
from stages.rerankers.released import NUM_WORDS
from stages.rerankers.xclip import XClipHead
from tests.pipeline.conftest import Run

QUERY = "a red circle"


def released_scores(store: Path) -> dict[str, float]:
    """Of X-CLIP, from what the text tower makes of 32 positions, on videos that are full."""
    tower, tokenizer = load_model("tbpipe-small", device="cpu", dtype="float32", towers="text").query_side()
    head = XClipHead(official=True).eval()
    with torch.inference_mode(), Store.open(store).snapshot() as snapshot:
        sentence, words = tower.features(tokenizer([QUERY])[:, :NUM_WORDS])
        query = QueryBatch(sentence, words, torch.ones(1, NUM_WORDS, dtype=torch.bool))
        records = list(snapshot.videos())
        read = snapshot.read_tokens([record.id for record in records])
        assert read.frame_mask.all()
        videos = head.videos(torch.from_numpy(read.tokens).float(), torch.from_numpy(read.frame_mask))
        scores = head.score(head.texts(query)[None], videos)[:, 0].tolist()
    return {record.key: score for record, score in zip(records, scores, strict=True)}


@pytest.mark.slow
def test_scores_are_those_of_the_released_code(finished_store: Path, clips: Path, run: Run, tmp_path: Path) -> None:
    def scores(*options: object) -> dict[str, float]:
        done = run("search", QUERY, "--store", finished_store, "--method", "x-clip", "--json", *options)
        assert done.code == 0, done.err
        return {hit["key"]: hit["focused_score"] for hit in done.json["hits"]}

    expected, ours = released_scores(finished_store), scores()
    assert scores("--official") == pytest.approx(expected, abs=1e-5)
    assert max(abs(ours[key] - expected[key]) for key in ours) > 1e-3

    queries, qrels = clips.parent / "queries.jsonl", clips.parent / "qrels.tsv"
    asked = ("--store", finished_store, "--queries", queries, "--official")
    found = run("evaluate", *asked, "--qrels", qrels, "--method", "x-clip,wti,clip4clip", "--json")
    assert found.code == 0, found.err
    assert [result["method"] for result in found.json["methods"]] == ["x-clip+official", "wti+official", "clip4clip"]
    done = run("rerank", *asked, "--method", "ucofia", "--output", tmp_path / "run.jsonl")
    assert "re-ranked by ucofia+official" in done.out


@pytest.mark.slow
def test_what_is_prepared_is_told_apart(finished_store: Path, run: Run, tmp_path: Path) -> None:
    store = Path(shutil.copytree(finished_store, tmp_path / "store"))
    asked = ("search", QUERY, "--store", store, "--method", "ucofia", "--json")
    before = [run(*asked, *options).json["hits"] for options in ((), ("--official",))]
    done = run("prepare", "--store", store, "--method", "ucofia", "--official", "--json")
    assert (done.code, done.json["num_computed"]) == (0, 6), done.err
    assert [run(*asked, *options).json["hits"] for options in ((), ("--official",))] == before
    assert before[0] != before[1]


@pytest.mark.parametrize("method", ["token-binder", "late-interaction"])
def test_a_method_without_released_code_is_refused(method: str, finished_store: Path, run: Run) -> None:
    done = run("search", QUERY, "--store", finished_store, "--method", method, "--official")
    assert done.code == 2
    assert f"no code of {method} is known" in done.err
