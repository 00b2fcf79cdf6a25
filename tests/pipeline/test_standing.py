"""Standing queries: always the bytes of ``tbpipe rerank``, with as little work as the change asks for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from index_store.errors import InputError, StoreMissingError
from index_store.records import VideoFile, VideoOutcome
from index_store.refresh_settings import StandingQueries
from index_store.settings import SamplingSettings, StoreSettings, TokenSettings
from index_store.standing_state import StandingState, remove_other_states
from index_store.store import Store
from pipeline.jobs.rerank import RerankJob, rerank
from pipeline.jobs.standing import StandingJob, StandingReport, answer_standing
from pipeline.log import Log
from pipeline.refresh_queries import answer_queries
from stages.index import build_index
from stages.models import load_model
from stages.standing import TEXTS_AT_ONCE
from stages.tokens import pack_features

NUM_VIDEOS = 40
TEXTS = [f"a {size} {colour} {shape}" for size in ("small", "large") for colour in ("red", "blue", "green")
         for shape in ("circle", "square")]  # fmt: skip


@pytest.fixture(scope="module")
def settings() -> StoreSettings:
    model = load_model("tbpipe-small", "", "cpu", "float32", "image").settings()
    return StoreSettings(model, SamplingSettings("uniform", 12), TokenSettings("float16", "all"))


def shown(number: int, settings: StoreSettings, seed: int = 0, patches: int = 0) -> VideoOutcome:
    """Video ``number`` with random tokens: frames drawn from ``seed``, patches from ``patches`` as well."""
    width, tokens = settings.embed_dim, settings.model.tokens_per_frame
    rows = torch.randn(12, tokens, width, generator=torch.Generator().manual_seed(1000 * seed + number))
    if patches:
        rows[:, 1:] = torch.randn(12, tokens - 1, width, generator=torch.Generator().manual_seed(patches))
    file = VideoFile(f"v{number}.mp4", Path(f"/videos/v{number}.mp4"), 100, 0, number)
    features = pack_features(rows, np.arange(12.0), settings)
    return VideoOutcome(file, "ok", f"{seed:08x}{patches:08x}{number:048x}", 2.0, "drawn", features=features)


def gone(number: int) -> VideoOutcome:
    return VideoOutcome(VideoFile(f"v{number}.mp4", Path(f"/videos/v{number}.mp4"), 100, 0, number), "removed")


@pytest.fixture(scope="module")
def first(settings: StoreSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store.create(tmp_path_factory.mktemp("standing") / "store", settings)
    commit(store, [shown(number, settings) for number in range(NUM_VIDEOS)])
    return store.directory


@pytest.fixture
def store(first: Path, tmp_path: Path) -> Store:
    """Videos v0 to v39 with an index."""
    shutil.copytree(first, tmp_path / "store")
    return Store.open(tmp_path / "store")


def commit(store: Store, outcomes: Sequence[VideoOutcome]) -> None:
    with store.writer() as writer:
        writer.commit(outcomes)
    build_index(store)


def asked(folder: Path, name: str = "run.jsonl", texts: Sequence[str] = TEXTS, **options: Any) -> StandingQueries:
    queries = folder / "queries.tsv"
    queries.write_text("".join(f"q{number}\t{text}\n" for number, text in enumerate(texts)))
    return StandingQueries(queries, folder / name, **{"top_k": 5, **options})


def answered(store: Store, asked: StandingQueries, **options: Any) -> StandingReport:
    return answer_standing(StandingJob(store=store.directory, asked=asked, device="cpu"), **options)


def expected(store: Store, asked: StandingQueries) -> bytes:
    """What ``tbpipe rerank`` writes."""
    output = asked.output.with_name(f"expected-{asked.output.name}")
    job = RerankJob(
        store=store.directory, queries=asked.queries, output=output, method=asked.method, weights=asked.weights,
        top_k=asked.top_k, device="cpu", quiet=True,
    )  # fmt: skip
    rerank(job)
    return output.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [("run.trec", None), ("run.jsonl", "token-binder"), ("run.parquet", "ucofia")],
)
def test_after_every_change_the_file_is_that_of_rerank(
    store: Store, settings: StoreSettings, tmp_path: Path, name: str, method: str | None
) -> None:
    ask = asked(tmp_path, name, method=method)
    assert answered(store, ask).num_ranked == len(TEXTS)
    assert ask.output.read_bytes() == expected(store, ask)
    rng = np.random.default_rng(7)
    num_kept = 0
    for step in range(1, 5):
        numbers = rng.permutation(50)[:2].tolist()
        commit(store, [gone(number) if rng.random() < 0.4 else shown(number, settings, step) for number in numbers])
        report = answered(store, ask)
        num_kept += report.num_kept
        assert report.num_ranked + report.num_kept == len(TEXTS)
        assert ask.output.read_bytes() == expected(store, ask)
    assert num_kept > len(TEXTS)


@pytest.mark.slow
def test_a_candidate_with_other_patches_is_ranked_again(store: Store, settings: StoreSettings, tmp_path: Path) -> None:
    """Its embedding is the same, and so are all broad scores: only the catalog knows."""
    ask = asked(tmp_path)
    answered(store, ask)
    before = [json.loads(line) for line in ask.output.read_text().splitlines()]
    number = before[0]["video_id"] - 1
    num_affected = len({row["query_id"] for row in before if row["video_id"] == number + 1})
    commit(store, [shown(number, settings, patches=5)])
    report = answered(store, ask)
    assert (report.outcome, report.num_ranked) == ("written", num_affected)
    assert ask.output.read_bytes() == expected(store, ask)
    after = [json.loads(line) for line in ask.output.read_text().splitlines()]
    assert [row["broad_score"] for row in after if row["video_id"] == number + 1] == [
        row["broad_score"] for row in before if row["video_id"] == number + 1
    ]
    assert after != before


@pytest.mark.slow
def test_nothing_is_loaded_where_no_answer_can_differ(store: Store, settings: StoreSettings, tmp_path: Path) -> None:
    ask = asked(tmp_path)
    answered(store, ask)
    content, stamp = ask.output.read_bytes(), ask.output.stat().st_mtime_ns
    code = """
import json, sys
from pathlib import Path
from index_store.refresh_settings import StandingQueries
from index_store.store import Store
from pipeline.jobs.standing import StandingJob, answer_standing
from pipeline.log import Log
from pipeline.refresh_queries import answer_queries
from stages.index import build_index
from index_store.records import VideoFile, VideoOutcome
store, queries, output, number = sys.argv[1:]
def commit(number, status):
    with Store.open(Path(store)).writer() as writer:
        writer.commit([VideoOutcome(VideoFile(f"v{number}.mp4", Path("/v"), 1, 0, 1), status)])
    build_index(Store.open(Path(store)))
job = StandingJob(store=Path(store), asked=StandingQueries(Path(queries), Path(output), top_k=5), device="cpu")
def outcome(): return answer_standing(job).outcome
commit(99, "quarantined")  # nobody's features
found = [outcome(), "faiss" in sys.modules]
commit(number, "removed")
found += [outcome(), Path(output).stat().st_mtime_ns]
Path(output).unlink()
found += [outcome(), "torch" in sys.modules]
print(json.dumps(found))
"""
    candidates = {json.loads(line)["video_id"] for line in content.decode().splitlines()}
    number = min(set(range(1, NUM_VIDEOS + 1)) - candidates) - 1  # nobody's candidate
    arguments = [sys.executable, "-c", code, str(store.directory), str(ask.queries), str(ask.output), str(number)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert json.loads(done.stdout) == ["unchanged", False, "unchanged", stamp, "written", False]
    assert ask.output.read_bytes() == content == expected(store, ask)


@pytest.mark.slow
def test_only_new_texts_are_ranked_when_the_queries_change(store: Store, tmp_path: Path) -> None:
    answered(store, asked(tmp_path))
    ask = asked(tmp_path, texts=[TEXTS[3], "a yellow star", TEXTS[0], TEXTS[3]])
    report = answered(store, ask)
    assert (report.num_queries, report.num_ranked, report.num_kept) == (4, 1, 2)
    assert ask.output.read_bytes() == expected(store, ask)
    ask = asked(tmp_path, texts=["a yellow star"])
    assert answered(store, ask).num_ranked == 0
    assert ask.output.read_bytes() == expected(store, ask)


@pytest.mark.slow
def test_another_method_or_number_of_candidates_is_another_answer(store: Store, tmp_path: Path) -> None:
    for options in ({}, {"top_k": 6}, {"top_k": 6, "method": "x-clip"}):
        ask = asked(tmp_path, **options)
        assert answered(store, ask).num_ranked == len(TEXTS)
        assert ask.output.read_bytes() == expected(store, ask)


def test_a_file_that_somebody_else_wrote_is_written_again(store: Store, tmp_path: Path) -> None:
    ask = asked(tmp_path)
    answered(store, ask)
    content = ask.output.read_bytes()
    ask.output.write_bytes(content[:-1] + b"!")
    report = answered(store, ask)
    assert (report.outcome, report.num_ranked) == ("written", 0)
    assert ask.output.read_bytes() == content
    assert answered(store, ask).outcome == "unchanged"


@pytest.mark.slow
def test_a_damaged_state_costs_time_and_nothing_else(store: Store, tmp_path: Path) -> None:
    ask = asked(tmp_path, texts=TEXTS[:2])
    answered(store, ask)
    content, path = ask.output.read_bytes(), StandingState(store.directory, ask.output).path
    state = path.read_bytes()
    rng = np.random.default_rng(3)
    for place in [*rng.integers(0, len(state), 6).tolist(), None]:
        broken = bytearray(state[: len(state) // 2] if place is None else state)
        if place is not None:
            broken[place] ^= 0x10
        path.write_bytes(broken)
        ask.output.write_bytes(b"")
        answered(store, ask)
        assert ask.output.read_bytes() == content
    path.unlink()
    assert answered(store, ask).num_ranked == 2


@pytest.mark.slow
def test_stopped_it_leaves_the_file_and_goes_on_the_next_time(store: Store, tmp_path: Path) -> None:
    texts = [f"{text}, {where}" for text in TEXTS for where in ("above", "below", "left", "right")]
    ask = asked(tmp_path, texts=texts)
    report = answered(store, ask, should_stop=lambda: True)
    assert (report.outcome, report.num_ranked, report.num_kept) == ("interrupted", 0, 0)
    done: list[int] = []
    report = answered(store, ask, should_stop=lambda: bool(done), on_ranked=lambda: done.append(1))
    assert (report.outcome, report.num_ranked, report.num_kept) == ("interrupted", TEXTS_AT_ONCE, 0)
    assert not ask.output.exists()
    report = answered(store, ask, should_stop=lambda: True)
    assert (report.outcome, report.num_ranked, report.num_kept) == ("interrupted", 0, TEXTS_AT_ONCE)
    report = answered(store, ask)
    assert (report.outcome, report.num_ranked, report.num_kept) == ("written", 48 - TEXTS_AT_ONCE, TEXTS_AT_ONCE)
    assert ask.output.read_bytes() == expected(store, ask)


@pytest.mark.slow
def test_killed_it_goes_on_from_what_was_saved(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.jobs.standing._SAVE_SECONDS", 0.0)
    ask = asked(tmp_path, texts=[f"{text}, {number}" for text in TEXTS for number in range(4)])
    done: list[int] = []

    def die() -> None:
        done.append(1)
        if len(done) > TEXTS_AT_ONCE:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answered(store, ask, on_ranked=die)
    assert answered(store, ask).num_kept == TEXTS_AT_ONCE
    assert ask.output.read_bytes() == expected(store, ask)


@pytest.mark.slow
def test_a_store_put_back_from_a_copy_is_answered_anew(store: Store, settings: StoreSettings, tmp_path: Path) -> None:
    shutil.copytree(store.directory, tmp_path / "copy")
    commit(store, [shown(number, settings, 1) for number in range(5)])
    ask = asked(tmp_path)
    answered(store, ask)
    state = StandingState(store.directory, ask.output).path
    older = Store.open(tmp_path / "copy")
    shutil.copy(state, StandingState(older.directory, ask.output).path)
    assert answered(older, ask).num_ranked == len(TEXTS)
    assert ask.output.read_bytes() == expected(older, ask)
    shutil.copy(state, StandingState(older.directory, ask.output).path)
    commit(older, [shown(number, settings, 2) for number in range(5)])  # as many commits as the other, but others
    answered(older, ask)
    assert ask.output.read_bytes() == expected(older, ask)


@pytest.mark.slow
def test_a_store_that_lost_its_videos_gives_an_empty_run(store: Store, settings: StoreSettings, tmp_path: Path) -> None:
    ask = asked(tmp_path)
    answered(store, ask)
    commit(store, [gone(number) for number in range(NUM_VIDEOS)])
    answered(store, ask)
    assert ask.output.read_bytes() == expected(store, ask) == b""
    commit(store, [shown(3, settings)])
    answered(store, ask)
    assert ask.output.read_bytes() == expected(store, ask) != b""


def test_states_of_outputs_that_nobody_asks_for_are_removed(store: Store, tmp_path: Path) -> None:
    one, other = asked(tmp_path), asked(tmp_path, "other.trec")
    for ask in (one, other):
        answered(store, ask)
    remove_other_states(store.directory, [other.output])
    assert not StandingState(store.directory, one.output).path.exists()
    assert answered(store, other).outcome == "unchanged"


def test_what_is_missing_is_named(store: Store, settings: StoreSettings, tmp_path: Path) -> None:
    ask = asked(tmp_path)
    with pytest.raises(InputError, match=r"nothing\.jsonl cannot be read"):
        answered(store, replace(ask, queries=tmp_path / "nothing.jsonl"))
    with pytest.raises(InputError, match=r"w\.safetensors cannot be read"):
        answered(store, replace(ask, weights=tmp_path / "w.safetensors"))
    with pytest.raises(StoreMissingError, match="has no index yet"):
        answered(Store.create(tmp_path / "empty", settings), ask)


def test_one_file_that_cannot_be_answered_does_not_stop_the_others(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = asked(tmp_path)
    missing = replace(good, queries=tmp_path / "none.tsv", output=tmp_path / "none.jsonl")
    twice = replace(good, top_k=3)
    found = answer_queries(store, [missing, good, twice], Log("json"), lambda: False, device="cpu")
    assert [report.outcome for report in found.reports] == ["written"]
    assert [error.exit_code for error in found.failures] == [17, 17]
    assert good.output.read_bytes() == expected(store, good)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["level"], line["event"]) for line in lines] == [
        ("error", "queries_failed"), ("info", "queries"), ("error", "queries_failed"),
    ]  # fmt: skip
    assert (lines[1]["ranked"], lines[1]["outcome"]) == (len(TEXTS), "written")
    stopped = answer_queries(store, [good], Log(quiet=True), lambda: True, device="cpu")
    assert (stopped.reports, stopped.num_left) == ([], 1)
    assert answer_queries(store, [], Log(quiet=True), lambda: False).reports == []
    assert not StandingState(store.directory, good.output).path.exists()
