"""VATEX: each of ten English captions is a query; the 3000 official validation clips are cut into 1500 and 1500.

``test`` is the usual half; ``test1k5_sec`` is another choice of 1500, which some published numbers are of.
"""

from __future__ import annotations

from pathlib import Path

from index_store.errors import InputError
from stages.datasets.base import Dataset, Listing, SplitKind
from stages.datasets.files import Annotations, read_json, read_json_lines, read_names, record, text_list

_OFFICIAL = ("vatex_training_v1.0.json", "vatex_validation_v1.0.json")
"""The authors' files: ``[{"videoID", "enCap", "chCap"}]``."""
_LINES = "vatex_en_c_val_release.jsonl"
"""The English validation captions once more: ``{"vid_name", "descs": [{"desc"}]}`` a line."""


def _read(files: Annotations, split: str) -> Listing:
    list_path = files.need(f"the list of the split {split}", f"{split}_list.txt")
    names = read_names(list_path)
    paths = [path for name in (*_OFFICIAL, _LINES) if (path := files.find(name))]
    if not paths:
        paths = [files.need("the captions", *_OFFICIAL, _LINES)]
    texts: dict[str, list[str]] = {}
    best, found = paths[0], 0
    for path in paths:
        read = _from_lines(path) if path.suffix.lower() == ".jsonl" else _official(path)
        number = sum(name in read for name in names)
        if number > found:
            best, found = path, number
        texts = {**read, **texts}  # where several have a clip, the authors' own file counts
    return Listing(names, texts, list_path, best, {name: _unpadded(name) for name in names})


def _official(path: Path) -> dict[str, list[str]]:
    content = read_json(path)
    if not isinstance(content, list):
        raise InputError(f"{path} holds no list, expected one of objects with videoID and enCap")
    texts = {}
    for number, value in enumerate(content):
        fields = record(path, f"record {number}", value, "videoID", "enCap")
        texts[str(fields["videoID"])] = text_list(path, str(fields["videoID"]), fields["enCap"])
    return texts


def _from_lines(path: Path) -> dict[str, list[str]]:
    texts = {}
    for line, value in read_json_lines(path):
        where = f"line {line.number}"
        fields = record(path, where, value, "vid_name", "descs")
        descriptions = fields["descs"] if isinstance(fields["descs"], list) else [fields["descs"]]
        said = [record(path, where, description, "desc")["desc"] for description in descriptions]
        texts[str(fields["vid_name"])] = text_list(path, where, said)
    return texts


def _unpadded(name: str) -> tuple[str, ...]:
    """``abc_000248_000258`` is also kept as ``abc_248_258``."""
    video, *times = name.rsplit("_", 2)
    return ("_".join([video, *(str(int(time)) for time in times)]),) if all(map(str.isdecimal, times)) else ()


VATEX = Dataset(
    "vatex",
    ("vatex",),
    {
        "train": SplitKind("all captions", 25991),
        "val": SplitKind("all captions", 1500),
        "test": SplitKind("all captions", 1500),
        "test1k5_sec": SplitKind("all captions", 1500),
    },
    "test",
    _read,
)
