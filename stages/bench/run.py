"""All of it, one step after the other."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing

import torch

from index_store.errors import NoSpaceError, TbpipeError, from_os_error
from stages.bench.growth import Setting, growth_steps
from stages.bench.machine import ScratchFile, compute_yardsticks, describe, hashing, watch_for
from stages.bench.material import Material
from stages.bench.measure import (
    Stage,
    Yardstick,
    knows_living_children,
    limits_met,
    measure_limits,
    measure_stage,
)
from stages.bench.methods import Reranking
from stages.bench.recall import Reading, broad_view, broad_view_by_faiss, faiss_yardstick, index_stage
from stages.bench.records import BenchReport, Growth, Limit, Skipped, StageRow
from stages.bench.towers import image_tower, image_tower_yardstick, text_tower
from stages.bench.videos import decode_stage, decode_yardstick, decoder_yardstick, extract_stage
from stages.decode_pool import DecodePool
from stages.extract import ExtractOptions

_BATCH_FRAMES = {"cpu": 32, "cuda": 256}
_NUM_QUERIES, _NUM_RESULTS = 100, 50
"""Of the broad view; results as many as rerank asks for unless told otherwise."""
_FEW = 2
"""Repetitions of what takes long."""
_SPARE = 1.1
"""Free space that is wanted, in units of what will be written."""
_PIECE_BYTES = 1 << 19
"""About a video's tokens."""

Found = Limit | StageRow | Skipped | Growth
Step = tuple[str, Callable[[], Sequence[Found]]]


class Bench:
    """Everything that is measured on some material."""

    def __init__(self, material: Material) -> None:
        """Raises NoSpaceError where the material would not fit on the disk."""
        self._material = material
        self._device = material.device
        self._repetitions = material.scale.repetitions
        self._watch = watch_for(self._device)
        self._yardsticks: dict[str, Yardstick] = {}
        free, needed = shutil.disk_usage(material.folder).free, _SPARE * material.bytes_to_write
        if free < needed:
            raise NoSpaceError(
                f"{material.folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are wanted; name another "
                "folder with --directory, or use --quick"
            )

    def steps(self) -> list[Step]:
        """What is done, by name, in this order; each gives what it found. An error costs its own step only.

        But the first, which the others need: that raises StoreError where the disk does not serve.
        """
        options = self._material.options
        steps: list[Step] = [
            ("decode", self._decode),
            ("image tower", self._image_tower),
            ("extract", self._extract),
            ("text tower", self._text_tower),
            ("index", self._index),
            ("broad view", self._broad_view),
            ("reading", self._reading),
            *((f"rerank, {name}", functools.partial(self._rerank, name)) for name in options.methods),
        ]
        if options.growth:
            steps += [(name, functools.partial(_one, run)) for name, run in self._growth()]
        return [("limits", self._limits), *((name, functools.partial(_guarded, name, run)) for name, run in steps)]

    def report(self, found: Sequence[Found]) -> BenchReport:
        """What the steps gave, by kind."""
        return BenchReport(
            machine=describe(self._device),
            about=self._material.about,
            limits=tuple(item for item in found if isinstance(item, Limit)),
            stages=tuple(item for item in found if isinstance(item, StageRow)),
            skipped=tuple(item for item in found if isinstance(item, Skipped)),
            growth=tuple(item for item in found if isinstance(item, Growth)),
        )

    def _limits(self) -> Sequence[Found]:
        material, scale = self._material, self._material.scale
        path = material.folder / "scratch"
        try:
            scratch = material.keep(closing(ScratchFile(path, scale.disk_bytes, _PIECE_BYTES)))
        except OSError as error:
            raise from_os_error(error, path) from error
        yardsticks = [*compute_yardsticks(self._device, _dtypes(self._device)), hashing(), *scratch.yardsticks()]
        self._yardsticks |= {yardstick.name: yardstick for yardstick in yardsticks}
        limits: list[Found] = [*measure_limits(yardsticks, self._repetitions, self._watch)]
        if not scratch.can_be_dropped:
            limits.append(Skipped("disk", f"files in {material.folder} cannot be taken out of memory; --directory"))
        return limits

    def _decode(self) -> Sequence[Found]:
        videos = self._material.videos
        if not isinstance(videos.source, DecodePool):
            return [Skipped("decode", "frames are decoded on the GPU; see extract")]
        if not knows_living_children():
            return [Skipped("decode", "this system does not tell what other processes have used")]
        decoder = decoder_yardstick(videos)
        rows = self._measured([decode_stage(videos)], [decoder])
        return [*limits_met(rows, [decoder]), *rows]

    def _image_tower(self) -> Sequence[Found]:
        return self._measured([image_tower(self._material.model, _BATCH_FRAMES[self._device.type])])

    def _extract(self) -> Sequence[Found]:
        material, batch = self._material, _BATCH_FRAMES[self._device.type]
        if self._device.type == "cpu" and not knows_living_children():
            return [Skipped("extract", "this system does not tell what other processes have used")]
        tower = image_tower_yardstick(image_tower(material.model, batch))
        stage = extract_stage(material.videos, material.model, material.folder / "extracted", ExtractOptions(batch))
        return self._measured(
            [stage], [tower, decode_yardstick(material.videos, self._device)], min(_FEW, self._repetitions)
        )

    def _text_tower(self) -> Sequence[Found]:
        rows = self._measured([text_tower(self._material.model)])
        self._material.forget("model")
        return rows

    def _index(self) -> Sequence[Found]:
        return self._measured([index_stage(self._material.vectors, self._material.folder / "index")])

    def _broad_view(self) -> Sequence[Found]:
        material = self._material
        index, vectors = material.searched_index, material.vectors
        if material.index_remark:
            return [Skipped("broad view", material.index_remark)]
        if not index.is_exact:
            return [Skipped("broad view", f"what a search of a {index.factory} index needs cannot be counted")]
        queries = vectors[:_NUM_QUERIES].copy()
        stages = [broad_view(index, some, _NUM_RESULTS, self._device) for some in (queries[:1], queries)]
        faiss = []
        if self._device.type == "cpu" and material.is_drawn:
            faiss.append(faiss_yardstick(vectors, queries, _NUM_RESULTS))
            stages.append(broad_view_by_faiss(index, queries, _NUM_RESULTS))
        rows = self._measured(stages, faiss)
        if material.is_drawn:
            material.forget("vectors", "searched_index")
        return [*limits_met(rows, faiss), *rows]

    def _reading(self) -> Sequence[Found]:
        material = self._material
        with closing(Reading(material.store, material.snapshot, material.ids, material.scale.num_videos)) as reading:
            rows = self._measured([reading.cached()], reading.yardsticks())
            if not reading.can_be_dropped:
                return [*rows, Skipped("reading, cold", "the store's files cannot be taken out of memory here")]
            return [*rows, *self._measured([reading.cold()], reading.yardsticks())]

    def _rerank(self, name: str) -> Sequence[Found]:
        material, options = self._material, self._material.options
        reranking = Reranking(
            material.snapshot, material.index, material.texts, options.top_k, options.memory_bytes, self._device
        )
        return self._measured([reranking.stage(name)])

    def _growth(self) -> Iterator[tuple[str, Callable[[], Growth]]]:
        material, options = self._material, self._material.options
        return growth_steps(
            material.scale.growth,
            Setting(material.shape, options.top_k, options.memory_bytes),
            options.growth_methods,
            material.folder,
            self._device,
            self._yardsticks,
            min(_FEW, self._repetitions),
            self._watch,
        )

    def _measured(
        self, stages: Iterable[Stage], extra: Iterable[Yardstick] = (), repetitions: int | None = None
    ) -> list[StageRow]:
        yardsticks = self._yardsticks | {yardstick.name: yardstick for yardstick in extra}
        repetitions = repetitions or self._repetitions
        return [measure_stage(stage, yardsticks, repetitions, self._watch) for stage in stages]


def _guarded(name: str, run: Callable[[], Sequence[Found]]) -> Sequence[Found]:
    """What a step finds, or why it does not."""
    try:
        return run()
    except (TbpipeError, OSError, torch.OutOfMemoryError) as error:
        return [Skipped(name, str(error).splitlines()[0])]


def _one(run: Callable[[], Growth]) -> Sequence[Found]:
    return [run()]


def _dtypes(device: torch.device) -> list[torch.dtype]:
    """The precisions that something of ours runs in on such a device."""
    return [torch.float32, torch.bfloat16, *([torch.float16] if device.type == "cuda" else [])]
