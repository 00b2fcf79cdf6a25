"""CLIP-ViP from videos to answers, with random weights of a tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from index_store.store import Store
from tests.pipeline.conftest import Run
from tests.stages.model_files import save_clip_vip

pytestmark = pytest.mark.slow


def test_extract_index_search_and_rerank(clips: Path, run: Run, tmp_path: Path) -> None:
    folder = save_clip_vip(tmp_path / "vip")
    weights = folder / "open_clip_model.safetensors"
    store = tmp_path / "store"
    model = ("--model", f"local-dir:{folder}", "--pretrained", weights, "--device", "cpu", "--dtype", "float32")
    planned = run("extract", clips, "--store", store, *model, "--frames", 6, "--dry-run", "--json")
    assert planned.json["num_to_do"] == 6, planned.err
    for limit in (4, 2):
        done = run("extract", clips, "--store", store, *model, "--frames", 6, "--limit", limit, "--json")
        assert (done.code, done.json["ok"]) == (0, limit), done.err
    whole = tmp_path / "whole"
    assert run("extract", clips, "--store", whole, *model, "--frames", 6).code == 0
    for one, other in zip(*(features_of(path) for path in (store, whole)), strict=True):
        assert one.tobytes() == other.tobytes()
    assert run("index", "--store", store).code == 0
    hits = run("search", "--store", store, "a red circle", "--method", "broad", "--json").json["hits"]
    assert len(hits) == 6
    queries = clips.parent / "queries.jsonl"
    done = run("rerank", "--store", store, "--queries", queries, "--output", tmp_path / "run.jsonl")
    assert done.code == 0, done.err
    assert len([json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]) == 36


def features_of(store: Path) -> list[np.ndarray]:
    with Store.open(store).snapshot() as snapshot:
        ids = [record.id for record in sorted(snapshot.videos(), key=lambda record: record.key)]
        frames = snapshot.read_frame_embeddings(ids)
        assert (frames.embeddings == frames.embeddings[:, :1]).all()
        return [frames.embeddings, snapshot.read_tokens(ids).tokens]
