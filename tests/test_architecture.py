"""Imports go in one direction, each heavy library has one door, and nothing heavy is loaded for ``--help``."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FORBIDDEN = {
    "index_store": {"stages", "pipeline", "torch", "click", "rich", "ray", "open_clip"},
    "stages": {"pipeline", "click", "rich", "ray"},
    "pipeline": {"faiss", "h5py", "decord", "av", "open_clip"},
}
DOORS = {
    "h5py": {"index_store/features.py"},
    "faiss": {"index_store/vectors.py"},
    "decord": {"stages/decoders/decord.py"},
    "torchcodec": {"stages/decoders/torchcodec.py"},
    "click": {
        "pipeline/bench_cli.py",
        "pipeline/cli.py",
        "pipeline/group.py",
        "pipeline/keep_cli.py",
        "pipeline/options.py",
    },
    "sqlite3": {"index_store/catalog.py", "index_store/catalog_schema.py"},
}


@functools.cache
def nodes(file: Path) -> list[ast.AST]:
    """Everything in a file, as syntax."""
    return list(ast.walk(ast.parse(file.read_text("utf-8"))))


def imports_of(file: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth."""
    for node in nodes(file):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import in line {node.lineno}"
            yield node.module or ""


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_imports_go_in_one_direction(package: str) -> None:
    files = sources(package)
    assert files
    wrong = [
        f"{file.relative_to(ROOT)} imports {module}"
        for file in files
        for module in imports_of(file)
        if module.split(".")[0] in FORBIDDEN[package]
    ]
    assert wrong == []


@pytest.mark.parametrize("library", sorted(DOORS))
def test_each_heavy_library_has_one_door(library: str) -> None:
    users = {
        str(file.relative_to(ROOT))
        for package in FORBIDDEN
        for file in sources(package)
        if any(module.split(".")[0] == library for module in imports_of(file))
    }
    assert users <= DOORS[library]


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as leave: assert leave.code == 0\n"
        "heavy = {'torch', 'numpy', 'faiss', 'h5py', 'open_clip', 'av', 'decord', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rerank" in done.stdout


def test_nothing_is_ever_unpickled() -> None:
    for file in [file for package in FORBIDDEN for file in sources(package)]:
        loaders = {"_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"} & set(imports_of(file))
        assert not loaders, f"{file.relative_to(ROOT)} imports {loaders}"
        for node in nodes(file):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner, name = ast.unparse(node.func.value), node.func.attr
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            place = f"{file.relative_to(ROOT)}:{node.lineno}"
            assert owner != "pickle", f"{place} uses pickle"
            if (owner, name) == ("torch", "load"):
                assert keywords.get("weights_only") == "True", f"{place} loads without weights_only=True"
            if (owner, name) == ("np", "load"):
                assert keywords.get("allow_pickle") == "False", f"{place} loads without allow_pickle=False"
