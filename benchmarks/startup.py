"""Start-up: CPU seconds of ``tbpipe search`` on a warm store against importing torch and loading the model alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.corpus import random_store, random_weights
from benchmarks.measure import Ratio, best_of, cpu_seconds
from index_store.settings import SamplingSettings, StoreSettings, TokenSettings
from stages.index import build_index
from stages.models import load_model
from stages.models.remembered import SETTLED_SECONDS

NUM_VIDEOS = 100
LIMIT = 1.2
_TORCH = "import os, torch; os._exit(0)"
_MODEL = """
import os, sys, torch
from pathlib import Path
from index_store.store import Store
from stages.models import load_text_side
load_text_side(Store.open(Path(sys.argv[1])).settings.model, "cpu")
os._exit(0)
"""
"""Without the end of a process, in which torch takes itself apart."""


def run(models: tuple[str, ...] = ("tbpipe-small", "ViT-B-32"), repetitions: int = 3) -> Iterator[Ratio]:
    """A search in a process of its own, with each model; nothing of the weights but their shape matters."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**os.environ, "TBPIPE_CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled
        for model in models:
            weights = "" if model == "tbpipe-small" else str(random_weights(folder / "weights.safetensors", model))
            yield _measure(model, _store(folder / model, model, weights), environment, repetitions)


def _measure(model: str, store: Path, environment: dict[str, str], repetitions: int) -> Ratio:
    def python(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)

    def search() -> None:
        python("-m", "pipeline", "search", "a red circle", "--store", str(store), "--device", "cpu")

    time.sleep(SETTLED_SECONDS)  # the hash of a file that is newer is not remembered
    search()
    seconds, limit, torch = best_of(
        repetitions,
        search,
        lambda: python("-c", _MODEL, str(store)),
        lambda: python("-c", _TORCH),
        clock=cpu_seconds,
    )
    detail = f"search {seconds:.2f}, torch and text tower {limit:.2f}, torch alone {torch:.2f} CPU s"
    name = f"search on a warm store, {model}, CPU seconds / (import torch + load the model)"
    return Ratio(name, seconds / limit, LIMIT, at_most=True, detail=detail)


def _store(directory: Path, model: str, weights: str) -> Path:
    """A store of random features that says it was made with this model."""
    pinned = load_model(model, weights, "cpu", towers="image").settings()
    shape = StoreSettings(pinned, SamplingSettings("uniform", 12), TokenSettings("float16", "all"))
    build_index(random_store(directory, NUM_VIDEOS, shape))
    return directory
