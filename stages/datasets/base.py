"""A benchmark: splits of (video, captions), each with its protocol, and whose videos a store has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from index_store.captions import VideoNames
from index_store.errors import InputError, UsageError
from stages.datasets.files import Annotations

Protocol = Literal["single caption", "all captions", "paragraph"]
"""What is a query: the one caption that a video has, each of its captions, or all of its sentences joined by a space.

With all captions, video to text ranks the videos' groups of captions, each by its best one, as published numbers do.
"""

NUM_NAMED = 5
"""Videos that a message names."""


@dataclass(frozen=True, slots=True)
class SplitKind:
    """What is known of a split before its files are read."""

    protocol: Protocol
    num_videos: int | None = None
    """As published; None where sources differ."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What the annotation files of one split say."""

    names: Sequence[str]
    """The split's videos, as the dataset names them, in the order of its list."""
    texts: Mapping[str, Sequence[str]]
    """Name -> captions in the file's order; those of other splits are not looked at."""
    list_path: Path
    """Where the names come from."""
    texts_path: Path
    other_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Name -> further ones under which people keep the file."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Videos that nobody uses, each with the reason."""


@dataclass(frozen=True, slots=True)
class DescribedVideo:
    """One video of a split."""

    names: tuple[str, ...]
    """The dataset's own name, then others under which people keep the file."""
    captions: tuple[str, ...]
    """At least one; exactly one but for all captions."""


@dataclass(frozen=True, slots=True)
class Split:
    """The videos of one split that have captions."""

    dataset: str
    name: str
    protocol: Protocol
    videos: tuple[DescribedVideo, ...]
    num_published: int | None
    """Videos of the benchmark; None where sources differ."""
    remarks: tuple[str, ...]
    """What the user should know about the annotation files, such as videos without a caption."""

    def __str__(self) -> str:
        """For messages."""
        return f"{self.dataset} {self.name}"


@dataclass(frozen=True, slots=True)
class MatchedSplit:
    """The videos of a split and those of a store."""

    split: Split
    found: tuple[tuple[DescribedVideo, str], ...]
    """Each with its video's key in the store."""
    missing: tuple[str, ...]
    """Names of videos that the store lacks."""
    ambiguous: tuple[tuple[str, tuple[str, ...]], ...]
    """Names that fit several videos of the store, or a video that another name fits too, and those keys."""

    def left_out(self) -> tuple[str, ...]:
        """Sentences about the videos that were not found, naming the first; none where all were."""
        number = f"of the {len(self.split.videos)} videos of {self.split}"
        said = []
        if self.missing:
            said.append(
                f"{len(self.missing)} {number} lack features in the store and were left out: {_some(self.missing)}"
            )
        if self.ambiguous:
            name, keys = self.ambiguous[0]
            said.append(
                f"{len(self.ambiguous)} {number} cannot be told apart in the store and were left out (first: {name} "
                f"may be {' or '.join(keys[:2])})"
            )
        return tuple(said)

    def comparison(self) -> str:
        """One line that says why results are not comparable with published ones; empty where nothing is known of it."""
        found, published = len(self.found), self.split.num_published
        if found == (len(self.split.videos) if published is None else published):
            return ""
        whole = f"all {len(self.split.videos)}" if published is None else str(published)
        return f"results are of {found} videos, published ones of {self.split} of {whole}: they cannot be compared"


@dataclass(frozen=True, slots=True)
class Dataset:
    """How to read one benchmark."""

    name: str
    folders: tuple[str, ...]
    """Names that a subfolder with its files may have."""
    splits: Mapping[str, SplitKind]
    test: str
    """The split that published numbers are of."""
    read_listing: Callable[[Annotations, str], Listing]
    """Its files and a split -> what they say."""
    train: str = "train"

    def read(self, folder: Path, split: str = "") -> Split:
        """A split, by default the one of published numbers, from the files in ``folder`` or a subfolder of it.

        Raises UsageError for a split that the dataset has not, InputError for a file that is missing or broken.
        """
        split = split or self.test
        if split not in self.splits:
            raise UsageError(f"{self.name} has no split {split!r}, it has {', '.join(self.splits)}")
        return _joined(self, split, self.read_listing(Annotations.open(folder, self.name, self.folders), split))


def match_videos(split: Split, keys: Iterable[str]) -> MatchedSplit:
    """Find each video of the split among the keys of a store: by each of its names in turn, as VideoNames does."""
    names = VideoNames(keys)
    found: dict[str, list[DescribedVideo]] = {}
    missing, ambiguous = [], []
    for video in split.videos:
        fitting = next((several for name in video.names if (several := names.find(name))), ())
        if not fitting:
            missing.append(video.names[0])
        elif len(fitting) > 1:
            ambiguous.append((video.names[0], fitting))
        else:
            found.setdefault(fitting[0], []).append(video)
    ambiguous += [(video.names[0], (key,)) for key, several in found.items() if len(several) > 1 for video in several]
    alone = tuple((several[0], key) for key, several in found.items() if len(several) == 1)
    return MatchedSplit(split, alone, tuple(missing), tuple(ambiguous))


def _joined(dataset: Dataset, split: str, listing: Listing) -> Split:
    """Names with their captions; what does not fit together is said."""
    kind = dataset.splits[split]
    videos, silent = [], []
    for name in dict.fromkeys(listing.names):
        if name in listing.left_out:
            continue
        texts = [text for text in map(str.strip, listing.texts.get(name, ())) if text]
        if not texts:
            silent.append(name)
            continue
        if kind.protocol == "paragraph":
            texts = [" ".join(texts)]
        if kind.protocol == "single caption" and len(texts) != 1:
            raise InputError(
                f"{listing.texts_path} has {len(texts)} captions of {name}, expected one; correct the file"
            )
        videos.append(DescribedVideo((name, *listing.other_names.get(name, ())), tuple(texts)))
    if not videos:
        raise InputError(
            f"none of the {len(silent)} videos in {listing.list_path} has a caption in {listing.texts_path}; give the "
            f"files of {dataset.name} {split}"
        )
    remarks = [f"{name} was left out: {why}" for name, why in sorted(listing.left_out.items()) if name in listing.names]
    if silent:
        remarks.append(
            f"{len(silent)} of the {len(silent) + len(videos)} videos in {listing.list_path} have no caption in "
            f"{listing.texts_path} and were left out: {_some(silent)}"
        )
    number = len(videos) + len(silent)
    if kind.num_videos is not None and number != kind.num_videos:
        remarks.append(f"{listing.list_path} names {number} videos, {dataset.name} {split} has {kind.num_videos}")
    return Split(dataset.name, split, kind.protocol, tuple(videos), kind.num_videos, tuple(remarks))


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more."""
    more = f", and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more
