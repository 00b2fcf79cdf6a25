"""What a run tells while it runs, on stderr: lines for people, or one JSON object a line for programs."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

LogFormat = Literal["text", "json"]
Level = Literal["info", "warning", "error"]


class Log:
    """Writes events. Control characters of file names never reach the terminal."""

    def __init__(self, log_format: LogFormat = "text", quiet: bool = False) -> None:
        self.is_json = log_format == "json"
        self._quiet = quiet

    def info(self, event: str, message: str, **fields: object) -> None:
        """Something went as it should."""
        if not self._quiet:
            self._write("info", event, message, fields)

    def warning(self, event: str, message: str, **fields: object) -> None:
        """Something that somebody should look at."""
        self._write("warning", event, message, fields)

    def error(self, event: str, message: str, **fields: object) -> None:
        """The run ends here."""
        self._write("error", event, message, fields)

    def _write(self, level: Level, event: str, message: str, fields: dict[str, object]) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if self.is_json:
            told = {name: _text(value) if isinstance(value, str | Path) else value for name, value in fields.items()}
            record = {"time": now, "level": level, "event": event, "message": _text(message), **told}
            line = json.dumps(record, ensure_ascii=True, default=str)
        else:
            from pipeline.printing import printable

            line = f"{now[:19]}Z {'' if level == 'info' else level + ': '}{printable(message)}"
        print(line, file=sys.stderr, flush=True)


def _text(value: str | Path) -> str:
    """Text that every reader of JSON takes: bytes of a name that are not UTF-8 become escapes."""
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
