"""torch and FAISS on the GPUs of this machine, in one process: tried in a child, which may crash.

The two come with CUDA libraries of their own, and not always of the same version. Both versions are loaded side by side
under different names, and each library binds to its own; whether they also work side by side, only a GPU can tell.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata

_BOOT = "import sys; sys.path[:] = sys.argv[1:]; from pipeline.jobs.gpu_trial import main; main()"
_SECONDS = 300
_SIDE = 256


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of it."""

    num_gpus: int = 0
    """GPUs that torch has used."""
    faiss_reason: str = ""
    """Why FAISS does not search on them; empty when it does."""
    crash: str = ""
    """How the child ended, when it did not end by itself."""


def try_gpus() -> Trial:
    """Run the trial in a child process."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _BOOT, *sys.path], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Trial(crash=f"did not answer within {_SECONDS} s")
    return told(done.returncode, done.stdout, done.stderr)


def told(status: int, output: str, errors: str) -> Trial:
    """The trial that a child with this exit status and output has made."""
    lines = output.strip().splitlines()
    if status == 0 and lines:
        return Trial(**json.loads(lines[-1]))
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
    last = (errors.strip().splitlines() or ["it said nothing"])[-1]
    return Trial(crash=f"{how}: {last}")


def versions() -> str:
    """The CUDA versions that FAISS and torch were built for, as far as they say so."""
    import torch

    return f"FAISS is built for CUDA {_faiss_cuda() or 'unknown'}, torch for CUDA {torch.version.cuda or 'none'}"


def _faiss_cuda() -> str:
    try:
        needed = metadata.requires("faiss-gpu") or []
    except metadata.PackageNotFoundError:
        return "none"
    found = re.search(r"-cu(\d+)\b", " ".join(needed))
    return found[1] if found else ""


def main() -> None:
    """The child: products on every GPU before and after a search on all of them; prints a Trial."""
    import torch

    gpus = list(range(torch.cuda.device_count()))
    _multiply(gpus)
    reason = _search(gpus)
    _multiply(gpus)
    print(json.dumps(asdict(Trial(len(gpus), reason))))


def _multiply(gpus: Sequence[int]) -> None:
    import torch

    for gpu in gpus:
        ones = torch.ones(_SIDE, _SIDE, device=f"cuda:{gpu}", dtype=torch.float16)
        if (ones @ ones).float().mean().item() != _SIDE:
            raise ArithmeticError(f"{torch.cuda.get_device_name(gpu)} multiplies wrong")


def _search(gpus: Sequence[int]) -> str:
    """Why FAISS cannot search on these GPUs; empty when it finds there what it finds on the CPU."""
    import numpy as np

    from index_store.vectors import VectorIndex

    vectors = np.random.default_rng(0).standard_normal((4096, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = VectorIndex.build(lambda: [(np.arange(len(vectors)), vectors)], *vectors.shape)
    expected = index.search(vectors[:100], 20)
    for float16 in (False, True):
        reason = index.copy_to_gpus(gpus, float16)
        if reason:
            return reason
        found = index.search(vectors[:100], 20)
        if (found.ids != expected.ids).any() or (found.scores != expected.scores).any():
            return "FAISS finds other vectors on the GPU than on the CPU"
    return ""
