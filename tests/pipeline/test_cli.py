from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from index_store.store import Store
from pipeline.printing import printable
from tests.forked import start_command
from tests.pipeline.conftest import SMALL, Outcome, Run


def one_line_error(done: Outcome, code: int, *parts: str) -> None:
    assert done.code == code, (done.out, done.err)
    message = done.err.strip().splitlines()
    assert len(message) == 1, done.err
    for part in parts:
        assert part in message[0]


def test_the_main_job(clips: Path, finished_store: Path, run: Run, tmp_path: Path) -> None:
    info = run("info", "--store", finished_store, "--json").json
    assert info["videos"] == {"ok": 6, "partial": 0, "quarantined": 0, "removed": 0}
    assert info["index_is_current"]
    queries = clips.parent / "queries.jsonl"
    done = run("rerank", "--store", finished_store, "--queries", queries, "--output", tmp_path / "run.jsonl", "--json")
    assert done.code == 0, done.err
    assert done.json["num_queries"] == 6
    rankings = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert len(rankings) == 36
    assert {row["key"] for row in rankings} == {path.name for path in clips.iterdir()}


@pytest.mark.slow
def test_a_model_with_the_token_shift_makes_another_store(
    clips: Path, finished_store: Path, run: Run, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shifted = ("--model", "tbpipe-small-tokenshift", "--device", "cpu")
    done = run("extract", clips, "--store", store, *shifted, "--limit", 2, "--batch-frames", 36)
    assert done.code == 0, done.err
    done = run("extract", clips, "--store", store)
    assert done.code == 0, done.err
    one_line_error(run("extract", clips, "--store", finished_store, *shifted), 12, "tbpipe-small-tokenshift")
    tokens = []
    for directory in (store, finished_store):
        with Store.open(directory).snapshot() as snapshot:
            ids = sorted((record.key, record.id) for record in snapshot.videos())
            tokens.append(snapshot.read_tokens([number for _, number in ids]).tokens.astype(np.float32))
    assert tokens[0].shape == tokens[1].shape
    assert not np.allclose(tokens[0], tokens[1])


def test_search_prints_a_table_and_json(finished_store: Path, run: Run) -> None:
    done = run("search", "--store", finished_store, "a red circle", "--num", 3)
    assert done.code == 0, done.err
    assert "best moment" in done.out
    assert done.out.count(".mp4") == 3
    hits = run("search", "--store", finished_store, "a red circle", "--num", 3, "--json").json["hits"]
    scores = [hit["focused_score"] for hit in hits]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.slow
def test_several_devices_write_the_bytes_of_one(clips: Path, finished_store: Path, run: Run, tmp_path: Path) -> None:
    store = tmp_path / "store"
    done = run("extract", clips, "--store", store, "--model", "tbpipe-small", "--device", "cpu,cpu", "--json")
    assert (done.code, done.json["ok"]) == (0, 6), done.err
    shards = [{path.name: path.read_bytes() for path in (at / "shards").iterdir()} for at in (store, finished_store)]
    assert shards[0] == shards[1]


@pytest.mark.slow
def test_a_second_run_computes_nothing(clips: Path, run: Run, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = run("extract", clips, "--store", store, *SMALL, "--limit", 2, "--json").json
    assert (first["ok"], first["left"]) == (2, 4)
    second = run("extract", clips, "--store", store, "--json").json
    assert (second["ok"], second["unchanged"], second["left"]) == (4, 2, 0)
    third = run("extract", clips, "--store", store, "--json").json
    assert (third["ok"], third["unchanged"], third["num_frames"]) == (0, 6, 0)


@pytest.mark.slow
def test_copies_moves_and_changes_cost_only_what_is_new(clips: Path, run: Run, tmp_path: Path) -> None:
    videos, store = tmp_path / "videos", tmp_path / "store"
    shutil.copytree(clips, videos)
    names = sorted(path.name for path in videos.iterdir())
    run("extract", videos, "--store", store, *SMALL)
    with Store.open(store).snapshot() as snapshot:
        before = {record.key: record for record in snapshot.videos()}
    shutil.copy(videos / names[0], videos / "copy.mp4")
    os.utime(videos / names[1], ns=(1, 1))
    shutil.copy(videos / names[2], videos / names[3])
    done = run("extract", videos, "--store", store, "--json").json
    assert (done["ok"], done["shared"], done["unchanged"]) == (0, 3, 4)
    with Store.open(store).snapshot() as snapshot:
        after = {record.key: record for record in snapshot.videos()}
    assert {key: record.id for key, record in before.items()}.items() <= {key: r.id for key, r in after.items()}.items()
    assert (after["copy.mp4"].shard, after["copy.mp4"].row) == (after[names[0]].shard, after[names[0]].row)
    assert after[names[3]].content_hash == after[names[2]].content_hash != before[names[3]].content_hash


@pytest.mark.slow
def test_a_source_that_moved_as_a_whole_is_not_computed_again(clips: Path, run: Run, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(clips, tmp_path / "old")
    run("extract", tmp_path / "old", "--store", store, *SMALL)
    (tmp_path / "old").rename(tmp_path / "new")
    done = run("extract", tmp_path / "new", "--store", store, "--json").json
    assert (done["moved"], done["ok"], done["shared"]) == (6, 0, 0)
    with Store.open(store).snapshot() as snapshot:
        assert {record.path.parent for record in snapshot.videos()} == {tmp_path / "new"}


@pytest.mark.slow
def test_bad_files_are_quarantined_once_and_can_be_retried(clips: Path, run: Run, tmp_path: Path) -> None:
    videos, store = tmp_path / "videos", tmp_path / "store"
    shutil.copytree(clips, videos)
    (videos / "empty.mp4").touch()
    (videos / "text\n\x1b[31m.mp4").write_text("no video")
    done = run("extract", videos, "--store", store, *SMALL, "--json")
    assert done.code == 3
    assert done.json["reasons"] == {"empty_file": 1, "not_a_video": 1}
    again = run("extract", videos, "--store", store, "--json")
    assert (again.code, again.json["quarantined"], again.json["unchanged"]) == (0, 0, 8)
    listed = run("quarantine", "--store", store)
    assert "\x1b" not in listed.out
    assert "empty_file" in listed.out
    assert run("quarantine", "--store", store, "--retry", "--key", "empty.mp4", "--json").json == {"released": 1}
    shutil.copy(clips / "clip_00000.mp4", videos / "empty.mp4")
    final = run("extract", videos, "--store", store, "--json")
    assert (final.code, final.json["shared"]) == (0, 1)


def test_dry_run_says_bytes_and_time_and_writes_nothing(clips: Path, run: Run, tmp_path: Path) -> None:
    done = run("extract", clips, "--store", tmp_path / "store", *SMALL, "--dry-run", "--json")
    assert done.code == 0, done.err
    assert done.json["num_new"] == 6
    assert done.json["total_bytes"] == 6 * done.json["bytes_per_video"] > 0
    assert done.json["seconds"] > 0
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_parts_together_make_the_whole(clips: Path, run: Run, tmp_path: Path) -> None:
    counts = [
        run("extract", clips, "--store", tmp_path / "store", *SMALL, "--shard", part, "--json").json["ok"]
        for part in ("1/3", "2/3", "3/3")
    ]
    assert sum(counts) == 6
    assert run("info", "--store", tmp_path / "store", "--json").json["videos"]["ok"] == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [("--token-dtype", "int8"), ("--keep-tokens", "cls"), ("--keep-tokens", "distinct:8")]
)
def test_smaller_tokens_make_a_smaller_store_that_answers(
    clips: Path, run: Run, tmp_path: Path, finished_store: Path, options: tuple[str, str]
) -> None:
    store = tmp_path / "store"
    assert run("extract", clips, "--store", store, *SMALL, *options).code == 0
    assert run("index", "--store", store).code == 0
    assert run("search", "--store", store, "a blue square").code == 0
    if options[1] == "distinct:8":  # it says which, so the weights that ship take them
        assert run("search", "--store", store, "--method", "token-binder", "a blue square").code == 0
    whole = run("info", "--store", finished_store, "--json").json["bytes"]["shards"]
    assert run("info", "--store", store, "--json").json["bytes"]["shards"] < 0.7 * whole


def test_k_larger_than_the_corpus_ranks_everything(clips: Path, finished_store: Path, run: Run, tmp_path: Path) -> None:
    queries = clips.parent / "queries.jsonl"
    output = tmp_path / "run.trec"
    done = run("rerank", "--store", finished_store, "--queries", queries, "--output", output, "--top-k", 1000)
    assert done.code == 0, done.err
    assert len(output.read_text().splitlines()) == 36


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--frames", "0"), "--frames"),
        (("--frames", "many"), "--frames"),
        (("--shard", "5/4"), "write i/n"),
        (("--keep-tokens", "some"), "neither all, cls nor a number"),
        (("--keep-tokens", "distinct:0"), "such as 12 or distinct:12"),
        (("--commit-bytes", "much"), "512M"),
        (("--device", "tpu"), "use auto, cpu, cuda or cuda:N"),
        (("--device", "cuda:0,gpu"), "use auto, cpu, cuda or cuda:N"),
        (("--sampling", "random"), "--sampling"),
        (("--timeout", "-1"), "--timeout"),
    ],
)
def test_wrong_flag_values_are_usage_errors(
    clips: Path, run: Run, tmp_path: Path, arguments: tuple[str, str], part: str
) -> None:
    done = run("extract", clips, "--store", tmp_path / "store", *SMALL, *arguments)
    assert done.code == 2
    assert part in done.err
    assert not (tmp_path / "store").exists()


def test_wrong_models_methods_and_fps_are_usage_errors(
    clips: Path, finished_store: Path, run: Run, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    one_line_error(run("extract", clips, "--store", store, "--model", "ViT-B-33"), 2, "ViT-B-32")
    one_line_error(run("extract", clips, "--store", store, *SMALL, "--fps", "2"), 2, "fps")
    one_line_error(run("search", "--store", finished_store, "x", "--method", "eercff"), 2, "eercf")
    assert "computes on one" in run("search", "--store", finished_store, "x", "--device", "cpu,cpu").err
    one_line_error(run("extract", clips, "--store", store, *SMALL, "--device", "cpu,cuda:63"), 2, "cuda:63")
    one_line_error(run("index", "--store", finished_store, "--factory", "Nonsense"), 2, "Nonsense")
    assert not store.exists()


def test_missing_weights_name_the_remedy(clips: Path, run: Run, tmp_path: Path) -> None:
    done = run("extract", clips, "--store", tmp_path / "store", "--pretrained", tmp_path / "gone.safetensors")
    one_line_error(done, 17, "gone.safetensors")


@pytest.mark.parametrize(
    "command",
    [("index",), ("info",), ("quarantine",), ("search", "x"), ("rerank", "--queries", "q.txt", "--output", "-")],
)
def test_a_missing_store_is_named(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    one_line_error(run(*command, "--store", tmp_path / "gone"), 10, "no store in", "tbpipe extract")


def test_a_store_without_index_says_what_to_run(clips: Path, run: Run, tmp_path: Path) -> None:
    run("extract", clips, "--store", tmp_path / "store", *SMALL, "--limit", 1)
    one_line_error(run("search", "--store", tmp_path / "store", "x"), 10, "tbpipe index")


def test_other_settings_than_the_store_was_made_with_are_refused(clips: Path, finished_store: Path, run: Run) -> None:
    one_line_error(
        run("extract", clips, "--store", finished_store, "--frames", 7), 12, "sampling.frames: 12 here, 7 asked"
    )
    one_line_error(run("extract", clips, "--store", finished_store, "--token-dtype", "int8"), 12, "tokens.dtype")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("q.jsonl", '{"_id": "1", "text": "a"}\n{"_id": "2"\n', ("line 2",)),
        ("q.jsonl", '{"_id": "1"}\n', ("line 1",)),
        ("q.tsv", "1\ta\n1\tb\n", ("line 2",)),
        ("q.csv", "nothing,here\n1,2\n", ("q.csv",)),
        ("q.txt", "", ("q.txt",)),
        ("q.doc", "a red circle\n", (".doc",)),
    ],
)
def test_a_broken_query_file_names_the_line(
    finished_store: Path, run: Run, tmp_path: Path, name: str, content: str, parts: tuple[str, ...]
) -> None:
    (tmp_path / name).write_text(content)
    done = run("rerank", "--store", finished_store, "--queries", tmp_path / name, "--output", tmp_path / "run.trec")
    one_line_error(done, 17, *parts)
    assert not (tmp_path / "run.trec").exists()


def test_an_output_of_unknown_kind_is_refused_before_any_work(
    clips: Path, finished_store: Path, run: Run, tmp_path: Path
) -> None:
    queries = clips.parent / "queries.jsonl"
    one_line_error(
        run("rerank", "--store", finished_store, "--queries", queries, "--output", tmp_path / "x.xml"), 2, ".trec"
    )


def test_an_empty_folder_is_an_input_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    one_line_error(run("extract", tmp_path / "empty", "--store", tmp_path / "store", *SMALL), 17, "no video in")
    assert not (tmp_path / "store").exists()


def test_a_directory_with_other_things_does_not_become_a_store(clips: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    one_line_error(run("extract", clips, "--store", tmp_path, *SMALL), 1, "not empty")


def test_a_second_writer_is_refused_and_named(clips: Path, finished_store: Path, run: Run) -> None:
    with Store.open(finished_store).writer():
        done = run("extract", clips, "--store", finished_store)
    one_line_error(done, 11, f"pid {os.getpid()}")


@pytest.mark.slow
def test_a_full_disk_is_said_and_the_store_stays_intact(clips: Path, run: Run, tmp_path: Path) -> None:
    videos, store = tmp_path / "videos", tmp_path / "store"
    videos.mkdir()
    content = (clips / "clip_00000.mp4").read_bytes()
    for number in range(12):  # bytes behind the end of an MP4 make another content of it
        (videos / f"{number:02d}.mp4").write_bytes(content + bytes([number]))
    run("extract", videos, "--store", store, *SMALL, "--limit", 1)
    limit = 900_000  # the frames of a video fit, a shard of eleven does not
    process = start_command("extract", videos, "--store", store, *SMALL, limit_bytes=limit)
    _, err = process.communicate()
    assert process.returncode == 14, err
    assert "no space left" in err
    assert run("info", "--store", store, "--json").json["videos"]["ok"] == 1
    assert sorted(path.name for path in (store / "shards").iterdir()) == ["00000001.h5"]
    assert run("extract", videos, "--store", store, "--json").json["ok"] == 11


@pytest.mark.slow
@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_commits_what_is_finished(
    clips: Path, run: Run, tmp_path: Path, signal_number: signal.Signals, code: int
) -> None:
    videos, store = tmp_path / "videos", tmp_path / "store"
    videos.mkdir()
    for number in range(60):
        content = (clips / "clip_00000.mp4").read_bytes() + number.to_bytes(4, "big")  # trailing bytes: another content
        (videos / f"{number:03d}.mp4").write_bytes(content)
    process = start_command("extract", videos, "--store", store, *SMALL, "--commit-bytes", "500K", "--workers", "1")
    while not list(store.glob("shards/0*.h5")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal_number)
    before = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert time.monotonic() - before < 30
    assert "run the same command to go on" in err
    done = run("info", "--store", store, "--json").json["videos"]["ok"]
    assert 0 < done < 60
    assert not list(store.glob("**/.tmp-*"))
    rest = run("extract", videos, "--store", store, "--json").json
    assert (rest["ok"], rest["unchanged"]) == (60 - done, done)


@pytest.mark.slow
def test_two_runs_give_the_same_bytes(clips: Path, run: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run("extract", clips, "--store", tmp_path / name, *SMALL, "--workers", {"one": 1, "two": 2}[name])
    first, second = ((tmp_path / name / "shards" / "00000001.h5").read_bytes() for name in ("one", "two"))
    assert first == second


@pytest.mark.slow
def test_features_do_not_depend_on_the_batch_that_a_frame_was_in(clips: Path, run: Run, tmp_path: Path) -> None:
    run("extract", clips, "--store", tmp_path / "whole", *SMALL)
    for _ in range(3):
        run("extract", clips, "--store", tmp_path / "cut", *SMALL, "--limit", 2, "--batch-frames", 32)
    with Store.open(tmp_path / "whole").snapshot() as whole, Store.open(tmp_path / "cut").snapshot() as cut:
        ids = [record.id for record in whole.videos()]
        assert len(cut.shards()) == 3
        np.testing.assert_array_equal(whole.read_tokens(ids).tokens, cut.read_tokens(ids).tokens)


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain é 漢", "plain é 漢"), ("a\nb\x1b[0m", "a\\nb\\x1b[0m"), ("\udcff", "\\udcff"), ("a\u202eb", "a\\u202eb")],
)
def test_printable_cannot_steer_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
