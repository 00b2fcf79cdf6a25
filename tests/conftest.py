"""Markers, and fixtures that more than one test file uses."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Two test processes share the cores; read by torch when it is imported, and by every process that tests start."""
NUM_SLOW = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run tests marked slow or crash")
    parser.addoption("--need-gpu", action="store_true", help="fail instead of skipping where no GPU is found")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out unless they are asked for: skipping so many, one by one, takes seconds itself."""
    if config.getoption("--run-slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow") or item.get_closest_marker("crash")]
    config.hook.pytest_deselected(items=slow)
    config.stash[NUM_SLOW] = len(slow)
    left_out = set(slow)
    items[:] = [item for item in items if item not in left_out]


def pytest_report_collectionfinish(config: pytest.Config) -> str:
    number = config.stash.get(NUM_SLOW, 0)
    return f"{number} slow tests are left out (run them with --run-slow)" if number else ""


def pytest_collection_finish() -> None:
    """What is there by now stays to the end: a search for garbage need not look through it each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries complain about what is never freed


@pytest.fixture(autouse=True)
def _gpu(request: pytest.FixtureRequest) -> None:
    """Skip a test marked gpu where there is none, unless the run says there must be one."""
    if request.node.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        if request.config.getoption("--need-gpu"):
            pytest.fail("--need-gpu was given, and torch finds no GPU")
        pytest.skip("no GPU on this machine")


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hashes of weight files are remembered for this run, and not in the home of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TBPIPE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def assets() -> Path:
    """Real and hostile videos, kept beside the checkout; tests that need them skip without them."""
    folder = SHARED / "assets"
    if not folder.is_dir():
        pytest.skip(f"real videos not found at {folder}")
    return folder
