"""Queries, judgements and rankings in the formats that people use.

Read: queries as BEIR ``queries.jsonl``, TSV (``id<TAB>text``), CSV with a header, or one text a line; judgements as
BEIR TSV or TREC qrels; TREC runs. Written: TREC runs, JSON Lines, Parquet; the suffix of the file says which.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from index_store.atomic import replacing
from index_store.errors import ComponentMissingError, InputError, UsageError, from_os_error
from index_store.lines import Line, read_csv_records, read_lines, shown
from index_store.records import Query, Ranking

RunFormat = Literal["trec", "jsonl", "parquet"]
"""How a ranking is written."""

RUN_SUFFIXES: dict[str, RunFormat] = {
    ".trec": "trec",
    ".run": "trec",
    ".txt": "trec",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
}
"""Suffix of the output file -> its format."""

ID_COLUMNS = ("query_id", "query-id", "qid", "_id", "id", "key", "video_id")
"""Header names of the query's id in CSV and TSV; the first that is present counts. MSR-VTT has key and video_id."""

TEXT_COLUMNS = ("text", "query", "sentence", "caption", "description")
"""Header names of the query's text in CSV and TSV; the first that is present counts."""

_LINE_ENDS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})
"""What str.splitlines takes for the end of a line and JSON does not escape."""
_ESCAPED = re.compile(
    r"%(?=[0-9A-Fa-f]{2})|[\s\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\udc80-\udcff]"
)
"""What must not be in the columns of a TREC file."""
_ROWS_PER_GROUP = 65_536  # rows that a Parquet writer holds in memory


@dataclass(frozen=True, slots=True)
class Judgement:
    """How relevant a video is for a query, as a person judged it."""

    query_id: str
    key: str
    """Key of the video."""
    relevance: int
    """0 or less: not relevant."""


def read_queries(path: Path) -> list[Query]:
    """All queries of a file, in its order; white space around ids and texts is dropped, blank lines are skipped.

    ``.jsonl``, and ``-`` for standard input: ``{"_id": ..., "text": ...}`` a line (BEIR; other fields are ignored,
    ``id`` does as well). ``.tsv``: two columns, or a header. ``.csv``: a header with one of ID_COLUMNS and one of
    TEXT_COLUMNS. ``.txt``: one text a line, its id is the line number. Raises InputError naming file, line, what was
    found and what was expected.
    """
    parsers: dict[str, Callable[[Path], Iterator[tuple[Line, Query]]]] = {
        ".jsonl": _jsonl_queries,
        ".tsv": _tsv_queries,
        ".csv": _csv_queries,
        ".txt": _txt_queries,
    }
    parse = _jsonl_queries if str(path) == "-" else parsers.get(path.suffix.lower())
    if parse is None:
        raise InputError(f"{path} has the suffix {path.suffix!r}; queries are read from {', '.join(parsers)} files")
    first_seen: dict[str, int] = {}
    queries = []
    for line, query in parse(path):
        _check_query(line, query)
        if query.id in first_seen:
            raise line.broken(f"the query id {shown(query.id)} of line {first_seen[query.id]} again", "another id")
        first_seen[query.id] = line.number
        queries.append(query)
    if not queries:
        raise InputError(f"{path} holds no query; expected at least one line with a text")
    return queries


def read_qrels(path: Path) -> list[Judgement]:
    """Judgements of a BEIR file (``query-id<TAB>corpus-id<TAB>score``, header or not) or TREC qrels (four columns).

    Ids in TREC qrels are taken as ``escape_id`` writes them. Raises InputError naming file, line, found and expected.
    """
    judgements: dict[tuple[str, str], Judgement] = {}
    for line in read_lines(path):
        cells = line.text.split("\t")
        if not judgements and [cell.strip().lower() for cell in cells] == ["query-id", "corpus-id", "score"]:
            continue
        judgement = _judgement(line, cells)
        pair = (judgement.query_id, judgement.key)
        if pair in judgements:
            raise line.broken(f"query {shown(pair[0])} and video {shown(pair[1])} judged before", "each pair once")
        judgements[pair] = judgement
    if not judgements:
        raise InputError(f"{path} holds no judgement; expected query, video and relevance in each line")
    return list(judgements.values())


def read_run(path: Path) -> dict[str, list[str]]:
    """The keys of the videos of each query of a TREC run, ``-`` for standard input: best first, queries as they come.

    As evaluators take it: by score, ties by the rank column, then by key. Ids are taken as ``escape_id`` writes them.
    Raises InputError naming file, line, found and expected.
    """
    rows: dict[str, dict[str, tuple[float, int]]] = {}
    for line in read_lines(path):
        cells = line.text.split()
        try:
            query, _, key, rank, score, _ = cells
            place = -float(score), int(rank)
        except ValueError as error:
            raise line.broken(line.shown(), "the six columns of a TREC run: query Q0 video rank score tag") from error
        if not np.isfinite(place[0]):
            raise line.broken(f"the score {shown(score)}", "a finite number")
        of_query = rows.setdefault(unescape_id(query), {})
        if of_query.setdefault(unescape_id(key), place) is not place:
            raise line.broken(f"query {shown(query)} and video {shown(key)} again", "each pair once")
    if not rows:
        raise InputError(f"{path} holds no ranking; expected query Q0 video rank score tag in each line")
    return {query: [key for _, key in sorted((place, key) for key, place in of.items())] for query, of in rows.items()}


def output_format(path: str | Path) -> RunFormat:
    """The format that the suffix of ``path`` asks for (``-``, standard output: trec), found out before any work.

    Raises UsageError for another suffix, ComponentMissingError for Parquet without pyarrow, InputError where no file
    can be.
    """
    if str(path) == "-":
        return "trec"
    path = Path(path)
    chosen = RUN_SUFFIXES.get(path.suffix.lower())
    if chosen is None:
        raise UsageError(f"cannot tell the format of {path} from its suffix; use one of {', '.join(RUN_SUFFIXES)}")
    if chosen == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ComponentMissingError(f"writing {path} needs pyarrow: pip install 'tbpipe[parquet]', or write .jsonl")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name the file to write in it")
    if not path.absolute().parent.is_dir():
        raise InputError(f"the folder {path.absolute().parent} does not exist; make it, or write elsewhere")
    return chosen


def write_ranking(path: str | Path, rankings: Iterable[Ranking], tag: str = "tbpipe") -> int:
    """Write rankings as they come and return how many; the file appears whole after the last one, or not at all.

    ``-`` is standard output. Memory does not grow with the number of rankings. ``tag`` is the last column of a TREC
    run. Every score is written with the digits that give back the same float32.
    """
    write = {"trec": _write_trec, "jsonl": _write_jsonl, "parquet": _write_parquet}[output_format(path)]
    if not tag or re.search(r"\s", tag):
        raise UsageError(f"the run's tag {tag!r} must be one word")
    counted = _Counted(rankings)
    if str(path) == "-":
        write(sys.stdout.buffer, counted, tag)
        sys.stdout.buffer.flush()
        return counted.count
    try:
        with _output(Path(path)) as handle:
            write(handle, counted, tag)
    except OSError as error:
        raise from_os_error(error, path) from error
    return counted.count


def escape_id(identity: str) -> str:
    """``identity`` without white space, for the columns of a TREC file.

    White space, control characters, those that turn the direction of writing, and bytes that are not UTF-8 become ``%``
    and two hexadecimal digits a byte; a ``%`` is escaped only where it would be read as such an escape, so that
    ordinary names stay as they are. ``unescape_id`` undoes it.
    """
    return _ESCAPED.sub(_percent, identity)


def unescape_id(escaped: str) -> str:
    """What ``escape_id`` was given."""
    as_bytes = escaped.encode("utf-8", "surrogateescape")
    plain = re.sub(rb"%([0-9A-Fa-f]{2})", lambda match: bytes([int(match[1], 16)]), as_bytes)
    return plain.decode("utf-8", "surrogateescape")


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))


# -- reading ----------------------------------------------------------------------------------------------------------


def _check_query(line: Line, query: Query) -> None:
    if not query.id:
        raise line.broken("an empty query id", "an id")
    if not query.text:
        raise line.broken("a query without text", "a text")
    for value in (query.id, query.text):
        line.check_whole(value)


def _jsonl_queries(path: Path) -> Iterator[tuple[Line, Query]]:
    expected = 'an object like {"_id": "q1", "text": "a dog runs"}'
    for line in read_lines(path):
        try:
            parsed: Any = json.loads(line.text)
        except (ValueError, RecursionError) as error:
            raise line.broken(line.shown(), expected) from error
        if not isinstance(parsed, dict):
            raise line.broken(line.shown(), expected)
        identity, text = parsed.get("_id", parsed.get("id")), parsed.get("text")
        if isinstance(identity, int) and not isinstance(identity, bool):
            identity = str(identity)
        if not isinstance(identity, str) or not isinstance(text, str):
            raise line.broken(line.shown(), f"{expected}, both of them strings")
        yield line, Query(identity.strip(), text.strip())


def _tsv_queries(path: Path) -> Iterator[tuple[Line, Query]]:
    lines = read_lines(path)
    first = next(lines, None)
    if first is None:
        return
    header = first.text.split("\t")
    if _columns(header) is not None:
        yield from _table_queries((first, header), ((line, line.text.split("\t")) for line in lines))
        return
    for line in itertools.chain([first], lines):
        cells = line.text.split("\t")
        if len(cells) != 2:
            raise line.broken(f"{len(cells)} columns in {line.shown()}", "an id, one tab and a text")
        yield line, Query(cells[0].strip(), cells[1].strip())


def _csv_queries(path: Path) -> Iterator[tuple[Line, Query]]:
    records = read_csv_records(path)
    header = next(records, None)
    if header is None:
        return
    if _columns(header[1]) is None:
        found = f"the columns {', '.join(map(shown, header[1]))}"
        raise header[0].broken(found, f"one of {', '.join(ID_COLUMNS)} and one of {', '.join(TEXT_COLUMNS)}")
    yield from _table_queries(header, records)


def _columns(header: list[str]) -> tuple[int, int] | None:
    """Positions of id and text; None when ``header`` does not name both."""
    names = [name.strip().lower() for name in header]
    id_column = next((names.index(name) for name in ID_COLUMNS if name in names), None)
    text_column = next((names.index(name) for name in TEXT_COLUMNS if name in names), None)
    return None if id_column is None or text_column is None else (id_column, text_column)


def _table_queries(
    header: tuple[Line, list[str]], rows: Iterable[tuple[Line, list[str]]]
) -> Iterator[tuple[Line, Query]]:
    columns = _columns(header[1])
    assert columns is not None
    for line, cells in rows:
        if len(cells) != len(header[1]):
            raise line.broken(f"{len(cells)} columns", f"{len(header[1])}, as in the header")
        yield line, Query(cells[columns[0]].strip(), cells[columns[1]].strip())


def _txt_queries(path: Path) -> Iterator[tuple[Line, Query]]:
    for line in read_lines(path):
        yield line, Query(str(line.number), line.text.strip())


def _judgement(line: Line, tab_cells: list[str]) -> Judgement:
    cells = [cell.strip() for cell in tab_cells]
    if len(cells) != 3:
        words = line.text.split()
        if len(words) != 4:
            raise line.broken(line.shown(), "query<TAB>video<TAB>relevance, or the four columns of TREC qrels")
        cells = [unescape_id(words[0]), unescape_id(words[2]), words[3]]
    if not cells[0] or not cells[1]:
        raise line.broken(line.shown(), "a query id and a video key")
    try:
        return Judgement(cells[0], cells[1], int(cells[2]))
    except ValueError as error:
        raise line.broken(f"the relevance {shown(cells[2])}", "a whole number") from error


# -- writing ----------------------------------------------------------------------------------------------------------


class _Counted(Iterable[Ranking]):
    """Counts the rankings that pass through."""

    def __init__(self, rankings: Iterable[Ranking]) -> None:
        self._rankings = rankings
        self.count = 0

    def __iter__(self) -> Iterator[Ranking]:
        for ranking in self._rankings:
            yield ranking
            self.count += 1


@contextlib.contextmanager
def _output(path: Path) -> Iterator[IO[bytes]]:
    """A handle whose bytes become the file at the end; a pipe or device is written directly, a link stays a link."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        with target.open("wb") as handle:
            yield handle
        return
    with replacing(target) as temporary, temporary.open("wb") as handle:
        yield handle


def _shortest(score: float) -> str:
    """The fewest digits that give back the same float32; raises ValueError for NaN and infinity."""
    if not np.isfinite(score):
        raise ValueError(f"a score is {score}")
    return str(np.float32(score))


def _write_trec(handle: IO[bytes], rankings: Iterable[Ranking], tag: str) -> None:
    for ranking in rankings:
        query_id = escape_id(ranking.query_id)
        lines = [
            f"{query_id} Q0 {escape_id(hit.key)} {rank} {_shortest(hit.score)} {tag}\n"
            for rank, hit in enumerate(ranking.hits, start=1)
        ]
        handle.write("".join(lines).encode("utf-8"))


def _write_jsonl(handle: IO[bytes], rankings: Iterable[Ranking], tag: str) -> None:
    del tag  # a TREC column
    for ranking in rankings:
        for rank, hit in enumerate(ranking.hits, start=1):
            row = {
                "query_id": ranking.query_id,
                "rank": rank,
                "key": hit.key,
                "video_id": hit.video_id,
                "broad_score": float(_shortest(hit.broad_score)),
                "focused_score": None if hit.focused_score is None else float(_shortest(hit.focused_score)),
                "moment_seconds": hit.moment_seconds,
            }
            text = json.dumps(row, ensure_ascii=False, allow_nan=False).translate(_LINE_ENDS)
            # half characters come from file names that are not UTF-8; written as \udc80 they are valid JSON
            handle.write(text.encode("utf-8", "backslashreplace") + b"\n")


def _write_parquet(handle: IO[bytes], rankings: Iterable[Ranking], tag: str) -> None:
    import pyarrow
    import pyarrow.parquet

    del tag  # a TREC column
    fields = [
        ("query_id", pyarrow.string()),
        ("rank", pyarrow.int32()),
        ("key", pyarrow.string()),
        ("video_id", pyarrow.int64()),
        ("broad_score", pyarrow.float32()),
        ("focused_score", pyarrow.float32()),
        ("moment_seconds", pyarrow.float64()),
    ]
    schema = pyarrow.schema(fields)
    with pyarrow.parquet.ParquetWriter(handle, schema) as writer:
        for rows in _row_groups(rankings):
            columns = [
                pyarrow.array(column, type=kind)
                for column, (_, kind) in zip(zip(*rows, strict=True), fields, strict=True)
            ]
            writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))


_Row = tuple[str, int, str, int, float, "float | None", "float | None"]


def _row_groups(rankings: Iterable[Ranking]) -> Iterator[list[_Row]]:
    rows: list[_Row] = []
    for ranking in rankings:
        for rank, hit in enumerate(ranking.hits, start=1):
            key = hit.key.encode("utf-8", "backslashreplace").decode("utf-8")
            scores = (hit.broad_score, hit.focused_score, hit.moment_seconds)
            rows.append((ranking.query_id, rank, key, hit.video_id, *scores))
        if len(rows) >= _ROWS_PER_GROUP:
            yield rows
            rows = []
    if rows:
        yield rows
