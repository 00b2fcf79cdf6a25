"""ActivityNet Captions: all sentences of a video make one paragraph; published numbers are of val_1.

``{"v_<id>": {"duration", "timestamps", "sentences"}}``. Lists, captions and files come with or without ``v_``.
"""

from __future__ import annotations

from collections.abc import Iterable

from stages.datasets.base import Dataset, Listing, SplitKind
from stages.datasets.files import Annotations, read_json, read_names, record, text_list

_PREFIX = "v_"


def _read(files: Annotations, split: str) -> Listing:
    texts_path = files.need(f"the captions of the split {split}", f"{split}.json")
    content = record(texts_path, "the file", read_json(texts_path))
    bare = _bare(content)
    texts = {
        _PREFIX + bare[name]: text_list(texts_path, name, record(texts_path, name, value, "sentences")["sentences"])
        for name, value in content.items()
    }
    list_path = files.find(f"{split}_list.txt")
    listed = read_names(list_path) if list_path else list(content)
    names = [_PREFIX + name for name in _bare(listed).values()]
    others = {name: (name.removeprefix(_PREFIX),) for name in names}
    return Listing(names, texts, list_path or texts_path, texts_path, others)


def _bare(names: Iterable[str]) -> dict[str, str]:
    """Each name and the one without ``v_``; as they are where not all have it, because an id may begin so."""
    found = list(names)
    has_prefix = all(name.startswith(_PREFIX) for name in found)
    return {name: name.removeprefix(_PREFIX) if has_prefix else name for name in found}


ACTIVITYNET = Dataset(
    "activitynet",
    ("activitynet", "activitynet-captions", "activitynet_captions", "anet"),
    {
        "train": SplitKind("paragraph", 10009),
        "val_1": SplitKind("paragraph", 4917),
        "val_2": SplitKind("paragraph", 4885),
    },
    "val_1",
    _read,
)
