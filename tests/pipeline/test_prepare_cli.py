"""``tbpipe prepare`` on a real store, and what ``info`` says about it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from index_store.store import Store
from stages.rerankers.head_weights import HeadWeights
from stages.rerankers.token_binder import FeatureKind
from stages.rerankers.xclip import XClipHead
from tests.pipeline.conftest import SMALL, Run
from tests.stages.test_prepare import drawn


@pytest.fixture
def store(finished_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_store, tmp_path / "store"))


def head_file(store: Path, path: Path, seed: int = 0) -> Path:
    """Random weights of X-CLIP for the features of a store."""
    settings = Store.open(store).settings
    head = drawn(lambda: XClipHead(settings.embed_dim, 1, num_words=9, num_frames=4), seed)
    HeadWeights("x-clip", FeatureKind.of(settings), {}, head.state_dict()).save(path)
    return path


def test_answers_are_the_same_and_info_tells(store: Path, clips: Path, run: Run, tmp_path: Path) -> None:
    weights = head_file(store, tmp_path / "head.safetensors")
    asked = ("--queries", clips.parent / "queries.jsonl", "--weights", weights, "--top-k", 4, "--quiet")
    done = run("rerank", "--store", store, *asked, "--output", tmp_path / "before.jsonl")
    assert done.code == 0, done.err
    assert run("info", "--store", store, "--json").json["prepared"] == []

    done = run("prepare", "--store", store, "--weights", weights, "--json")
    assert (done.code, done.json["num_computed"], done.json["num_videos"]) == (0, 6, 6)
    assert done.json["size_bytes"] > 6 * done.json["bytes_per_video"]
    again = run("prepare", "--store", store, "--method", "x-clip", "--weights", weights)
    assert again.out.startswith("0 of 6 videos prepared for x-clip, 6 were before: ")
    run("rerank", "--store", store, *asked, "--output", tmp_path / "after.jsonl")
    assert (tmp_path / "after.jsonl").read_bytes() == (tmp_path / "before.jsonl").read_bytes()
    searched = run("search", "a red circle", "--store", store, "--weights", weights, "--json")
    assert len(searched.json["hits"]) == 6

    (entry,) = run("info", "--store", store, "--json").json["prepared"]
    assert (entry["method"], entry["num_prepared"], entry["num_videos"]) == ("x-clip", 6, 6)
    assert (entry["is_stale"], entry["size_bytes"]) == (False, done.json["size_bytes"])
    assert "6 of 6 videos" in run("info", "--store", store).out


def test_info_names_what_is_stale(store: Path, run: Run, tmp_path: Path) -> None:
    weights = head_file(store, tmp_path / "head.safetensors")
    assert run("prepare", "--store", store, "--weights", weights).code == 0
    assert run("prepare", "--store", store, "--method", "ucofia").code == 0
    head_file(store, weights, seed=1)
    (ucofia,) = (store / "prepared").glob("ucofia-*")
    about = json.loads((ucofia / "about.json").read_text())
    (ucofia / "about.json").write_text(json.dumps({**about, "fingerprint": "0" * 64}))
    broken = store / "prepared" / "wti-0123456789abcdef"
    broken.mkdir()
    found = {entry["method"]: entry for entry in run("info", "--store", store, "--json").json["prepared"]}
    assert all(entry["is_stale"] for entry in found.values())
    assert "other weights" in found["x-clip"]["remarks"][0]
    assert "fingerprint 0000" in found["ucofia"]["remarks"][0]
    assert "about.json is missing" in found[""]["remarks"][0]
    assert run("info", "--store", store).out.count("stale,") == 3
    weights.unlink()
    found = {entry["method"]: entry for entry in run("info", "--store", store, "--json").json["prepared"]}
    assert not found["x-clip"]["is_stale"]  # the same weights may lie elsewhere
    assert "which is gone" in found["x-clip"]["remarks"]


@pytest.mark.slow
def test_new_videos_are_told_and_prepared(store: Path, clips: Path, run: Run, tmp_path: Path) -> None:
    assert run("prepare", "--store", store, "--method", "x-clip").code == 0
    more = tmp_path / "more"
    more.mkdir()
    shutil.copy(sorted(clips.iterdir())[0], more / "new.mp4")
    with (more / "new.mp4").open("ab") as stream:
        stream.write(b"\0" * 64)  # other content, the same frames
    done = run("extract", more, "--store", store, *SMALL)
    assert done.code == 0, done.err
    (entry,) = run("info", "--store", store, "--json").json["prepared"]
    assert (entry["num_prepared"], entry["num_videos"]) == (6, 7)
    assert "run 'tbpipe prepare'" in entry["remarks"][-1]
    assert run("prepare", "--store", store, "--method", "x-clip", "--json").json["num_computed"] == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--method", "eercf"), "every token"),
        (("--method", "token-binder"), "compares candidates"),
        (("--method", "x-klip"), "x-clip"),
        ((), "--method NAME"),
    ],
)
def test_what_cannot_be_prepared_is_a_usage_error(store: Path, run: Run, options: tuple[str, ...], why: str) -> None:
    done = run("prepare", "--store", store, *options)
    assert done.code == 2
    assert why in done.err
    assert not (store / "prepared").exists()
