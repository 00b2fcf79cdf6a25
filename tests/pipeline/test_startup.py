"""What a search loads: importing what it does not need took longer than the search."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
from pipeline.cli import main
try: main(["search", "a red circle", "--store", sys.argv[1], "--device", "cpu", "--json"])
except SystemExit as leave: assert leave.code == 0
heavy = {"open_clip", "torchvision", "timm", "torch._dynamo", "sympy", "huggingface_hub", "ftfy", "regex", "h5py"}
print(heavy & set(sys.modules), file=sys.stderr)
"""


@pytest.mark.slow
def test_a_search_loads_torch_and_faiss_and_little_else(finished_store: Path) -> None:
    arguments = [sys.executable, "-c", CODE, str(finished_store)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stderr == "set()\n"
