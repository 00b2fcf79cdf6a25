"""One virtual environment for each peer: its own packages in its own versions, and the torch of this one.

torch is lent, through a .pth file, because a fair comparison has the same torch on both sides, and because its wheels
are about 7 GB for each environment.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks.peers.plan import Peer
from benchmarks.peers.processes import last_line
from index_store.errors import TbpipeError

_MARK = "installed.json"
_PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input")
_INSTALL_SECONDS = 1800


class NotInstallableError(TbpipeError):
    """A peer cannot be installed on this machine; the message says why."""


def python_of(peer: Peer, work: Path) -> Path:
    """The interpreter that runs this peer; its environment is made unless it is there. Raises NotInstallableError."""
    if peer.obstacle:
        raise NotInstallableError(peer.obstacle)
    if not peer.packages and not peer.packages_alone:
        return Path(sys.executable)
    folder = work / "environments" / peer.environment
    python = folder / "bin" / "python"
    wanted = json.dumps([sys.version_info[:2], sys.executable, peer.packages, peer.packages_alone, peer.borrows])
    mark = folder / _MARK
    if mark.exists() and mark.read_text("utf-8") == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.parent / f"{peer.environment}.log"
    with log.open("wb") as output:
        _run([sys.executable, "-m", "venv", str(folder)], output, log)
        if peer.packages_alone:
            _run([str(python), *_PIP, "--no-deps", *peer.packages_alone], output, log)
        if peer.packages:
            _run([str(python), *_PIP, *peer.packages], output, log)
    if peer.borrows:
        _lend(python)
    mark.write_text(wanted, "utf-8")
    return python


def versions(python: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Package -> version as ``python`` sees it, of those that it has."""
    code = (
        "import sys, json; from importlib.metadata import PackageNotFoundError, version\n"
        "found = {}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = version(name)\n"
        "    except PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([str(python), "-c", code, *names], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _run(command: list[str], output: object, log: Path) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,  # type: ignore[call-overload]
            stderr=subprocess.STDOUT,
            timeout=_INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NotInstallableError(f"installing took more than {_INSTALL_SECONDS} s; see {log}") from error
    if done.returncode:
        raise NotInstallableError(f"{last_line(log)} (all of it is in {log})")


def _lend(python: Path) -> None:
    """Let an environment see the packages of this one, behind its own."""
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    paths = dict.fromkeys([sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]])
    (Path(done.stdout.strip()) / "lent.pth").write_text("".join(f"{path}\n" for path in paths), "utf-8")
