"""What is worked on, opened or made when it is first asked for: model, clips, store, vectors, queries."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from index_store.errors import InputError
from index_store.settings import SamplingSettings
from index_store.snapshot import Snapshot
from index_store.store import Store
from index_store.vectors import VectorIndex
from stages.bench.data import DrawnTexts, drawn_store, drawn_vectors, first_videos, render_clips, store_settings
from stages.bench.growth import USUAL_METHODS
from stages.bench.models import model_to_measure
from stages.bench.recall import built
from stages.bench.scale import Scale
from stages.bench.videos import Videos, open_videos
from stages.models import MODELS, image, load_model
from stages.models.architecture import resolve
from stages.models.clip import ClipModel, choose_device
from stages.search import open_index

_Kept = TypeVar("_Kept")

FRAMES = 12
"""Of a video, as extract takes them unless told otherwise."""
_FILES_LOOKED_FOR = 200
_MORE_CLIPS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What to measure."""

    store: Path | None = None
    """Take features, index and videos of this one, which is only read; None: drawn ones."""
    videos: Path | None = None
    """Decode these; None: the store's, or rendered ones."""
    model: str | None = None
    """Without a store: an architecture, its weights drawn."""
    pretrained: str | None = None
    """The store's weight file, where it has moved."""
    methods: tuple[str, ...] = ()
    device: str = "auto"
    top_k: int = 10
    memory_bytes: int = 512 << 20
    growth: bool = False
    growth_methods: tuple[str, ...] = USUAL_METHODS


class Material(AbstractContextManager["Material"]):
    """Each thing raises its own errors when it is asked for; nothing is written but below ``folder``."""

    def __init__(self, options: BenchOptions, scale: Scale, folder: Path) -> None:
        """Raises UsageError for a device or a model that does not exist, StoreMissingError."""
        self.options = options
        self.scale = scale
        self.folder = folder
        self.device = choose_device(options.device)
        self._given = None if options.store is None else Store.open(options.store)
        self._model_name = options.model or scale.model
        self.shape = self._drawn_shape() if self._given is None else self._given.settings.token_shape
        self.index_remark = ""
        """Why an index is searched on the CPU although there is a GPU."""
        self._stack = ExitStack()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the store and end the decoder processes."""
        self._stack.close()

    def forget(self, *names: str) -> None:
        """Let go of what is large and not needed any more; asked for again, it is made again."""
        for name in names:
            self.__dict__.pop(name, None)

    def keep(self, context: AbstractContextManager[_Kept]) -> _Kept:
        """Enter a context that ends with this one."""
        return self._stack.enter_context(context)

    def _drawn_shape(self) -> tuple[int, int, int]:
        """(F, P, D) of what the model gives, without its weights."""
        architecture = resolve(self._model_name, "", MODELS)
        with torch.device("meta"):
            return FRAMES, image.build(architecture).tokens_per_frame, architecture.embed_dim

    @property
    def _num_clips(self) -> int:
        """More for a GPU, whose batches are larger."""
        return self.scale.num_clips * (_MORE_CLIPS if self.device.type == "cuda" else 1)

    @property
    def is_drawn(self) -> bool:
        """Whether features are drawn: no store was given."""
        return self._given is None

    @property
    def about(self) -> str:
        """One line."""
        frames, tokens, width = self.shape
        if self._given is not None:
            return f"store {self._given.directory}, {frames} x {tokens} x {width} {self._given.settings.tokens.dtype}"
        return f"drawn features, {frames} x {tokens} x {width} float16 a video; {self._model_name}"

    @property
    def bytes_to_write(self) -> int:
        """At most, below the folder."""
        frames, tokens, width = self.shape
        video = 2 * frames * tokens * width
        store = 0 if self._given is not None else self.scale.num_videos * video
        clips = self._num_clips * (video + (4 << 20))
        grown = self.scale.growth.num_videos * video * max(self.scale.growth.frames) * self.options.growth
        return int(store + clips + grown) + 2 * self.scale.disk_bytes + 4 * self.scale.num_vectors * width

    @functools.cached_property
    def model(self) -> ClipModel:
        """Both towers: of the store, with its weights, or of an architecture."""
        if self._given is None:
            return model_to_measure(self._model_name, str(self.device))
        pinned = self._given.settings.model
        pretrained = self.options.pretrained or pinned.pretrained
        return load_model(pinned.name, pretrained, str(self.device), pinned.compute_dtype)

    @functools.cached_property
    def videos(self) -> Videos:
        """Files that decode."""
        sampling = SamplingSettings("uniform", FRAMES) if self._given is None else self._given.settings.sampling
        return self._stack.enter_context(open_videos(self._paths(), sampling, self.device, self._num_clips))

    def _paths(self) -> list[Path]:
        if self.options.videos is not None:
            return [self.options.videos]
        if self._given is None:
            return render_clips(self.folder, self._num_clips, self.scale.clip)
        known = self.snapshot.by_ids(self.ids[:_FILES_LOOKED_FOR].tolist())
        there = [record.path for record in known if record.path.is_file()]
        if not there:
            raise InputError(f"none of the first {len(known)} videos of the store has its file; give --videos FOLDER")
        return there

    @functools.cached_property
    def store(self) -> Store:
        """The one that was given, or one that is made."""
        if self._given is not None:
            return self._given
        return drawn_store(self.folder / "store", self.scale.num_videos, store_settings(*self.shape))

    @functools.cached_property
    def snapshot(self) -> Snapshot:
        """Of the store."""
        return self._stack.enter_context(self.store.snapshot())

    @functools.cached_property
    def _first(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return first_videos(self.snapshot)

    @property
    def ids(self) -> NDArray[np.int64]:
        """Int64 [n], of the first videos that have features, some ten thousands at most."""
        return self._first[0]

    @property
    def pooled(self) -> NDArray[np.float32]:
        """float32 [n, D], theirs."""
        return self._first[1]

    @functools.cached_property
    def index(self) -> VectorIndex:
        """Of the store's videos: its own, or one in memory."""
        if self._given is not None:
            return self._with_gpu(open_index(self.snapshot))
        return self._with_gpu(built(self.pooled, self.ids, self.snapshot.commit_number))

    @functools.cached_property
    def vectors(self) -> NDArray[np.float32]:
        """Unit length, float32 [n, D]: those of a given store, or so many that a search has something to do."""
        return self.pooled if self._given is not None else drawn_vectors(self.scale.num_vectors, self.shape[2])

    @functools.cached_property
    def searched_index(self) -> VectorIndex:
        """That of a given store, or one of ``vectors``."""
        return self.index if self._given is not None else self._with_gpu(built(self.vectors))

    @functools.cached_property
    def texts(self) -> DrawnTexts:
        """Queries near to some of the store's videos."""
        return DrawnTexts(self.pooled, self.scale.num_queries, self.device)

    def _with_gpu(self, index: VectorIndex) -> VectorIndex:
        if self.device.type == "cuda":
            self.index_remark = index.copy_to_gpus([self.device.index or 0])
        return index
