"""Small real videos, a store made from them, and a way to run commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from stages.synthetic.render import VideoFormat, render_corpus

SMALL = ("--model", "tbpipe-small", "--device", "cpu")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture(scope="session")
def run() -> Run:
    """Run a tbpipe command in this process."""

    def invoke(*arguments: object) -> Outcome:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return invoke


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with six rendered videos; its parent has queries.jsonl."""
    folder = tmp_path_factory.mktemp("corpus")
    render_corpus(folder, seed=5, num_videos=6, video_format=VideoFormat(seconds=1.6))
    return folder / "videos"


@pytest.fixture(scope="session")
def finished_store(clips: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the six videos and an index. Tests only read it."""
    store = tmp_path_factory.mktemp("finished") / "store"
    done = run("extract", clips, "--store", store, *SMALL)
    assert done.code == 0, done.err
    done = run("index", "--store", store)
    assert done.code == 0, done.err
    return store
