"""What was answered to standing queries before: ``runs/standing-*.npz``, so that only what may differ is asked again.

It is a cache. Remove it, or damage it, and every query is answered anew, to the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_store.atomic import remove, replacing
from index_store.errors import from_os_error
from index_store.layout import Layout

FORMAT = "tbpipe-standing-1"
_ARRAYS = {"sentences": np.float32, "ids": np.int64, "broad": np.float32, "focused": np.float32, "moments": np.float64}
_DAMAGE = (OSError, ValueError, TypeError, KeyError, IndexError, EOFError, zipfile.BadZipFile, NotImplementedError)
"""What a file that is missing, cut or changed ends in; a member's CRC is checked when it is read."""


@dataclass(frozen=True, slots=True, eq=False)
class StandingAnswers:
    """T different texts with the K videos that each was answered with; D is the width of the joint space."""

    texts: tuple[str, ...]
    sentences: NDArray[np.float32]
    """float32 [T, D], raw: what the broad view asks for."""
    ids: NDArray[np.int64]
    """int64 [T, K], best first; -1 = no more."""
    broad: NDArray[np.float32]
    """float32 [T, K]."""
    focused: NDArray[np.float32]
    """float32 [T, K]."""
    moments: NDArray[np.float64]
    """float64 [T, K], seconds."""

    def __post_init__(self) -> None:
        """Check every shape and dtype. Raises ValueError."""
        shape = self.ids.shape
        if (
            self.sentences.shape[:1] != (len(self.texts),)
            or self.sentences.ndim != 2
            or shape[:1] != (len(self.texts),)
        ):
            raise ValueError("texts, sentences and ids are of different lengths")
        if len(shape) != 2 or {self.broad.shape, self.focused.shape, self.moments.shape} != {shape}:
            raise ValueError("scores and moments are not of the shape of the ids")
        if any(getattr(self, name).dtype != dtype for name, dtype in _ARRAYS.items()):
            raise ValueError("an array has another dtype")

    def __len__(self) -> int:
        """T."""
        return len(self.texts)

    def some(self, rows: NDArray[np.intp]) -> StandingAnswers:
        """The answers to some of the texts."""
        arrays = {name: getattr(self, name)[rows] for name in _ARRAYS}
        return StandingAnswers(texts=tuple(self.texts[row] for row in rows.tolist()), **arrays)


@dataclass(frozen=True, slots=True)
class StandingRun:
    """What the answers are of, and the file that was written with them."""

    made_with: str
    """Digest of everything but the videos and the queries that changes an answer."""
    commit_number: int
    """Of the store."""
    index_sha256: str
    """Of the index and its ids."""
    queries_sha256: str
    """Of the file."""
    device: str = ""
    """cpu or cuda."""
    method: str = ""
    """What the run is called after."""
    output: FileStamp | None = None
    """None: not all queries are answered yet, or nothing is written."""


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What a file looks like from outside; it stays so until somebody writes it."""

    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileStamp | None:
        """None where there is no file that can be looked at."""
        try:
            found = path.stat()
        except OSError:
            return None
        return cls(found.st_size, found.st_mtime_ns)


class StandingState:
    """The state of one output file."""

    def __init__(self, directory: Path, output: Path) -> None:
        """directory: of the store."""
        name = hashlib.sha256(str(output.absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        self.path = Layout(directory).runs_directory / f"standing-{name}.npz"

    def run(self) -> StandingRun | None:
        """What was answered last; None where that is not known."""
        content = self._load(lambda file: _parsed_run(file["run"]))
        return content if isinstance(content, StandingRun) else None

    def answers(self) -> StandingAnswers | None:
        """With which answers; None where they are missing or damaged."""
        content = self._load(_parsed_answers)
        return content if isinstance(content, StandingAnswers) else None

    def write(self, run: StandingRun, answers: StandingAnswers) -> None:
        """Replace what there is. Raises NoSpaceError, NotWritableError."""
        arrays = {name: getattr(answers, name) for name in _ARRAYS}
        try:
            self.path.parent.mkdir(exist_ok=True)
            with replacing(self.path) as temporary, temporary.open("wb") as handle:
                np.savez(handle, run=_as_bytes(_plain(run)), texts=_as_bytes(list(answers.texts)), **arrays)
        except OSError as error:
            raise from_os_error(error, self.path) from error

    def _load(self, parse: Any) -> object:
        try:
            with self.path.open("rb") as handle:
                return parse(np.load(handle, allow_pickle=False))
        except _DAMAGE:
            return None


def remove_other_states(directory: Path, outputs: list[Path]) -> None:
    """Remove what was kept for outputs that nobody asks for any more."""
    kept = {StandingState(directory, output).path for output in outputs}
    for path in sorted(Layout(directory).runs_directory.glob("standing-*.npz")):
        if path not in kept:
            remove(path)


def _plain(run: StandingRun) -> dict[str, object]:
    found: dict[str, object] = {field.name: getattr(run, field.name) for field in fields(run)}
    stamp = run.output
    found["output"] = None if stamp is None else [stamp.size_bytes, stamp.mtime_ns]
    return {"format": FORMAT, **found}


def _parsed_run(content: NDArray[np.uint8]) -> StandingRun:
    found = json.loads(content.tobytes())
    if found.pop("format") != FORMAT:
        raise ValueError("another format")
    stamp = found.pop("output")
    return StandingRun(**found, output=None if stamp is None else FileStamp(*stamp))


def _parsed_answers(file: Any) -> StandingAnswers:
    texts = json.loads(file["texts"].tobytes())
    return StandingAnswers(texts=tuple(map(str, texts)), **{name: file[name] for name in _ARRAYS})


def _as_bytes(content: object) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(content).encode(), np.uint8)
