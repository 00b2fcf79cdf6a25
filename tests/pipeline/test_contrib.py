"""What contrib/ has people install, run the way that cron and systemd run it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import click
import pytest

from pipeline.cli import main
from tests.pipeline.conftest import SMALL, Run

ROOT = Path(__file__).resolve().parents[2]
CONTRIB = ROOT / "contrib"


def cron_line() -> str:
    """The one line that is a job, without its times."""
    (line,) = [line for line in (CONTRIB / "crontab").read_text().splitlines() if re.match(r"\d", line)]
    return line.split(None, 5)[5]


def unit(name: str) -> dict[str, str]:
    lines = (CONTRIB / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def program(path: Path) -> Path:
    """An installed ``tbpipe`` of this checkout."""
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom pipeline.cli import main\nmain()\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.slow
def test_a_refresh_as_cron_runs_it(clips: Path, run: Run, tmp_path: Path) -> None:
    videos = shutil.copytree(clips, tmp_path / "vidéos of 漢字")
    store, metrics, log = tmp_path / "store", tmp_path / "tbpipe.prom", tmp_path / "refresh.log"
    assert run("refresh", "--store", store, "--source", videos, *SMALL).code == 0
    (videos / "empty\x1b[2J.mp4").touch()
    next(videos.glob("clip*")).rename(videos / "ünïcode.mp4")
    command = cron_line()
    for place, replacement in (
        ("/opt/tbpipe/bin/tbpipe", program(tmp_path / "tbpipe")),
        ("/srv/tbpipe/store", store),
        ("/var/lib/node_exporter/textfile/tbpipe.prom", metrics),
        ("/var/log/tbpipe/refresh.log", log),
    ):
        assert place in command
        command = command.replace(place, shlex.quote(str(replacement)))
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd="/",
        env={},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        start_new_session=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, b"", b""), log.read_text()
    content = log.read_text("ascii")
    assert all(character.isprintable() for character in content.replace("\n", ""))
    events = [json.loads(line) for line in content.splitlines()]
    assert {"time", "level", "event"} <= set.intersection(*(set(event) for event in events))
    assert [event["exit_code"] for event in events if event["event"] == "finished"] == [3]
    counts = run("info", "--store", store, "--json").json["videos"]
    assert counts == {"ok": 6, "partial": 0, "quarantined": 1, "removed": 1}
    measured = set(re.findall(r"^(tbpipe_\w+)", metrics.read_text(), re.MULTILINE))
    asked_for = set(re.findall(r"tbpipe_\w+", (CONTRIB / "prometheus-alerts.yml").read_text()))
    assert asked_for <= measured
    assert "# TYPE tbpipe_refresh_quarantined gauge" in metrics.read_text()
    assert not (tmp_path / ".tbpipe.prom.tmp").exists()


@pytest.mark.parametrize("command", [cron_line().split(">")[0], unit("tbpipe-refresh.service")["ExecStart"]])
def test_the_commands_parse(command: str) -> None:
    path, name, *arguments = shlex.split(command)
    assert path == "/opt/tbpipe/bin/tbpipe"
    with main.commands[name].make_context(name, arguments, parent=click.Context(main)):
        pass


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd here")
    for name in ("tbpipe-refresh.service", "tbpipe-refresh.timer"):
        text = (CONTRIB / name).read_text().replace("/opt/tbpipe/bin/tbpipe", sys.executable)
        (tmp_path / name).write_text(text.replace("User=tbpipe", "User=root"))
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_COLORS": "0"},
    )
    assert "tbpipe-refresh" not in done.stderr, done.stderr


def test_alerts_and_rotation_name_what_there_is() -> None:
    yaml = pytest.importorskip("yaml")
    (group,) = yaml.safe_load((CONTRIB / "prometheus-alerts.yml").read_text())["groups"]
    for rule in group["rules"]:
        assert {"alert", "expr", "labels", "annotations"} <= set(rule)
        assert set(rule["annotations"]) == {"summary", "description"}
    assert (CONTRIB / "logrotate").read_text().splitlines()[3].split()[0] in cron_line()


def test_the_readme_explains_every_file() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for path in sorted(CONTRIB.iterdir()):
        assert f"(contrib/{path.name})" in readme
