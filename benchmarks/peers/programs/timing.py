"""What the programs share that time themselves; NumPy is all that every environment has."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

_Found = TypeVar("_Found")


def read_job() -> dict[str, Any]:
    """The job, whose path is the argument."""
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return job


def least(repetitions: int, action: Callable[[], _Found]) -> tuple[float, _Found]:
    """The least CPU seconds of this process in so many repetitions, and what came out."""
    times = []
    for _ in range(repetitions):
        before = time.process_time()
        found = action()
        times.append(time.process_time() - before)
    return min(times), found


def tell(job: dict[str, Any], **seconds: float) -> None:
    """Write the times."""
    Path(job["output"], "found.json").write_text(json.dumps(seconds), encoding="utf-8")
