"""verify, repair, compact and doctor as a user meets them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from index_store.store import Store
from pipeline.jobs.doctor_store import check_store
from tests.index_store.samples import SETTINGS, bad, fill, ok
from tests.index_store.test_verify import SHARD, flip, place_of, publish
from tests.pipeline.conftest import Run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two shards, the first with a row that nobody has; an index."""
    store = Store.create(tmp_path / "a store", SETTINGS)
    fill(store, ok("a.mp4", 1), ok("b\x1b[31m.mp4", 2))
    fill(store, ok("a.mp4", 3), bad("q"))
    publish(store)
    return store.directory


def test_a_whole_store_is_clean_and_there_is_nothing_to_repair(store: Path, run: Run) -> None:
    done = run("verify", "--store", store)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("clean: 2 videos in 2 shards, 1 index generations; sizes and catalog")
    assert "every byte was read" in run("verify", "--store", store, "--read-data").out
    assert run("verify", "--store", store, "--json").json["clean"] is True
    done = run("repair", "--store", store)
    assert (done.code, done.out) == (0, "nothing is damaged; nothing was changed\n")


def test_damage_is_named_repaired_and_what_is_left_to_do_is_said(store: Path, run: Run) -> None:
    flip(store / SHARD, place_of(Store.open(store), "tokens", 1))
    done = run("verify", "--store", store, "--read-data")
    assert done.code == 13
    named, next_command = done.out.splitlines()
    assert named.startswith(rf"{SHARD}: b\x1b[31m.mp4 (id 2) in row 1: its checksum differs (the file is not what was")
    assert next_command == f"1 problems; next: tbpipe repair --store '{store}'"
    (problem,) = run("verify", "--store", store, "--read-data", "--json").json["problems"]
    assert (problem["part"], problem["number"]) == ("shard", 1)
    done = run("repair", "--store", store)
    assert done.code == 0
    assert done.out.splitlines()[:3] == [
        f"{SHARD}: its intact rows are in a new shard",
        "1 videos lost their features, which were damaged:",
        r"  b\x1b[31m.mp4",
    ]
    assert f"tbpipe extract SOURCE --store '{store}'" in done.out
    assert run("verify", "--store", store, "--read-data").code == 0
    assert run("quarantine", "--store", store, "--json").json[0]["reason_code"] == "damaged"


def test_a_damaged_index_is_dropped(store: Path, run: Run) -> None:
    flip(store / "index" / "00000001" / "ids.npy", 130)
    done = run("repair", "--store", store)
    assert done.out == f"index generation 1: dropped\nnext: tbpipe index --store '{store}'\n"
    assert run("repair", "--store", store, "--json").json["problems"] == []


def test_an_index_is_as_exact_as_its_memory_allows(store: Path, run: Run) -> None:
    width = Store.open(store).settings.embed_dim
    assert run("index", "--store", store, "--memory", 2 * 4 * width, "--json").json["factory"] == "Flat"
    assert run("index", "--store", store, "--memory", 2 * 4 * width - 1, "--json").json["factory"] == "SQfp16"
    done = run("index", "--store", store, "--memory", "1G", "--factory", "Flat")
    assert (done.code, done.out) == (2, "")
    assert "give one of the two" in done.err


def test_compact_says_what_it_would_do_and_does_it(store: Path, run: Run) -> None:
    planned = run("compact", "--store", store, "--dry-run").out
    assert planned.startswith("2 of 2 shards (1 with waste, 1 small ones) would become 1: ")
    assert run("compact", "--store", store).out == planned.replace("would become", "became")
    assert run("compact", "--store", store).out.startswith("nothing to do: none of 1 shards")
    assert run("verify", "--store", store, "--read-data").code == 0


def test_wrong_use_has_its_code_and_one_line(store: Path, run: Run, tmp_path: Path) -> None:
    for name in ("verify", "repair", "compact"):
        done = run(name, "--store", tmp_path / "none")
        assert (done.code, len(done.err.splitlines())) == (10, 1)
    assert run("compact", "--store", store, "--waste", "2").code == 2
    with Store.open(store).writer():
        for name in ("repair", "compact"):
            assert run(name, "--store", store).code == 11
        assert run("verify", "--store", store).code == 0


@pytest.mark.slow
def test_doctor_tries_everything_and_names_the_remedy(store: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(store / "catalog.sqlite", 20)
    monkeypatch.setitem(sys.modules, "decord", None)  # as if it were not installed
    done = run("doctor", "--store", store)
    assert done.code == 13
    for name in ("python", "packages", "FAISS", "model", "store", "disk"):
        assert f"ok      {name} " in done.out
    assert "note    decoders    pyav" in done.out
    assert "-> pip install decord" in done.out
    assert "failed  integrity   1 problems, first: catalog.sqlite: byte 20 in block 0" in done.out
    assert f"-> tbpipe repair --store '{store}'" in done.out


def test_doctor_searches_a_store_for_its_own_embeddings(store: Path) -> None:
    checks = {check.name: check for check in check_store(store)}
    assert [checks[name].state for name in ("store", "integrity", "index", "self-test")] == ["ok"] * 4
    assert checks["self-test"].found == "2 of 2 stored embeddings find themselves"
    assert (checks["videos"].state, checks["videos"].exit_code) == ("note", 0)
    assert "tbpipe quarantine --store '" in checks["videos"].remedy
    fill(Store.open(store), ok("c", 9))
    assert {check.name: check for check in check_store(store)}["index"].found.endswith("older than the store")


def test_doctor_stops_where_there_is_no_store(tmp_path: Path) -> None:
    (check,) = check_store(tmp_path)
    assert (check.state, check.exit_code) == ("failed", 10)
