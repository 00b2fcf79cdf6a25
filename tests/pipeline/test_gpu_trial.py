from __future__ import annotations

import json

import pytest
import torch

from pipeline.jobs import gpu_trial
from pipeline.jobs.gpu_trial import Trial, told, try_gpus


def test_what_the_child_found_is_read_from_its_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU; the next test tries it")
    gpu_trial.main()
    output = capsys.readouterr().out
    assert json.loads(output)["num_gpus"] == 0
    assert told(0, f"a library says something\n{output}", "a warning") == Trial(0, "FAISS finds no GPU")


@pytest.mark.parametrize(
    ("status", "errors", "expected"),
    [
        (-11, "", "was ended by SIGSEGV: it said nothing"),
        (-6, "line 1\nFaiss assertion failed\n", "was ended by SIGABRT: Faiss assertion failed"),
        (1, "Traceback\nRuntimeError: CUDA error", "ended with exit status 1: RuntimeError: CUDA error"),
        (0, "", "ended with exit status 0: it said nothing"),
    ],
)
def test_a_child_that_says_nothing_has_crashed(status: int, errors: str, expected: str) -> None:
    assert told(status, "", errors) == Trial(crash=expected)


@pytest.mark.gpu
def test_torch_and_faiss_work_on_the_gpus_in_one_process() -> None:
    assert try_gpus() == Trial(torch.cuda.device_count())
