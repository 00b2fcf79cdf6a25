"""``tbpipe import-weights``: a released checkpoint becomes files that extract and rerank take."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.import_weights import ImportedFiles


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What was written, and how to use it."""

    files: ImportedFiles
    next_commands: tuple[str, ...]
    """What makes the store that the weights are for, and what answers with them."""


def import_weights(source: str, path: Path, output: Path, model: str | None) -> ImportResult:
    """Run ``tbpipe import-weights``. Nothing is written unless the whole checkpoint fits."""
    from stages.import_weights import import_weights as run

    files = run(source, path, output, model or "")
    frames = f" --frames {files.sizes['frames']}" if "frames" in files.sizes else ""
    named = f"--model {shlex.quote(files.model)} --pretrained {shlex.quote(str(files.weights))}"
    head = "" if files.head is None else f" --weights {shlex.quote(str(files.head))}"
    return ImportResult(
        files,
        (
            f"tbpipe extract SOURCE --store STORE {named}{frames}",
            "tbpipe index --store STORE",
            f"tbpipe rerank --store STORE --queries QUERIES --output RUN --method {files.method}{head}",
        ),
    )
