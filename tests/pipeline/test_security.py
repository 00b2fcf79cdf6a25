"""Names and files of unknown origin: nothing in them is run, followed out of the store, or sent to the terminal."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from index_store import catalog
from tests.pipeline.conftest import SMALL, Outcome, Run
from tests.test_architecture import FORBIDDEN, ROOT, imports_of, nodes, sources

KNOWN_CODES = {0, 2, 3, 10, 11, 12, 13, 14, 15, 16, 17, 18}


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call in the three packages, and where it is."""
    for file in [file for package in FORBIDDEN for file in sources(package)]:
        for node in nodes(file):
            if isinstance(node, ast.Call):
                yield f"{file.relative_to(ROOT)}:{node.lineno}", node


STARTERS = ("subprocess.", "os.spawn", "os.exec", "os.fork", "os.posix_spawn")
RUNNERS = ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pty.spawn")

MAY_START = ("stages/decode_pool.py:", "pipeline/jobs/gpu_trial.py:")
"""Workers that may crash over a file, and the child in which doctor tries the GPUs."""


@pytest.mark.slow
def test_no_shell_and_no_code_from_data() -> None:
    for place, call in calls():
        assert not any(keyword.arg == "shell" for keyword in call.keywords), place
        if not isinstance(call.func, ast.Name | ast.Attribute):
            continue
        name = ast.unparse(call.func)
        assert name not in RUNNERS, place
        if name.startswith(STARTERS):
            assert place.startswith(MAY_START), place
            assert isinstance(call.args[0], ast.List), f"{place}: not a list of arguments"


STATEMENTS = ("SELECT ", "UPDATE ", "INSERT ", "DELETE ", "CREATE ", "ALTER ", "PRAGMA ")


def is_our_sql(text: ast.AST, function: ast.AST) -> bool:
    """Whether ``text`` is made of what the function itself says, constants of the file, and marks of parameters."""
    if isinstance(text, ast.IfExp):
        return is_our_sql(text.body, function) and is_our_sql(text.orelse, function)
    marks = [node for node in ast.walk(text) if isinstance(node, ast.Call) and ast.unparse(node.func) == "_marks"]
    in_marks = {id(node) for call in marks for node in ast.walk(call)}
    targets = [node.target for node in ast.walk(text) if isinstance(node, ast.comprehension)]
    bound = {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    names = [node for node in ast.walk(text) if isinstance(node, ast.Name) and id(node) not in in_marks]
    return all(is_ours(name, function) for name in names if name.id not in bound)


def is_ours(name: ast.Name, function: ast.AST) -> bool:
    values = [
        node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and name.id in [ast.unparse(target) for target in node.targets]
    ]
    if values:
        return all(is_our_sql(value, function) for value in values)
    return name.id.strip("_").isupper() or name.id == "condition"  # a parameter: a piece of SQL of the caller's


def test_sql_is_made_of_constants_only() -> None:
    files = [file for package in FORBIDDEN for file in sources(package) if "sqlite3" in set(imports_of(file))]
    functions = [node for file in files for node in nodes(file) if isinstance(node, ast.FunctionDef)]
    texts = [(text, function) for function in functions for text in ast.walk(function)]
    checked = 0
    for text, function in texts:
        if isinstance(text, ast.JoinedStr) and ast.unparse(text)[2:].startswith(STATEMENTS):
            checked += 1
            parts = [part.value for part in text.values if isinstance(part, ast.FormattedValue)]
            strange = [ast.unparse(part) for part in parts if not is_our_sql(part, function)]
            assert strange == [], f"{function.name} puts {strange} into SQL"
    assert checked >= 6


class Recorder(sqlite3.Connection):
    """A connection that remembers the texts of its statements."""

    texts: ClassVar[list[str]] = []

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        self.texts.append(sql)
        return super().execute(sql, *values)


INJECTION = "x7q'); DROP TABLE videos; --"


@pytest.mark.slow
def test_names_reach_sqlite_as_parameters(
    clips: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(catalog.sqlite3, "connect", lambda *a, **k: connect(*a, **{**k, "factory": Recorder}))
    Recorder.texts.clear()
    videos, store = tmp_path / INJECTION, tmp_path / "store"
    videos.mkdir()
    shutil.copy(next(clips.iterdir()), videos / f"{INJECTION}.mp4")
    (videos / f"{INJECTION} bad.mp4").write_bytes(b"")
    assert run("extract", videos, "--store", store, *SMALL).code == 3
    assert run("extract", videos, "--store", store).code == 0
    assert run("index", "--store", store).code == 0
    (hit,) = run("search", "--store", store, INJECTION, "--json").json["hits"]
    assert hit["key"] == f"{INJECTION}.mp4"
    done = run("quarantine", "--store", store, "--key", INJECTION, "--json")
    assert done.code == 17, (done.out, done.err)
    assert (
        run("quarantine", "--store", store, "--retry", "--key", f"{INJECTION} bad.mp4", "--json").json["released"] == 1
    )
    assert len(Recorder.texts) > 20
    assert [text for text in Recorder.texts if "x7q" in text] == []


SHELL = (
    "$(touch run)",
    "`touch run`",
    "; touch run;",
    "| touch run",
    "&& touch run",
    "'; touch run; '",
    '"; touch run; "',
)


@pytest.mark.slow
def test_names_never_reach_a_shell(clips: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    videos = tmp_path / "videos"
    videos.mkdir()
    clip = next(clips.iterdir())
    for name in SHELL:
        shutil.copy(clip, videos / f"{name}.mp4")
    assert run("extract", videos, "--store", "store", *SMALL).code == 0
    assert run("index", "--store", "store").code == 0
    assert len(run("search", "--store", "store", SHELL[0], "--json").json["hits"]) == len(SHELL)
    assert {path.name for path in tmp_path.iterdir()} == {"videos", "store"}


# -- nothing is unpickled ---------------------------------------------------------------------------------------------


class Bomb:
    """Unpickled, it makes the file that its environment variable names."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.mkdir, (os.environ["TBPIPE_TEST_BOMB"],))


INPUTS: dict[str, tuple[str, ...]] = {
    "queries.jsonl": ("rerank", "--queries", "{bomb}", "--output", "-"),
    "weights.safetensors": ("search", "x", "--weights", "{bomb}"),
    "weights.pt": ("search", "x", "--weights", "{bomb}"),
    "model.pt": ("search", "x", "--pretrained", "{bomb}"),
    "captions.json": ("evaluate", "--captions", "{bomb}"),
    "qrels.tsv": ("evaluate", "--queries", "{queries}", "--qrels", "{bomb}"),
    "bank.jsonl": ("rerank", "--queries", "{queries}", "--output", "-", "--normalise", "qb-norm", "--bank", "{bomb}"),
    "list.csv": ("extract", "{bomb}"),
    "clip.mp4": ("extract", "{bomb}"),
    "recipe.toml": ("train", "--captions", "{captions}", "--output", "{output}", "--recipe", "{bomb}"),
    "start.safetensors": ("train", "--captions", "{captions}", "--output", "{output}", "--start", "{bomb}"),
}
PARTS = (
    "tbpipe.toml",
    "catalog.sqlite",
    "shards/00000001.h5",
    *(f"index/00000001/{name}" for name in ("index.faiss", "ids.npy", "manifest.json")),
)


def bomb(path: Path) -> Path:
    path.write_bytes(pickle.dumps(Bomb(), protocol=2))
    return path


@pytest.fixture
def crater(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that a bomb makes; it must not be there in the end."""
    folder = tmp_path / "crater"
    monkeypatch.setenv("TBPIPE_TEST_BOMB", str(folder))
    yield folder
    assert not folder.exists()


def test_a_bomb_goes_off_where_it_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TBPIPE_TEST_BOMB", str(tmp_path / "crater"))
    pickle.loads(pickle.dumps(Bomb(), protocol=2))
    assert (tmp_path / "crater").exists()


@pytest.mark.parametrize("name", INPUTS)
def test_no_input_file_is_unpickled(
    name: str, clips: Path, finished_store: Path, run: Run, tmp_path: Path, crater: Path
) -> None:
    places = {
        "bomb": bomb(tmp_path / name),
        "queries": clips.parent / "queries.jsonl",
        "captions": clips.parent / "captions.jsonl",
        "output": tmp_path / "new.safetensors",
    }
    store = shutil.copytree(finished_store, tmp_path / "store")
    done = run(*(part.format(**places) for part in INPUTS[name]), "--store", store)
    assert done.code in KNOWN_CODES - {0}, (done.out, done.err)
    assert not (tmp_path / "new.safetensors").exists()


@pytest.mark.parametrize("part", PARTS)
def test_no_file_of_a_store_is_unpickled(
    part: str, finished_store: Path, run: Run, tmp_path: Path, crater: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished_store, store)
    bomb(store / part)
    done = run("search", "--store", store, "x", "--method", "eercf")
    assert done.code in (13, 17), (done.out, done.err)
    assert part.split("/")[-1] in done.err


# -- names in a store lead nowhere ------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["shards", "generations"])
@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "00000001.h5/../../outside", ".", "", "a\0b"])
def test_names_in_the_catalog_do_not_lead_out_of_the_store(
    table: str, name: str, finished_store: Path, run: Run, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished_store, store)
    shutil.copytree(store / table.replace("generations", "index"), tmp_path / "outside")
    with sqlite3.connect(store / "catalog.sqlite") as connection:
        connection.execute(f"UPDATE {table} SET name = ?", (name,))
    connection.close()
    done = run("search", "--store", store, "x")
    assert done.code == 13, (done.out, done.err)
    assert "restore it from a copy" in done.err
    before = sorted(path.relative_to(tmp_path) for path in (tmp_path / "outside").rglob("*"))
    run("index", "--store", store)
    assert sorted(path.relative_to(tmp_path) for path in (tmp_path / "outside").rglob("*")) == before


@pytest.mark.slow
def test_keys_in_a_manifest_are_names_not_places(clips: Path, run: Run, tmp_path: Path) -> None:
    clip, store = next(clips.iterdir()), tmp_path / "deep" / "store"
    keys = ["../../escape", "/etc/cron.d/x", "a/../../b", "..", "con:", "x" * 3000]
    lines = [json.dumps({"path": str(clip), "key": key}) for key in keys[:1]]
    for number, key in enumerate(keys[1:]):
        copy = tmp_path / f"{number}.mp4"
        shutil.copy(clip, copy)
        lines.append(json.dumps({"path": str(copy), "key": key}))
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    before = {path for path in tmp_path.rglob("*") if store not in path.parents} | {store.parent, store}
    assert run("extract", tmp_path / "list.jsonl", "--store", store, *SMALL).code == 0
    assert run("index", "--store", store).code == 0
    assert {hit["key"] for hit in run("search", "--store", store, "x", "--json").json["hits"]} == set(keys)
    assert {path for path in tmp_path.rglob("*") if store not in path.parents} == before


# -- the terminal -----------------------------------------------------------------------------------------------------

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\u2066[red]bold\r\x08\x7f"


def steers(text: str) -> set[str]:
    """Characters that a terminal obeys, but for the end of a line."""
    return {character for character in text if not character.isprintable() and character != "\n"}


def quiet(done: Outcome) -> Outcome:
    assert steers(done.out) == set(), done.out
    assert steers(done.err) == set(), done.err
    return done


@pytest.fixture(scope="module")
def hostile_names(clips: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with hostile names in a folder with a hostile name; its parent has a store of it."""
    folder = tmp_path_factory.mktemp("names")
    videos = folder / f"videos{ESCAPES}"
    videos.mkdir()
    shutil.copy(next(clips.iterdir()), videos / f"good{ESCAPES}.mp4")
    (videos / f"text{ESCAPES}.mp4").write_text(f"text {ESCAPES}")
    (videos / os.fsdecode(b"raw\xff\x1b[2J.mp4")).write_bytes(b"")
    done = quiet(run("extract", videos, "--store", folder / "store", *SMALL))
    assert done.code == 3
    assert run("index", "--store", folder / "store").code == 0
    return videos


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_results_do_not_steer_the_terminal(as_json: tuple[str, ...], hostile_names: Path, run: Run) -> None:
    store = hostile_names.parent / "store"
    quarantined = quiet(run("quarantine", "--store", store, *as_json))
    assert "text" in quarantined.out
    assert "owned" in quarantined.out
    found = quiet(run("search", "--store", store, f"a query {ESCAPES}", *as_json))
    assert "owned" in found.out
    assert "[red]" in found.out
    quiet(run("extract", hostile_names, "--store", store, *as_json))
    quiet(run("info", "--store", store, *as_json))


@pytest.mark.slow
@pytest.mark.parametrize("form", [(), ("--json", "--log-format", "json")])
def test_a_refresh_and_what_keeps_a_store_do_not_steer_the_terminal(
    form: tuple[str, ...], hostile_names: Path, run: Run, tmp_path: Path
) -> None:
    videos = shutil.copytree(hostile_names, tmp_path / f"videos{ESCAPES}")
    store, metrics = tmp_path / f"store{ESCAPES}", tmp_path / "tbpipe.prom"
    options = ("--store", store, "--source", videos, "--metrics-file", metrics, "--max-deletes", "100%", *form)
    assert quiet(run("refresh", *options, *SMALL)).code == 3
    good = videos / f"good{ESCAPES}.mp4"
    (videos / f"copy{ESCAPES}.mp4").write_bytes(good.read_bytes())
    good.rename(videos / f"moved{ESCAPES}.mp4")
    (videos / f"text{ESCAPES}.mp4").unlink()
    dry = quiet(run("refresh", *options, "--dry-run"))
    assert "owned" in dry.out + dry.err
    done = quiet(run("refresh", *options))
    assert done.code == 0, done.err
    assert "owned" in done.out + done.err
    assert steers(metrics.read_text()) == set()
    quiet(run("refresh", "--store", store, "--source", tmp_path / f"gone{ESCAPES}", *form))
    as_json = form[:1]
    for command in ("verify", "repair", "compact", "info", "doctor"):
        quiet(run(command, "--store", store, *as_json))
    (store / "shards" / "00000001.h5").unlink()
    broken = quiet(run("verify", "--store", store, *as_json))
    assert (broken.code, "owned" in broken.out) == (13, True)
    assert "owned" in quiet(run("repair", "--store", store, *as_json)).out


def test_a_ranking_on_stdout_does_not_steer_the_terminal(hostile_names: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"_id": ESCAPES, "text": "x"}))
    done = quiet(
        run("rerank", "--store", hostile_names.parent / "store", "--queries", tmp_path / "q.jsonl", "--output", "-")
    )
    assert done.code == 0
    assert "owned" in done.out


HOSTILE_ARGUMENTS: tuple[tuple[str, ...], ...] = (
    ("search", "x", "--store", ESCAPES),
    ("extract", ESCAPES, "--store", "{new}"),
    ("extract", "{videos}", "--store", "{new}", "--model", ESCAPES),
    ("extract", "{videos}", "--store", "{new}", "--pretrained", ESCAPES),
    ("extract", "{videos}", "--store", "{new}", "--frames", ESCAPES),
    ("extract", "{videos}", "--store", "{new}", "--keep-tokens", ESCAPES),
    ("extract", "{videos}", "--store", "{new}", "--commit-bytes", ESCAPES),
    ("extract", "{videos}", "--store", "{new}", "--device", ESCAPES),
    ("search", "x", "--store", "{store}", "--method", ESCAPES),
    ("search", "x", "--store", "{store}", "--weights", ESCAPES),
    ("search", "x", "--store", "{store}", f"--option{ESCAPES}"),
    ("search", "x", "--store", "{store}", "--num", ESCAPES),
    (ESCAPES,),
    ("rerank", "--store", "{store}", "--queries", ESCAPES, "--output", "-"),
    ("rerank", "--store", "{store}", "--queries", "{queries}", "--output", ESCAPES),
    ("index", "--store", "{store}", "--factory", ESCAPES),
    ("fuse", ESCAPES, "--output", "-"),
    ("evaluate", "--store", "{store}", "--captions", ESCAPES),
    ("evaluate", "--store", "{store}", "--dataset", ESCAPES, "--annotations", ESCAPES),
    ("import-weights", ESCAPES, "--from", "ucofia", "--output", "{new}"),
    (
        "train",
        "--store",
        "{store}",
        "--captions",
        "{queries}",
        "--output",
        "{new}.safetensors",
        "--set",
        f"{ESCAPES}=1",
    ),
)


@pytest.mark.parametrize("arguments", HOSTILE_ARGUMENTS, ids=lambda arguments: f"{arguments[0][:8]} {len(arguments)}")
def test_errors_do_not_steer_the_terminal(
    arguments: tuple[str, ...], hostile_names: Path, clips: Path, run: Run, tmp_path: Path
) -> None:
    places = {
        "videos": hostile_names,
        "store": hostile_names.parent / "store",
        "queries": clips.parent / "queries.jsonl",
        "new": tmp_path / "new",
    }
    done = quiet(run(*(part.format(**places) for part in arguments)))
    assert done.code in KNOWN_CODES - {0}, (done.out, done.err)
    assert done.err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.jsonl", json.dumps({"_id": ESCAPES}) + "\n"),
        ("q.jsonl", f'{{"_id": {ESCAPES}\n'),
        ("q.tsv", f"{ESCAPES}\n"),
        ("q.csv", f"{ESCAPES},x\n1,2\n"),
        (f"q{ESCAPES}.doc", "x"),
    ],
)
def test_broken_input_does_not_steer_the_terminal(
    name: str, content: str, hostile_names: Path, run: Run, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    store = hostile_names.parent / "store"
    done = quiet(run("rerank", "--store", store, "--queries", tmp_path / name, "--output", "-"))
    assert done.code == 17, done.err
