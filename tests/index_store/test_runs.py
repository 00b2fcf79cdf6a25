from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index_store.errors import (
    ComponentMissingError,
    InputError,
    NoSpaceError,
    NotWritableError,
    TbpipeError,
    UsageError,
)
from index_store.records import Hit, Query, Ranking
from index_store.runs import (
    Judgement,
    escape_id,
    output_format,
    read_qrels,
    read_queries,
    unescape_id,
    write_ranking,
)
from tests.texts import CHARACTERS


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# -- queries ----------------------------------------------------------------------------------------------------------

EXPECTED = [Query("q1", "a dog runs"), Query("q2", "ein Hund läuft 犬")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "q.jsonl",
            '{"_id": "q1", "text": "a dog runs"}\n\n{"text": " ein Hund läuft 犬 ", "_id": "q2", "a": [1]}\n',
        ),
        ("q.jsonl", '{"id": "q1", "text": "a dog runs"}\r\n{"_id": "q2", "text": "ein Hund l\\u00e4uft 犬"}'),
        ("q.tsv", "q1\ta dog runs\nq2\tein Hund läuft 犬\n"),
        ("q.tsv", "query-id\ttext\nq1\ta dog runs\n\nq2\tein Hund läuft 犬\n"),
        ("q.TSV", b"\xef\xbb\xbfq1\ta dog runs\r\n" + "q2\tein Hund läuft 犬".encode()),
        ("q.csv", 'query_id,text\nq1,a dog runs\n"q2","ein Hund läuft 犬"\n'),
        ("q.csv", "key,vid_key,video_id,sentence\nq1,msr1,video1,a dog runs\nq2,msr2,video1,ein Hund läuft 犬\n"),
        ("q.csv", "sentence,video_id\na dog runs,q1\nein Hund läuft 犬,q2\n"),
    ],
)
def test_every_format_gives_the_same_queries(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert read_queries(write(tmp_path / name, content)) == EXPECTED


def test_a_text_file_has_line_numbers_as_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "q.txt", "a dog runs\n\n  tabs\tstay \n")
    assert read_queries(path) == [Query("1", "a dog runs"), Query("3", "tabs\tstay")]


def test_a_number_as_id_is_text(tmp_path: Path) -> None:
    assert read_queries(write(tmp_path / "q.jsonl", '{"_id": 7, "text": "x"}\n')) == [Query("7", "x")]


def test_a_quoted_text_may_span_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "q.csv", 'id,text\na,"one\ntwo, ""three"""\nb,x\n')
    assert read_queries(path) == [Query("a", 'one\ntwo, "three"'), Query("b", "x")]


def test_queries_come_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"_id": "q1", "text": "a dog runs"}\n')))
    assert read_queries(Path("-")) == EXPECTED[:1]


@pytest.mark.parametrize(
    ("name", "content", "line", "found"),
    [
        ("q.jsonl", '{"_id": "1", "text": "a"}\n{"_id": "2"\n', 2, 'found \'{"_id": "2"\''),
        ("q.jsonl", '{"_id": "1"}\n', 1, "expected an object like"),
        ("q.jsonl", '["1", "a"]\n', 1, "expected an object like"),
        ("q.jsonl", '{"_id": true, "text": "a"}\n', 1, "both of them strings"),
        ("q.jsonl", '{"_id": "1", "text": ["a"]}\n', 1, "both of them strings"),
        ("q.jsonl", '{"_id": "1", "text": "  "}\n', 1, "without text"),
        ("q.jsonl", '{"_id": "", "text": "a"}\n', 1, "empty query id"),
        ("q.jsonl", '{"_id": "1", "text": "\\ud800"}\n', 1, "half a character"),
        ("q.jsonl", "[" * 100_000, 1, "expected an object like"),
        ("q.jsonl", '{"_id": "1", "text": "a"}\n{"_id": "1", "text": "b"}\n', 2, "'1' of line 1 again"),
        ("q.jsonl", b'{"_id": "1", "text": "a"}\n{"_id": "2", "text": "caf\xe9"}\n', 2, "byte 0xe9 at position 26"),
        ("q.tsv", "1\ta\n2 b\n", 2, "1 columns"),
        ("q.tsv", "1\ta\tb\n", 1, "3 columns"),
        ("q.tsv", "1\t\n", 1, "without text"),
        ("q.tsv", "id\ttext\n1\ta\tb\n", 2, "3 columns"),
        ("q.csv", "nothing,here\n1,2\n", 1, "'nothing', 'here'"),
        ("q.csv", "id,text\n1,a,b\n", 2, "3 columns"),
        ("q.csv", 'id,text\n1,a\n2,"b\nc\n', 3, "broken CSV record"),
        ("q.csv", "video_id,sentence\nv,a\nv,b\n", 3, "'v' of line 2 again"),
        ("q.txt", b"fine\n\xff\xfeU\x00\n", 2, "byte 0xff"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, name: str, content: str | bytes, line: int, found: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(InputError) as caught:
        read_queries(path)
    message = str(caught.value)
    assert message.startswith(f"{path} line {line}: ")
    assert found in message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 300


@pytest.mark.parametrize(
    ("name", "content"), [("q.txt", ""), ("q.tsv", "\n \n"), ("q.csv", ""), ("q.csv", "id,text\n"), ("q.jsonl", "")]
)
def test_a_file_without_queries_is_an_input_error(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(InputError, match="holds no query"):
        read_queries(write(tmp_path / name, content))


def test_files_that_cannot_be_read_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.txt: No such file"):
        read_queries(tmp_path / "gone.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(InputError, match=r"folder\.txt: Is a directory"):
        read_queries(tmp_path / "folder.txt")
    with pytest.raises(InputError, match=r"'\.doc'.*\.jsonl, \.tsv, \.csv, \.txt"):
        read_queries(tmp_path / "q.doc")


def test_real_query_files_are_read(assets: Path) -> None:
    ours = read_queries(assets / "queries.jsonl")
    assert ours[0] == Query("q001", "a person cooking in a kitchen")
    assert {judgement.query_id for judgement in read_qrels(assets / "qrels.tsv")} <= {query.id for query in ours}
    benchmark = read_queries(assets / "annotations" / "msrvtt" / "MSRVTT_JSFUSION_test.csv")
    assert len(benchmark) == 1000
    assert benchmark[0] == Query("ret0", "a person is connecting something to system")


# -- judgements -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "query-id\tcorpus-id\tscore\nq1\ta clip.mp4\t1\nq1\tb%20\t-1\n",
        "q1\ta clip.mp4\t1\nq1\tb%20\t-1\n",
        "q1 0 a%20clip.mp4 1\nq1 0 b%2520 -1\n",
        "q1\t0\ta%20clip.mp4\t1\r\nq1\t0\tb%2520\t-1\r\n",
    ],
)
def test_judgements_of_both_kinds(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "qrels", content)
    assert read_qrels(path) == [Judgement("q1", "a clip.mp4", 1), Judgement("q1", "b%20", -1)]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("q1\ta\tyes\n", "line 1: found the relevance 'yes'"),
        ("q1\ta\t1\nq1\ta\t0\n", "line 2: found query 'q1' and video 'a' judged before"),
        ("q1 a\n", "line 1: found 'q1 a'"),
        ("q1\t\t1\n", "a video key"),
        ("", "holds no judgement"),
    ],
)
def test_broken_judgements_are_named(tmp_path: Path, content: str, part: str) -> None:
    with pytest.raises(InputError, match=part):
        read_qrels(write(tmp_path / "qrels.tsv", content))


# -- rankings ---------------------------------------------------------------------------------------------------------

ODD_KEYS = [
    "plain.mp4",
    "a b\tc\n.mp4",
    "50%.mp4",
    "50%41.mp4",
    "ключ 犬.mp4",
    "not-utf8-\udcff.mp4",
    "\u2028",
    "a\u00a0b",
]


def rankings() -> Iterator[Ranking]:
    hits = [Hit(number, key, 0.1 / (number + 1), 1 / (number + 3), 2.5) for number, key in enumerate(ODD_KEYS)]
    yield Ranking("q 1", tuple(hits))
    yield Ranking("q2", (Hit(3, "only broad", 0.30000001192092896),))
    yield Ranking("q3", ())


def test_a_trec_run_has_six_columns_that_come_back(tmp_path: Path) -> None:
    assert write_ranking(tmp_path / "x.trec", rankings(), tag="eercf") == 3
    rows = [line.split() for line in (tmp_path / "x.trec").read_text("utf-8").splitlines()]
    assert {len(row) for row in rows} == {6}
    assert [unescape_id(row[2]) for row in rows[:-1]] == ODD_KEYS
    assert rows[0] == ["q%201", "Q0", "plain.mp4", "1", "0.33333334", "eercf"]
    assert rows[2][2] == "50%.mp4"
    assert rows[-1] == ["q2", "Q0", "only%20broad", "1", "0.3", "eercf"]
    assert [row[3] for row in rows[:-1]] == [str(rank) for rank in range(1, 9)]
    assert [np.float32(row[4]) for row in rows[:-1]] == [np.float32(1 / (number + 3)) for number in range(8)]


def test_json_lines_have_both_scores_and_the_moment(tmp_path: Path) -> None:
    write_ranking(tmp_path / "x.jsonl", rankings())
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text("utf-8").splitlines()]
    assert [row["key"] for row in rows[:-1]] == ODD_KEYS
    assert rows[1] == {
        "query_id": "q 1",
        "rank": 2,
        "key": "a b\tc\n.mp4",
        "video_id": 1,
        "broad_score": 0.05,
        "focused_score": 0.25,
        "moment_seconds": 2.5,
    }
    assert (rows[-1]["focused_score"], rows[-1]["moment_seconds"]) == (None, None)


def test_parquet_has_the_same_columns(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write_ranking(tmp_path / "x.parquet", rankings())
    table = parquet.read_table(tmp_path / "x.parquet").to_pydict()
    assert table["query_id"] == ["q 1"] * 8 + ["q2"]
    assert table["key"][:5] == ODD_KEYS[:5]
    assert table["key"][5] == "not-utf8-\\udcff.mp4"
    assert table["rank"] == [*range(1, 9), 1]
    assert table["focused_score"][1] == 0.25
    assert table["focused_score"][-1] is None


@pytest.mark.slow
def test_parquet_is_written_in_row_groups(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    hits = tuple(Hit(number, f"v{number}", 0.5) for number in range(1000))
    assert write_ranking(tmp_path / "x.parquet", (Ranking(f"q{number}", hits) for number in range(150))) == 150
    file = parquet.ParquetFile(tmp_path / "x.parquet")
    assert file.metadata.num_rows == 150_000
    assert file.num_row_groups == 3


def test_no_ranking_at_all_is_an_empty_file(tmp_path: Path) -> None:
    for name in ("x.trec", "x.jsonl"):
        assert write_ranking(tmp_path / name, []) == 0
        assert (tmp_path / name).read_bytes() == b""


def test_standard_output_is_a_trec_run(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    write_ranking("-", rankings())
    assert capfdbinary.readouterr().out.startswith(b"q%201 Q0 plain.mp4 1 0.33333334 tbpipe\n")


def test_a_failure_on_the_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", "old\n")

    def broken() -> Iterator[Ranking]:
        yield from rankings()
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_ranking(path, broken())
    assert path.read_text() == "old\n"
    assert os.listdir(tmp_path) == ["x.jsonl"]


def test_a_score_that_is_no_number_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nan"):
        write_ranking(tmp_path / "x.trec", [Ranking("q", (Hit(1, "v", float("nan")),))])
    assert os.listdir(tmp_path) == []


def test_a_link_stays_a_link_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "link.trec").symlink_to("target.trec")
    write_ranking(tmp_path / "link.trec", rankings())
    assert (tmp_path / "link.trec").is_symlink()
    assert (tmp_path / "target.trec").read_text("utf-8").count("\n") == 9
    os.mkfifo(tmp_path / "pipe.trec")
    reader = os.open(tmp_path / "pipe.trec", os.O_RDONLY | os.O_NONBLOCK)
    write_ranking(tmp_path / "pipe.trec", rankings())
    assert os.read(reader, 5) == b"q%201"
    os.close(reader)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_has_its_own_error(tmp_path: Path) -> None:
    (tmp_path / "x.trec").symlink_to("/dev/full")
    with pytest.raises(NoSpaceError, match="no space left"):
        write_ranking(tmp_path / "x.trec", rankings())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_has_its_own_error(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(NotWritableError):
        write_ranking(tmp_path / "closed" / "x.trec", rankings())


@pytest.mark.parametrize(
    ("name", "error", "part"),
    [
        ("x.xml", UsageError, ".trec, .run, .txt, .jsonl, .parquet"),
        ("run", UsageError, ".trec"),
        ("gone/x.trec", InputError, "does not exist"),
        ("folder.trec", InputError, "is a folder"),
    ],
)
def test_an_impossible_output_is_refused_before_any_work(
    tmp_path: Path, name: str, error: type[TbpipeError], part: str
) -> None:
    (tmp_path / "folder.trec").mkdir()
    with pytest.raises(error, match=part):
        output_format(tmp_path / name)

    def never() -> Iterator[Ranking]:
        raise AssertionError("asked for a ranking")
        yield

    with pytest.raises(error, match=part):
        write_ranking(tmp_path / name, never())


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ComponentMissingError, match=r"tbpipe\[parquet\]"):
        output_format(tmp_path / "x.parquet")


def test_a_tag_is_one_word(tmp_path: Path) -> None:
    for tag in ("", "two words"):
        with pytest.raises(UsageError, match="one word"):
            write_ranking(tmp_path / "x.trec", [], tag)


@settings(max_examples=100, deadline=None)
@given(st.text(CHARACTERS, max_size=30))
def test_escaping_is_reversible_and_leaves_one_word(identity: str) -> None:
    escaped = escape_id(identity)
    assert unescape_id(escaped) == identity
    assert len(escaped.split()) <= 1
    assert escaped.isprintable() or not identity.isprintable()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=30))
def test_escaping_is_reversible_for_names_that_are_not_utf8(name: bytes) -> None:
    identity = os.fsdecode(name)
    escaped = escape_id(identity)
    escaped.encode("utf-8")
    assert os.fsencode(unescape_id(escaped)) == name
