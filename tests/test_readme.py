"""What the README says can be done, can be done."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from index_store import errors
from pipeline.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")

SHOWN = [line.strip()[2:] for line in README.splitlines() if line.startswith("    $ tbpipe ")]


def test_there_is_a_session() -> None:
    assert len(SHOWN) >= 4


@pytest.mark.parametrize("command", SHOWN)
def test_each_command_of_the_session_is_one_that_parses(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    subcommand = main.commands[name]
    with subcommand.make_context(name, arguments, parent=click.Context(main)) as context:
        assert context.command is subcommand


def test_every_command_is_in_the_table_and_has_an_example() -> None:
    for name, command in main.commands.items():
        assert f"| `tbpipe {name}" in README
        assert f"tbpipe {name}" in (command.help or "").split("Example:")[1]
        assert any("--json" in parameter.opts for parameter in command.params)


def test_every_exit_code_is_documented() -> None:
    documented = {int(code) for code in re.findall(r"(?<=\| )\d+(?= \|)", README)}
    tree = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.TbpipeError)]
    codes = {kind.exit_code for kind in tree if "exit_code" in vars(kind)}
    assert codes <= documented


@pytest.mark.parametrize("target", ["demo", "test", "bench", "claims", "check", "fast"])
def test_make_targets_of_the_readme_exist(target: str) -> None:
    assert f"make {target}" in README
    assert f"\n{target}: install" in (ROOT / "Makefile").read_text("utf-8")
