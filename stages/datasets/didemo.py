"""DiDeMo: all descriptions of a video make one paragraph, in the order of the file.

``test_data.json`` has more videos than the split of the retrieval papers: only those in ``test_list.txt`` count. Names
keep the uploader's extension, 27 of the test split end in a bare dot; people's files may have another one, or none.
"""

from __future__ import annotations

from index_store.errors import InputError
from stages.datasets.base import Dataset, Listing, SplitKind
from stages.datasets.files import Annotations, read_json, read_names, record, text_list


def _read(files: Annotations, split: str) -> Listing:
    list_path = files.need(f"the list of {split} videos", f"{split}_list.txt")
    texts_path = files.need(f"the descriptions of the split {split}", f"{split}_data.json")
    content = read_json(texts_path)
    if not isinstance(content, list):
        raise InputError(f"{texts_path} holds no list, expected one of objects with video and description")
    by_stem: dict[str, list[str]] = {}
    for number, found in enumerate(content):
        where = f"record {number}"
        fields = record(texts_path, where, found, "video", "description")
        name, description = text_list(texts_path, where, [fields["video"], fields["description"]])
        by_stem.setdefault(_stem(name), []).append(description)
    names = read_names(list_path)
    texts = {name: by_stem.get(_stem(name), []) for name in names}
    return Listing(names, texts, list_path, texts_path, {name: (_stem(name),) for name in names})


def _stem(name: str) -> str:
    """Without the extension, also where that is a bare dot."""
    return name.rpartition(".")[0] or name


DIDEMO = Dataset(
    "didemo",
    ("didemo",),
    {
        "train": SplitKind("paragraph", 8392),
        "val": SplitKind("paragraph", 1065),
        "test": SplitKind("paragraph", 1004),
    },
    "test",
    _read,
)
