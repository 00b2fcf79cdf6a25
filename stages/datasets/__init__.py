"""The benchmarks of text-video retrieval, read from the annotation files that people have.

| name        | file           | queries of the test split                     | answers |
|-------------|----------------|-----------------------------------------------|---------|
| msrvtt-1ka  | msrvtt.py      | one caption a video                           | 1000    |
| msrvtt-7k   | msrvtt.py      | the same; trains on 7010 videos, not on 9000  | 1000    |
| msrvtt-full | msrvtt.py      | every caption                                 | 2990    |
| didemo      | didemo.py      | the descriptions of a video as one paragraph  | 1004    |
| activitynet | activitynet.py | the sentences of a video as one paragraph     | 4917    |
| vatex       | vatex.py       | every English caption                         | 1500    |
| msvd        | msvd.py        | every caption                                 | 670     |
| lsmdc       | lsmdc.py       | one sentence a clip                           | 1000    |

base.py has what they share, files.py finds and reads their files, plain_pickle.py reads the one that is a pickle.
"""

from __future__ import annotations

from index_store.errors import UsageError
from stages.datasets import activitynet, didemo, lsmdc, msrvtt, msvd, vatex
from stages.datasets.base import Dataset

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        msrvtt.ONE_K_A,
        msrvtt.SEVEN_K,
        msrvtt.FULL,
        didemo.DIDEMO,
        activitynet.ACTIVITYNET,
        vatex.VATEX,
        msvd.MSVD,
        lsmdc.LSMDC,
    )
}


def find_dataset(name: str) -> Dataset:
    """The benchmark of that name. Raises UsageError for one that does not exist."""
    if name not in DATASETS:
        raise UsageError(f"--dataset {name!r} is not one of {', '.join(DATASETS)}")
    return DATASETS[name]
