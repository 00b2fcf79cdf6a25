"""MSR-VTT: 10,000 clips with 20 captions each, and its three protocols.

1k-A: 1000 test pairs from ``MSRVTT_JSFUSION_test.csv``, training on every caption of the 9000 (or 7010) listed videos.
Full: the official split 6513 / 497 / 2990 in the field ``split`` of ``MSRVTT_data.json``, every caption a query.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from index_store.errors import InputError
from stages.datasets.base import Dataset, Listing, SplitKind
from stages.datasets.files import Annotations, read_columns, read_json, record, text_list

_DATA = ("MSRVTT_data.json", "MSR_VTT.json")
_PARTS = ("train_val_videodatainfo.json", "test_videodatainfo.json")
"""The two files that MSRVTT_data.json is the union of."""
_OFFICIAL = {"train": ("train",), "val": ("validate", "val"), "test": ("test",)}
"""Our name of a split -> what the file calls it."""


def _read_1ka(train_list: str, files: Annotations, split: str) -> Listing:
    if split == "test":
        path = files.need("the test pairs", "MSRVTT_JSFUSION_test.csv")
        texts: dict[str, list[str]] = {}
        for name, sentence in read_columns(path, "video_id", "sentence"):
            texts.setdefault(name, []).append(sentence)
        return Listing(list(texts), texts, path, path)
    list_path = files.need("the training list", train_list)
    names = [name for (name,) in read_columns(list_path, "video_id")]
    texts, _, texts_path = _captions(files)
    return Listing(names, texts, list_path, texts_path)


def _read_full(files: Annotations, split: str) -> Listing:
    texts, splits, path = _captions(files)
    names = [name for name, found in splits.items() if found in _OFFICIAL[split]]
    if not names:
        raise InputError(f"{path} has no video of the split {split}; it has {', '.join(sorted(set(splits.values())))}")
    return Listing(names, texts, path, path)


def _captions(files: Annotations) -> tuple[dict[str, list[str]], dict[str, str], Path]:
    """Captions of each video in the file's order, the split of each, and a file they come from."""
    whole = files.find(*_DATA)
    paths = [whole] if whole else [path for name in _PARTS if (path := files.find(name))]
    if not paths:
        paths = [files.need("the captions", *_DATA, *_PARTS)]
    texts: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    for path in paths:
        content = record(path, "the file", read_json(path), "videos", "sentences")
        for number, video in enumerate(content["videos"]):
            fields = record(path, f"videos[{number}]", video, "video_id", "split")
            splits[fields["video_id"]] = fields["split"]
        for number, sentence in enumerate(content["sentences"]):
            fields = record(path, f"sentences[{number}]", sentence, "video_id", "caption")
            name, caption = text_list(path, f"sentences[{number}]", [fields["video_id"], fields["caption"]])
            texts.setdefault(name, []).append(caption)
    return texts, splits, paths[0]


_FOLDERS = ("msrvtt", "msr-vtt", "msr_vtt")

ONE_K_A = Dataset(
    "msrvtt-1ka",
    _FOLDERS,
    {"train": SplitKind("all captions", 9000), "test": SplitKind("single caption", 1000)},
    "test",
    partial(_read_1ka, "MSRVTT_train.9k.csv"),
)
SEVEN_K = Dataset(
    "msrvtt-7k",
    _FOLDERS,
    {"train": SplitKind("all captions", 7010), "test": SplitKind("single caption", 1000)},
    "test",
    partial(_read_1ka, "MSRVTT_train.7k.csv"),
)
FULL = Dataset(
    "msrvtt-full",
    _FOLDERS,
    {
        "train": SplitKind("all captions", 6513),
        "val": SplitKind("all captions", 497),
        "test": SplitKind("all captions", 2990),
    },
    "test",
    _read_full,
)
