"""What a program of a peer is told, and what it found: JSON and NumPy files in one folder.

The programs run in other environments, so they cannot import this; they read ``job.json`` by themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_store.errors import InputError

NAME, FOUND = "job.json", "found.json"


def write(folder: Path, fields: Mapping[str, Any]) -> Path:
    """Write ``fields`` (paths become strings) as the job of the programs that run in ``folder``, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    path.write_text(json.dumps(dict(fields), default=str), encoding="utf-8")
    return path


def array(folder: Path, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """``name``.npy as a program has written it. Raises InputError for one that is missing or has another shape."""
    path = folder / f"{name}.npy"
    try:
        found: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"the program wrote no {path}: {error}") from error
    if found.shape != shape:
        raise InputError(f"the program wrote {path} with the shape {list(found.shape)}, expected {list(shape)}")
    return found


def seconds(folder: Path) -> dict[str, float]:
    """CPU seconds of the parts that a program has timed itself. Raises InputError."""
    path = folder / FOUND
    try:
        return {name: float(value) for name, value in json.loads(path.read_text("utf-8")).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"the program wrote no times to {path}: {error}") from error
