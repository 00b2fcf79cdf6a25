"""What a command costs in a process of its own: CPU seconds and peak memory, the start of Python included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

TBPIPE = (sys.executable, "-m", "pipeline")

_LAUNCHER = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A process counts the memory of the one that it was forked from: a small one starts it."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one process."""

    cpu_seconds: float
    peak_bytes: int
    output: str

    def __lt__(self, other: Cost) -> bool:
        """By CPU seconds."""
        return self.cpu_seconds < other.cpu_seconds


def cost_of(command: Sequence[str]) -> Cost:
    """Run a command to its end. Raises RuntimeError unless it ends well."""
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    launched = [sys.executable, "-c", _LAUNCHER, *command]
    done = subprocess.run(launched, capture_output=True, text=True, env=compiled, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    *output, usage = done.stdout.splitlines()
    cpu_seconds, peak = json.loads(usage)
    return Cost(cpu_seconds, peak * (1 if sys.platform == "darwin" else 1024), "\n".join(output))
