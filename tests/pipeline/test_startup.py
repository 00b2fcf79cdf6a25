"""What a search loads: importing what it does not need took longer than the search."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import atexit, sys
from pipeline.cli import main

class Apart:
    def __del__(self): print("taken apart", file=sys.__stderr__, flush=True)

kept = Apart()
heavy = {"open_clip", "torchvision", "timm", "torch._dynamo", "sympy", "huggingface_hub", "ftfy", "regex", "h5py"}
atexit.register(lambda: print(heavy & set(sys.modules), file=sys.stderr))
main()
"""


@pytest.mark.slow
def test_a_search_loads_torch_and_little_else_and_ends_at_once(finished_store: Path) -> None:
    search = ["search", "a red circle", "--store", str(finished_store), "--device", "cpu", "--json"]
    arguments = [sys.executable, "-c", CODE, *search]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stderr == "set()\n"
    assert json.loads(done.stdout)["hits"]
