"""The log of a training run: one JSON object a line, readable while it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from index_store.atomic import write_bytes
from index_store.errors import from_os_error


class Journal:
    """Lines ``{"event": ..., "step": ..., ...}`` in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut(self, step: int) -> None:
        """Forget what was written after this step (-1: everything): a resumed run writes it again."""
        kept = [line for line in self.read() if line["step"] <= step]
        try:
            write_bytes(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        except OSError as error:
            raise from_os_error(error, self.path) from error

    def add(self, event: str, step: int, **values: Any) -> None:
        """Write one line."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
        except OSError as error:
            raise from_os_error(error, self.path) from error

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; the last one may have been cut by a kill."""
        if not self.path.exists():
            return []
        lines = self.path.read_text("utf-8", errors="replace").splitlines()
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return found
