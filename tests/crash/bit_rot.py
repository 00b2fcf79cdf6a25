"""Flips one byte of a store, thousands of times: verify must name it, and repair + extract + index must undo it.

    python -m tests.crash.bit_rot --positions 2000 --seed 0

The store is a real one: rendered clips, extracted by the small model into several shards, with copies, a clip that is
no video, a replaced clip, two index generations and a write-ahead log that is not empty. Each position is tried on a
fresh copy of it, and is drawn so that every file, and every dataset of every shard, gets its share. Then verify
--read-data must name the file; in a row of a shard also every video that has it, and no other; in the catalog the byte.
After repair, extract and index everything must be as before: keys, ids, states, every byte of every feature, and the
newest index.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from index_store.catalog_upkeep import RowOwner
from index_store.repair import repair
from index_store.settings import SamplingSettings, StoreSettings, TokenSettings
from index_store.store import Store
from index_store.verify import verify
from pipeline.plan import plan_extract
from stages.index import build_index
from stages.scan import scan
from stages.synthetic.render import VideoFormat, render_corpus
from tests.index_store.samples import state

if TYPE_CHECKING:
    from stages.decode_pool import DecodePool
    from stages.models.clip import ClipModel

NUM_RENDERED = 8
NOT_WATCHED = ("tbpipe.toml", "writer.lock", "readers.lock", "catalog.sqlite-shm")
"""Settings are guarded by their fingerprint alone, and may be edited; the others hold nothing."""


@dataclass(frozen=True, slots=True)
class Place:
    """One byte of a store."""

    file: str
    """Relative to the store."""
    offset: int
    owners: tuple[RowOwner, ...] = ()
    """The videos whose features it is part of."""

    def flip(self, store: Path, mask: int) -> None:
        """Change its bits."""
        with (store / self.file).open("r+b") as file:
            file.seek(self.offset)
            (byte,) = file.read(1)
            file.seek(self.offset)
            file.write(bytes([byte ^ mask]))


class Extractor:
    """Extract and index, with the model and the decoder processes kept between runs."""

    def __init__(self, model: ClipModel, pool: DecodePool, videos: Path) -> None:
        self.model, self.pool, self.videos = model, pool, videos
        self.settings = StoreSettings(model.settings(), sampling(), TokenSettings.new("float16", "8"))

    def run(self, store: Store) -> None:
        """What is not done is done."""
        from stages.extract import ExtractOptions, extract
        from stages.preprocess import Preprocessor

        with store.writer() as writer:
            with store.snapshot() as snapshot:
                plan = plan_extract(snapshot, scan([self.videos]).files)
            options = ExtractOptions(batch_frames=4, commit_videos=4)
            if plan.tasks:
                extract(
                    plan.tasks, self.pool, self.model, Preprocessor(self.settings.model), self.settings, writer, options
                )
        build_index(store)


def sampling() -> SamplingSettings:
    """Two frames a video are enough to have every dataset."""
    return SamplingSettings("uniform", 2)


def make_store(folder: Path, extractor: Extractor) -> Store:
    """The store that is to be damaged."""
    store = Store.create(folder / "store", extractor.settings)
    extractor.run(store)
    videos = sorted(extractor.videos.iterdir())
    videos[1].write_bytes(videos[0].read_bytes() + b"replaced")  # its old row is in no use, and it is new content
    (extractor.videos / "copy.mp4").write_bytes(videos[2].read_bytes())
    with store.snapshot():  # a reader keeps SQLite from emptying its log: that is sealed, too
        extractor.run(store)
    return store


def make_videos(folder: Path) -> Path:
    """Small clips, and a file that is none."""
    format_ = VideoFormat(seconds=0.5, width=64, height=64)
    render_corpus(folder, seed=5, num_videos=NUM_RENDERED, video_format=format_)
    (folder / "videos" / "bad.mp4").write_bytes(b"\0no video\0" * 100)
    return folder / "videos"


def places(store: Store, rng: random.Random) -> Iterator[Place]:
    """Bytes of the store without end: each file in turn; of shards, each dataset in turn, and any byte."""
    files = sorted(path for path in store.directory.rglob("*") if path.is_file() and path.stat().st_size)
    watched = [str(path.relative_to(store.directory)) for path in files if path.name not in NOT_WATCHED]
    with store.snapshot() as snapshot:
        shards = {f"shards/{shard.name}": shard for shard in snapshot.shards()}
        owners = snapshot.owners([shard.id for shard in shards.values()])
    while True:
        for name in [*watched, *(name for name in watched if name.startswith("catalog.sqlite"))]:
            yield Place(name, rng.randrange((store.directory / name).stat().st_size))
        for name, shard in shards.items():
            for dataset in shard.datasets:
                row = rng.randrange(shard.num_rows)
                offset = dataset.offset + row * dataset.row_bytes + rng.randrange(dataset.row_bytes)
                yield Place(name, offset, tuple(owners[shard.id].get(row, ())))


def require_named(store: Path, place: Place) -> None:
    """Raise AssertionError unless verify says what was flipped."""
    problems = verify(store, read_data=True).problems
    assert problems, f"{place} was not found"
    assert {problem.path for problem in problems} == {place.file}, f"{place} was taken for {problems}"
    if place.owners:
        (problem,) = problems
        expected = ", ".join(f"{owner.key} (id {owner.id})" for owner in place.owners)
        assert problem.record.startswith(f"{expected} in row "), f"{place} was taken for {problem}"
    if place.file.startswith("catalog.sqlite"):
        assert problems[0].record.startswith(f"byte {place.offset} in block "), f"{place} was taken for {problems[0]}"


def everything(store: Store) -> tuple[object, ...]:
    """All that must be as before. Raises AssertionError for damage."""
    found = verify(store.directory, read_data=True)
    assert not found.problems, found.problems
    with store.snapshot() as snapshot:
        newest = snapshot.generation()
        assert newest is not None
        assert newest.commit_number == snapshot.commit_number
        files = tuple((newest.path / name).read_bytes() for name in ("index.faiss", "ids.npy"))
        rows = [(record.key, record.path, record.content_hash, record.checksum) for record in snapshot.videos()]
        return state(snapshot), rows, files


def check(num_positions: int, seed: int) -> Counter[str]:
    """Raise AssertionError for the first position that is not named or not undone; gives what was needed how often."""
    from stages.decode_pool import DecodePool
    from stages.models import load_model

    rng = random.Random(seed)
    needed: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name, DecodePool(sampling(), 1) as pool:
        folder = Path(name)
        model = load_model("tbpipe-small", "", "cpu", "float32", towers="image")
        extractor = Extractor(model, pool, make_videos(folder))
        original = make_store(folder, extractor)
        expected = everything(original)
        for number, place in zip(range(num_positions), places(original, rng), strict=False):
            copy = folder / "copy"
            shutil.copytree(original.directory, copy)
            place.flip(copy, 1 << rng.randrange(8))
            require_named(copy, place)
            report = repair(copy)
            if report.lost:
                needed["extract"] += 1
            elif report.dropped_generations:
                needed["index alone"] += 1
            else:
                needed["repair alone"] += 1
            store = Store.open(copy)
            extractor.run(store) if report.lost else build_index(store)
            assert everything(store) == expected, f"{place} was not undone"
            needed[place.file.split("/")[0]] += 1
            shutil.rmtree(copy)
            if number % 100 == 99:
                print(f"{number + 1} of {num_positions}", file=sys.stderr, flush=True)
    return needed


def main() -> None:
    """Parse, check and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    needed = check(arguments.positions, arguments.seed)
    counts = ", ".join(f"{name} {count}" for name, count in sorted(needed.items()))
    print(f"{arguments.positions} flipped bytes: each was named, and each store is as it was before ({counts})")


if __name__ == "__main__":
    main()
