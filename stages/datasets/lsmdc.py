"""LSMDC: one sentence a clip, in files of six columns parted by tabs, without a header and without quoting.

``clip_id, start_aligned, end_aligned, start_extracted, end_extracted, sentence``; the test clips also come as JSON.
"""

from __future__ import annotations

from pathlib import Path

from index_store.lines import read_lines
from stages.datasets.base import Dataset, Listing, SplitKind
from stages.datasets.files import Annotations, read_json, record, text_list

_FILES = {
    "train": ("LSMDC16_annos_training.csv",),
    "val": ("LSMDC16_annos_val.csv",),
    "test": ("LSMDC16_challenge_1000_publictect.csv", "lsmdc_mdata_test.json"),
}
_NUM_COLUMNS = 6
_NOT_TRAINED_ON = {"1012_Unbreakable_00.05.16.065-00.05.21.941": "it is a clip of the test split"}
"""Common loaders skip it by its name wherever it comes; the 1000 test clips are one less then."""


def _read(files: Annotations, split: str) -> Listing:
    path = files.need(f"the sentences of the split {split}", *_FILES[split])
    texts = _from_json(path) if path.suffix.lower() == ".json" else _from_table(path)
    return Listing(list(texts), texts, path, path, left_out=_NOT_TRAINED_ON if split == "train" else {})


def _from_table(path: Path) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for line in read_lines(path):
        cells = line.text.split("\t")  # a sentence may have a lone quotation mark
        if len(cells) != _NUM_COLUMNS:
            raise line.broken(f"{len(cells)} columns", f"{_NUM_COLUMNS}, parted by tabs")
        texts.setdefault(cells[0].strip(), []).append(cells[-1])
    return texts


def _from_json(path: Path) -> dict[str, list[str]]:
    content = record(path, "the file", read_json(path))
    return {name: text_list(path, name, record(path, name, value, "text")["text"]) for name, value in content.items()}


LSMDC = Dataset(
    "lsmdc",
    ("lsmdc", "lsmdc16"),
    {
        "train": SplitKind("single caption"),
        "val": SplitKind("single caption", 7408),
        "test": SplitKind("single caption", 1000),
    },
    "test",
    _read,
)
