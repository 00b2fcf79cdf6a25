"""What a refresh says in its log and in its metrics file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipeline.log import Log
from pipeline.metrics_file import Metric, write_metrics


def test_a_json_log_has_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log("json")
    log.info("removed", "a\nb is gone", key="a\nb\x1b[31m", path=Path("/x"), number=3)
    log.warning("odd", "\udcff")
    out, err = capsys.readouterr()
    first, second = (json.loads(line) for line in err.splitlines())
    assert out == ""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        "level": "info",
        "event": "removed",
        "message": "a\nb is gone",
        "key": "a\nb\x1b[31m",
        "path": "/x",
        "number": 3,
    }
    assert (second["level"], second["message"]) == ("warning", "\\udcff")
    assert "\x1b" not in err


def test_a_text_log_cannot_steer_the_terminal_and_is_silent_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    Log("text").info("removed", "a\n\x1b[31m is gone")
    Log("text", quiet=True).info("removed", "nothing")
    Log("text", quiet=True).warning("odd", "something")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("Z a\\n\\x1b[31m is gone")
    assert second.endswith("Z warning: something")


def test_metrics_are_replaced_whole_and_keep_the_last_success(tmp_path: Path) -> None:
    path = tmp_path / "tbpipe.prom"
    write_metrics(path, [Metric("tbpipe_videos", "Videos.", {"ok": 3, 'o"\n': 1}, "status")], 1e9)
    assert path.read_text().splitlines() == [
        "# HELP tbpipe_videos Videos.",
        "# TYPE tbpipe_videos gauge",
        'tbpipe_videos{status="ok"} 3',
        'tbpipe_videos{status="o\\"\\n"} 1',
        "# HELP tbpipe_refresh_last_success_timestamp_seconds End of the last refresh that was done.",
        "# TYPE tbpipe_refresh_last_success_timestamp_seconds gauge",
        "tbpipe_refresh_last_success_timestamp_seconds 1000000000",
    ]
    write_metrics(path, [Metric("tbpipe_refresh_exit_code", "Code.", 14)], None)
    assert "tbpipe_refresh_exit_code 14\n" in path.read_text()
    assert "tbpipe_refresh_last_success_timestamp_seconds 1000000000\n" in path.read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["tbpipe.prom"]
