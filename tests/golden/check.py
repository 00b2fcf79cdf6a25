"""``python -m tests.golden.check --golden DIR``: a line per array with its largest error; exit code 1 on any miss.

DIR holds ``NAME.npz`` files of inputs, weights and outputs of the authors' own code, of any size; what their ``out.*``
arrays hold, ``tests/golden/NAME.py`` computes with our code.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SYSTEMS = (
    "clip4clip",
    "clip_openai",
    "clipvip",
    "drl_wti",
    "eercf",
    "losses",
    "metrics",
    "optim",
    "ts2net",
    "ucofia",
    "xclip",
)

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """|ours - theirs| <= atol + rtol |theirs| + of_largest max |theirs|, entry by entry; 0, 0, 0: equal."""

    atol: float
    rtol: float = 0.0
    of_largest: float = 0.0


LOGITS = Tolerance(atol=2e-4, rtol=1e-5)
FEATURES = Tolerance(atol=2e-5)
GRADIENTS = Tolerance(atol=1e-12, of_largest=1e-4)
EXACT = Tolerance(atol=0.0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one array compares."""

    system: str
    array: str
    error: float
    """Largest absolute difference; inf where shapes differ or only one of two is finite."""
    tolerance: Tolerance | None
    """None: the array depends on what its authors left undefined, and is only shown."""
    fits: bool


def compare(system: str, array: str, ours: NDArray[Any], theirs: NDArray[Any], tolerance: Tolerance | None) -> Outcome:
    """One array of ours with one of theirs."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        return Outcome(system, array, np.inf, tolerance, fits=tolerance is None)
    with np.errstate(invalid="ignore"):
        same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
        error = np.where(same, 0.0, np.abs(ours - theirs))
    error = np.where(np.isnan(error), np.inf, error)
    finite = np.abs(np.where(np.isfinite(theirs), theirs, 0.0))
    allowed = np.zeros_like(error)
    if tolerance is not None:
        allowed = tolerance.atol + tolerance.rtol * finite + tolerance.of_largest * finite.max(initial=0.0)
    fits = tolerance is None or bool((error <= allowed).all())
    return Outcome(system, array, float(error.max(initial=0.0)), tolerance, fits)


def check(golden: Path, system: str) -> Iterator[Outcome]:
    """Every ``out.*`` array of a system's file. An array that our module does not compute is a miss."""
    with np.load(golden / f"{system}.npz", allow_pickle=False) as file:
        arrays: Arrays = {name: file[name] for name in file.files}
    module = importlib.import_module(f"tests.golden.{system}")
    outputs: Callable[[Arrays], dict[str, Any]] = module.outputs
    tolerance_of: Callable[[str], Tolerance | None] = module.tolerance_of
    ours = outputs(arrays)
    for name in (name for name in arrays if name.startswith("out.")):
        found = ours.get(name, np.empty(0) if arrays[name].shape != (0,) else np.empty(1))
        yield compare(system, name, _numpy(found), arrays[name], tolerance_of(name))


def _numpy(value: Any) -> NDArray[Any]:
    """Of a tensor, an array or a number."""
    return np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden.check", description=__doc__)
    parser.add_argument("--golden", type=Path, required=True, help="folder with NAME.npz files")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="some of %(default)s")
    options = parser.parse_args(arguments)
    missed = 0
    for system in options.systems.split(","):
        if not (options.golden / f"{system}.npz").is_file():
            print(f"MISS  {system}: no file {options.golden / system}.npz")
            missed += 1
            continue
        for outcome in check(options.golden, system):
            word = ("ok" if outcome.fits else "MISS") if outcome.tolerance else "shown"
            print(f"{word:5} {system:12} {outcome.array:50} {outcome.error:.1e}")
            missed += not outcome.fits
    print(f"{missed} missed" if missed else "every array agrees")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
