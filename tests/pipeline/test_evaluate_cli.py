from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval

from stages.models import MODELS
from tests.pipeline.conftest import SMALL, Outcome, Run
from tests.pipeline.test_cli import one_line_error
from tests.stages.dataset_files import write

VIEWS = ("broad", "focused")


@pytest.fixture(scope="module")
def captions(clips: Path) -> Path:
    return clips.parent / "captions.jsonl"


def evaluate(run: Run, store: Path, *arguments: object) -> Outcome:
    done = run("evaluate", "--store", store, *arguments)
    assert done.code == 0, done.err
    return done


def trec_eval(run_file: Path, qrels: Path) -> dict[str, float]:
    """What the public evaluator says about a run that tbpipe wrote."""
    run: dict[str, dict[str, float]] = {}
    for query, _, key, rank, _, _ in (line.split() for line in run_file.read_text().splitlines()):
        run.setdefault(query, {})[key] = -float(rank)
    judged: dict[str, dict[str, int]] = {}
    for query, key, relevance in (line.split("\t") for line in qrels.read_text().splitlines()[1:]):
        judged.setdefault(query, {})[key] = int(relevance)
    lines = pytrec_eval.RelevanceEvaluator(judged, {"success.1,5,10", "recip_rank"}).evaluate(run).values()
    ranks = [1 / line["recip_rank"] for line in lines]
    success = {f"R@{k}": 100 * float(np.mean([line[f"success_{k}"] for line in lines])) for k in (1, 5, 10)}
    return {**success, "MdR": float(np.median(ranks)), "MnR": float(np.mean(ranks))}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sinkhorn", "dual-softmax", "qb-norm"])
def test_scores_are_normalised_with_a_bank(
    captions: Path, finished_store: Path, run: Run, tmp_path: Path, method: str
) -> None:
    bank = tmp_path / "bank.txt"
    bank.write_text("a red circle\na video of a blue square\nthe video shows a star on a grey background\n")
    asked = ("--normalise", method, "--bank", bank)
    found = evaluate(run, finished_store, "--captions", captions, *asked, "--json").json
    assert found["method"] == f"eercf+{method}"
    assert found["video_to_text"]["focused"]["R@10"] == 100
    queries, runs = captions.parent / "queries.jsonl", []
    for options in (asked, ("--normalise", method, "--bank", queries), ()):
        output = tmp_path / "run.trec"
        done = run("rerank", "--store", finished_store, "--queries", queries, "--output", output, *options)
        assert done.code == 0, done.err
        runs.append(output.read_text())
    assert f"eercf+{method}" in runs[0]
    assert len(set(runs)) == 3


def test_a_bank_is_asked_for_where_it_is_needed(captions: Path, finished_store: Path, run: Run) -> None:
    asked = ("evaluate", "--store", finished_store, "--captions", captions)
    one_line_error(run(*asked, "--normalise", "sinkhorn"), 2, "--bank FILE")
    one_line_error(run(*asked, "--bank", captions), 2, "--normalise")
    assert run(*asked, "--normalise", "qb-norm", "--direction", "v2t").code == 0
    assert run(*asked, "--normalise", "dual-softmax").code == 0


def test_captions_give_both_directions_side_by_side(captions: Path, finished_store: Path, run: Run) -> None:
    found: dict[str, Any] = evaluate(run, finished_store, "--captions", captions, "--json").json
    assert (found["method"], found["videos"], found["captioned_videos"], found["left_out"]) == ("eercf", 6, 6, 0)
    assert "ordered by id" in found["ties"]
    for direction in ("text_to_video", "video_to_text"):
        assert (found[direction]["queries"], found[direction]["answers"], found[direction]["top_k"]) == (6, 6, 6)
        assert found[direction]["ceiling"] == 100
        for view in VIEWS:
            assert list(found[direction][view]) == ["R@1", "R@5", "R@10", "MdR", "MnR"]
            assert found[direction][view]["R@10"] == 100
            assert 1 <= found[direction][view]["MnR"] <= 6
    table = evaluate(run, finished_store, "--captions", captions).out
    for part in ("text to video", "video to text", "broad", "focused", "MdR", "MnR", "K = 6", "6 queries", "by id"):
        assert part in table
    assert f"{found['text_to_video']['focused']['MnR']:.1f}" in table


@pytest.mark.slow
@pytest.mark.parametrize("top_k", [2, 50])
def test_the_metrics_are_those_of_trec_eval_over_our_own_runs(
    clips: Path, finished_store: Path, run: Run, tmp_path: Path, top_k: int
) -> None:
    queries, qrels = clips.parent / "queries.jsonl", clips.parent / "qrels.tsv"
    given = ("--queries", queries, "--qrels", qrels, "--top-k", top_k)
    found = evaluate(run, finished_store, *given, "--direction", "t2v", "--json").json
    assert found["video_to_text"] is None
    expected = {}
    for view, method in (("broad", "broad"), ("focused", "eercf")):
        output = tmp_path / f"{view}.trec"
        done = run(
            "rerank", "--store", finished_store, "--queries", queries, "--output", output, "--method", method,
            "--top-k", 50 if view == "broad" else top_k,
        )  # fmt: skip
        assert done.code == 0, done.err
        expected[view] = output
    assert found["text_to_video"]["broad"] == pytest.approx(trec_eval(expected["broad"], qrels))
    assert found["text_to_video"]["ceiling"] == pytest.approx(found_right(expected["focused"], qrels))
    if top_k >= 6:
        assert found["text_to_video"]["focused"] == pytest.approx(trec_eval(expected["focused"], qrels))


def found_right(run_file: Path, qrels: Path) -> float:
    """Percent of the queries whose right video is in the run."""
    right = {tuple(line.split("\t")[:2]) for line in qrels.read_text().splitlines()[1:]}
    found = {(query, key) for query, _, key, *_ in (line.split() for line in run_file.read_text().splitlines())}
    return 100 * len(right & found) / len(right)


def test_one_caption_a_video_is_the_same_as_its_judged_query(
    clips: Path, captions: Path, finished_store: Path, run: Run
) -> None:
    judged = ("--queries", clips.parent / "queries.jsonl", "--qrels", clips.parent / "qrels.tsv")
    theirs = evaluate(run, finished_store, *judged, "--json").json
    ours = evaluate(run, finished_store, "--captions", captions, "--json").json
    assert theirs == ours


@pytest.mark.slow
def test_direction_method_and_memory(captions: Path, finished_store: Path, run: Run) -> None:
    both = evaluate(run, finished_store, "--captions", captions, "--top-k", 3, "--json").json
    little = evaluate(run, finished_store, "--captions", captions, "--top-k", 3, "--memory", "5M", "--json").json
    assert little == both
    back = evaluate(run, finished_store, "--captions", captions, "--top-k", 3, "--direction", "v2t", "--json").json
    assert back["text_to_video"] is None
    assert back["video_to_text"] == both["video_to_text"]
    plain = evaluate(run, finished_store, "--captions", captions, "--method", "broad", "--json").json
    for direction in ("text_to_video", "video_to_text"):
        assert plain[direction]["focused"] == plain[direction]["broad"] == both[direction]["broad"]


@pytest.mark.slow
def test_several_methods_stand_in_one_table(captions: Path, finished_store: Path, run: Run) -> None:
    asked = ("--captions", captions, "--direction", "t2v", "--method", "eercf, broad,x-clip")
    found = evaluate(run, finished_store, *asked, "--json").json["methods"]
    assert [one["method"] for one in found] == ["eercf", "broad", "x-clip"]
    alone = evaluate(run, finished_store, *asked[:-1], "x-clip", "--json").json
    assert found[2] == alone
    shown = evaluate(run, finished_store, *asked).out
    assert all(f"{name}, text to video: " in shown for name in ("eercf", "broad", "x-clip"))


@pytest.mark.slow
def test_weights_go_to_their_methods(captions: Path, finished_store: Path, run: Run) -> None:
    weights = MODELS["tbpipe-small"] / "token_binder.safetensors"
    asked = ("--captions", captions, "--direction", "t2v", "--weights", weights)
    found = evaluate(run, finished_store, *asked, "--method", "broad,token-binder", "--json").json["methods"]
    assert [(one["method"], one["weights"]) for one in found] == [("broad", None), ("token-binder", str(weights))]
    assert found[1]["text_to_video"] == evaluate(run, finished_store, *asked, "--json").json["text_to_video"]
    done = run("evaluate", "--store", finished_store, *asked, "--method", "broad,eercf")
    one_line_error(done, 2, "token_binder.safetensors has weights of token-binder", "does not name")
    done = run("evaluate", "--store", finished_store, *asked[:4], "--method", "broad,eerfc")
    one_line_error(done, 2, "did you mean 'eercf'")


def test_several_captions_a_video_are_several_queries(
    clips: Path, captions: Path, finished_store: Path, run: Run, tmp_path: Path
) -> None:
    lines = captions.read_text().splitlines()
    more = tmp_path / "captions.jsonl"
    first = json.loads(lines[0])
    more.write_text("\n".join([*lines[:4], json.dumps({**first, "caption": "a shape that moves"})]) + "\n")
    found = evaluate(run, finished_store, "--captions", more, "--json").json
    assert (found["text_to_video"]["queries"], found["text_to_video"]["answers"]) == (5, 6)
    assert (found["video_to_text"]["queries"], found["video_to_text"]["answers"]) == (4, 5)


def test_captions_of_unknown_videos_are_counted_and_named(
    captions: Path, finished_store: Path, run: Run, tmp_path: Path
) -> None:
    lines = captions.read_text().splitlines()
    more = tmp_path / "captions.jsonl"
    unknown = [json.dumps({"key": f"elsewhere_{number}.mp4", "caption": "a dog"}) for number in (1, 1, 2)]
    more.write_text("\n".join([*lines, *unknown]) + "\n")
    done = evaluate(run, finished_store, "--captions", more, "--json")
    assert "3 of 9 captions are about 2 videos" in done.err
    assert "elsewhere_1.mp4" in done.err
    assert done.json["left_out"] == 3
    assert (
        done.json["text_to_video"]
        == evaluate(run, finished_store, "--captions", captions, "--json").json["text_to_video"]
    )
    more.write_text("\n".join(unknown) + "\n")
    done = run("evaluate", "--store", finished_store, "--captions", more)
    one_line_error(done, 17, "none of the 3 captions", "6 videos", "elsewhere_1.mp4", "clip_00000.mp4")


def test_queries_without_a_right_video_are_counted(clips: Path, finished_store: Path, run: Run, tmp_path: Path) -> None:
    queries, qrels = tmp_path / "queries.jsonl", tmp_path / "qrels.tsv"
    shutil.copy(clips.parent / "queries.jsonl", queries)
    lines = (clips.parent / "qrels.tsv").read_text().splitlines()
    first_id, first_key, _ = lines[1].split("\t")
    second_key = lines[2].split("\t")[1]
    qrels.write_text(
        "\n".join([*lines[:2], f"{first_id}\t{second_key}\t1", f"{first_id}\tgone.mp4\t1", f"{lines[3][:-1]}0"]) + "\n"
    )
    done = evaluate(run, finished_store, "--queries", queries, "--qrels", qrels, "--json")
    assert "1 of 3 judgements" in done.err
    assert "5 of 6 queries" in done.err
    assert (done.json["text_to_video"]["queries"], done.json["video_to_text"]["queries"]) == (1, 2)
    qrels.write_text("other\tclip_00000.mp4\t1\n")
    one_line_error(
        run("evaluate", "--store", finished_store, "--queries", queries, "--qrels", qrels), 17, "query ids of both"
    )
    qrels.write_text(f"{first_id}\tgone.mp4\t1\n")
    one_line_error(
        run("evaluate", "--store", finished_store, "--queries", queries, "--qrels", qrels), 17, "gone.mp4", first_key
    )


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "--captions FILE"),
        (("--queries", "q.jsonl"), "found --queries"),
        (("--qrels", "q.tsv"), "found --qrels"),
        (("--captions", "c.jsonl", "--qrels", "q.tsv"), "found --captions and --qrels"),
        (("--queries", "q.jsonl", "--qrels", "q.tsv", "--split", "test"), "--split"),
    ],
)
def test_texts_must_come_one_way(finished_store: Path, run: Run, arguments: tuple[str, ...], part: str) -> None:
    one_line_error(run("evaluate", "--store", finished_store, *arguments), 2, part)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [(("--direction", "up"), "--direction"), (("--top-k", "0"), "--top-k"), (("--memory", "much"), "512M")],
)
def test_wrong_values_are_usage_errors(
    captions: Path, finished_store: Path, run: Run, arguments: tuple[str, str], part: str
) -> None:
    done = run("evaluate", "--store", finished_store, "--captions", captions, *arguments)
    assert done.code == 2
    assert part in done.err


def test_what_is_wrong_with_method_store_or_memory_is_said(
    clips: Path, captions: Path, finished_store: Path, run: Run, tmp_path: Path
) -> None:
    def asked(*arguments: object, store: Path = finished_store) -> Outcome:
        return run("evaluate", "--store", store, "--captions", captions, *arguments)

    one_line_error(asked("--method", "eercff"), 2, "'eercf'")
    one_line_error(asked("--method", "broad", "--weights", tmp_path / "x.safetensors"), 2, "token-binder")
    one_line_error(asked("--memory", "1K"), 2, "--memory")
    one_line_error(asked(store=tmp_path / "gone"), 10, "no store in")
    one_line_error(run("evaluate", "--store", finished_store, "--captions", tmp_path / "gone.jsonl"), 17, "gone.jsonl")


def test_a_store_without_index_says_what_to_run(clips: Path, captions: Path, run: Run, tmp_path: Path) -> None:
    run("extract", clips, "--store", tmp_path / "store", *SMALL, "--limit", 1)
    done = run("evaluate", "--store", tmp_path / "store", "--captions", captions)
    one_line_error(done, 10, "tbpipe index")


@pytest.fixture
def benchmark(finished_store: Path, tmp_path: Path) -> Path:
    """Annotation files of MSVD whose test split has four of the store's six videos, one of them twice, and two more."""
    names = ["clip_00000", "clip_00001", "clip_00002", "clip_00003", "gone_1_2", "lost_3_4"]
    write(tmp_path / "msvd" / "test_list.txt", "\n".join(names))
    captions = {
        name: [f"a {word} shape {number}" for number in range(3)] for name, word in zip(names, "abcdef", strict=True)
    }
    write(tmp_path / "msvd" / "captions_msvd.json", {**captions, "clip_00004": ["a training clip"]})
    return tmp_path


def test_of_a_benchmark_its_videos_alone_are_searched(finished_store: Path, run: Run, benchmark: Path) -> None:
    asked = ("--dataset", "msvd", "--annotations", benchmark)
    done = evaluate(run, finished_store, *asked, "--json")
    found = done.json
    assert (found["dataset"], found["split"], found["protocol"]) == ("msvd", "test", "all captions")
    assert found["missing_videos"] == ["gone_1_2", "lost_3_4"]
    assert found["ambiguous_videos"] == {}
    assert (found["videos"], found["captioned_videos"], found["left_out"]) == (6, 4, 6)
    assert (found["text_to_video"]["queries"], found["text_to_video"]["answers"]) == (12, 4)
    assert (found["video_to_text"]["queries"], found["video_to_text"]["answers"]) == (4, 4)
    for said in (
        "2 of the 6 videos of msvd test lack features in the store",
        "gone_1_2, lost_3_4",
        "cannot be compared",
    ):
        assert said in done.err
    table = evaluate(run, finished_store, *asked).out
    assert "msvd test, all captions: 4 videos" in table
    assert "4 queries, 4 groups of captions" in table


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sinkhorn", "qb-norm"])
def test_the_bank_of_a_benchmark_is_its_training_captions(
    finished_store: Path, run: Run, benchmark: Path, method: str
) -> None:
    asked = ("--dataset", "msvd", "--annotations", benchmark, "--direction", "t2v", "--normalise", method)
    said = {"clip_00004": ["a blue square", "not the first"], "elsewhere_1_2": ["a red star"]}
    path = benchmark / "msvd" / "captions_msvd.json"
    write(path, {**json.loads(path.read_text()), **said})
    arguments = ("evaluate", "--store", finished_store, *asked)
    one_line_error(run(*arguments), 17, f"--normalise {method} needs training captions, or --bank", "train_list.txt")
    write(benchmark / "msvd" / "train_list.txt", "\n".join(said))
    done = evaluate(run, finished_store, *asked, "--json")
    assert f"--normalise {method}: the bank is the first captions of the 2 videos of msvd train" in done.err
    write(benchmark / "bank.txt", "a blue square\na red star\n")
    given = evaluate(run, finished_store, *asked, "--bank", benchmark / "bank.txt", "--json")
    assert given.json["text_to_video"] == done.json["text_to_video"]
    assert "the bank is" not in given.err


def test_a_benchmark_gives_what_its_captions_give(finished_store: Path, run: Run, benchmark: Path) -> None:
    """Where the split is the whole store and every video has one caption, both ways must say the same."""
    texts = {f"clip_{number:05d}": [f"a red shape {number}"] for number in range(6)}
    write(benchmark / "msvd" / "test_list.txt", "\n".join(texts))
    write(benchmark / "msvd" / "captions_msvd.json", texts)
    write(benchmark / "captions.json", texts)
    theirs = evaluate(run, finished_store, "--captions", benchmark / "captions.json", "--json").json
    ours = evaluate(run, finished_store, "--dataset", "msvd", "--annotations", benchmark, "--json").json
    for direction in ("text_to_video", "video_to_text"):
        assert ours[direction] == theirs[direction]


def test_texts_that_the_text_tower_cuts_are_counted(finished_store: Path, run: Run, benchmark: Path) -> None:
    texts = {"clip_00000": ["red"] * 3, "clip_00001": ["red " * 90], "clip_00002": ["a " * 200, "b " * 30]}
    write(benchmark / "captions.json", texts)
    done = evaluate(run, finished_store, "--captions", benchmark / "captions.json")
    assert "2 of 6 texts fill all 40 positions of the text tower; what comes after was not read" in done.err


def test_a_benchmark_that_cannot_be_used_is_said(
    captions: Path, finished_store: Path, run: Run, benchmark: Path, tmp_path: Path
) -> None:
    asked = ("evaluate", "--store", finished_store)
    here = ("--annotations", benchmark)
    one_line_error(run(*asked, "--dataset", "msvd"), 2, "found --dataset; give --captions FILE", "--annotations DIR")
    one_line_error(run(*asked, "--dataset", "msvd", *here, "--captions", captions), 2, "found --captions and --dataset")
    one_line_error(run(*asked, "--dataset", "msv", *here), 2, "'msv' is not one of", "msvd")
    one_line_error(run(*asked, "--dataset", "msvd", *here, "--split", "dev"), 2, "no split 'dev'", "train")
    one_line_error(run(*asked, "--dataset", "lsmdc", *here), 17, "LSMDC16_challenge_1000_publictect.csv")
    write(benchmark / "msvd" / "test_list.txt", "gone_1_2")
    one_line_error(run(*asked, "--dataset", "msvd", *here), 17, "none of the 1 videos", "clip_00000.mp4", "gone_1_2")
