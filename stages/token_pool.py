"""A bounded pool of videos' tokens: what was read stays, where the reranker looks at it, until its room is needed.

Videos that many queries share are read once, whatever the batches. On a GPU the pool lies in its memory: where the
corpus fits, every video crosses the bus once. The batch that is being scored and the one that is being read are both in
the pool; everything else in it is a cache, and those not used for longest leave first.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index_store.snapshot import FrameEmbeddingBatch, Snapshot, TokenBatch
from stages.token_batches import places_tensor

_STAGED_BYTES = 64 << 20
"""On their way to a GPU, twice: one part is read while the other one crosses the bus."""
_GPU_SHARE = 0.5
"""Of a GPU's free memory that the pool may take; the rest is for scoring."""


class TokenPool:
    """Room for S videos on one device. One thread asks for videos; another one may look at those asked for before."""

    def __init__(self, snapshot: Snapshot, num_slots: int, device: torch.device) -> None:
        """For two batches that follow each other, S must be at least the distinct videos of both."""
        self._snapshot = snapshot
        self._slots: OrderedDict[tuple[int, int], int] = OrderedDict()
        """(shard, row) -> slot, the one not used for longest first."""
        self._before: set[tuple[int, int]] = set()
        self._size = num_slots
        self._place: _HostMemory | _GpuMemory
        self._place = (
            _GpuMemory(snapshot, num_slots, device) if device.type == "cuda" else _HostMemory(snapshot, num_slots)
        )
        self.num_read = 0
        """Videos that were read from disk so far."""

    @property
    def tokens(self) -> Tensor:
        """[S, F, P, D] as stored."""
        return self._place.tokens

    @property
    def scales(self) -> Tensor | None:
        """Of int8 tokens, float32 [S, F, P]; None for float16."""
        return self._place.scales

    @property
    def frame_mask(self) -> Tensor:
        """Mask bool [S, F], True = real frame."""
        return self._place.frame_mask

    @property
    def places(self) -> Tensor | None:
        """Which token of its frame each is, uint8 or int16 [S, F, P]; None where the store does not say it."""
        return self._place.places

    def slots(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """Where these videos are, int64 [n], rows of the tensors: until the call after the next one.

        Raises StoreError, DamageError; then what was in the pool before still is, or is read again.
        """
        locations = self._snapshot.locations(ids)
        missing: dict[tuple[int, int], int] = {}
        for location, video_id in zip(locations, ids, strict=True):
            if location in self._slots:
                self._slots.move_to_end(location)
            else:
                missing[location] = video_id
        self._read(sorted(missing), missing, set(locations))
        self._before = set(locations)
        return np.array([self._slots[location] for location in locations], np.int64)

    def frames(self, ids: Sequence[int], slots: NDArray[np.int64]) -> FrameEmbeddingBatch:
        """The frame embeddings of videos in these slots: with int8 tokens they are stored more finely, elsewhere."""
        found = self._place.frames(slots) if self.scales is None else None
        return self._snapshot.read_frame_embeddings(ids) if found is None else found

    def ready(self) -> None:
        """Let what this thread does next on the device wait for what was read."""
        self._place.ready()

    def _read(
        self, missing: Sequence[tuple[int, int]], ids: dict[tuple[int, int], int], needed: set[tuple[int, int]]
    ) -> None:
        if not missing:
            return
        slots = self._free(len(missing), needed)
        self._place.read([ids[location] for location in missing], slots)
        self._slots.update(zip(missing, slots, strict=True))
        self.num_read += len(missing)

    def _free(self, number: int, needed: set[tuple[int, int]]) -> list[int]:
        """So many slots, in ascending order: rows that are neighbours on disk often become neighbours here."""
        new = range(len(self._slots), min(self._size, len(self._slots) + number))
        taken = (location for location in self._slots if location not in needed and location not in self._before)
        leaving = list(itertools.islice(taken, number - len(new)))
        found = sorted([*new, *(self._slots.pop(location) for location in leaving)])
        assert len(found) == number, f"{number} videos do not fit into {self._size} slots beside those in use"
        return found


class _HostMemory:
    """Ordinary memory, which is read into directly."""

    def __init__(self, snapshot: Snapshot, num_slots: int) -> None:
        self._snapshot = snapshot
        self._batch = snapshot.empty_tokens(num_slots)
        self.tokens = torch.from_numpy(self._batch.tokens)
        self.scales = None if self._batch.scales is None else torch.from_numpy(self._batch.scales)
        self.frame_mask = torch.from_numpy(self._batch.frame_mask)
        self.places = None if self._batch.places is None else places_tensor(self._batch.places)

    def read(self, ids: Sequence[int], slots: Sequence[int]) -> None:
        self._snapshot.read_tokens_at(ids, slots, self._batch)

    def frames(self, slots: NDArray[np.int64]) -> FrameEmbeddingBatch | None:
        """Copies of those among the tokens, which are the same numbers."""
        batch = self._batch
        return FrameEmbeddingBatch(batch.tokens[slots, :, 0], batch.frame_mask[slots], batch.timestamps_seconds[slots])

    def ready(self) -> None:
        """Reading is over when ``read`` returns."""


class _GpuMemory:
    """A GPU's memory, which is written by a stream of its own while another one computes."""

    def __init__(self, snapshot: Snapshot, num_slots: int, device: torch.device) -> None:
        self._snapshot = snapshot
        some = snapshot.empty_tokens(1)
        self.tokens = torch.empty(num_slots, *some.tokens.shape[1:], dtype=_dtype(some.tokens), device=device)
        self.frame_mask = torch.zeros(num_slots, some.frame_mask.shape[1], dtype=torch.bool, device=device)
        self.scales = None if some.scales is None else torch.empty(num_slots, *some.scales.shape[1:], device=device)
        like = None if some.places is None else places_tensor(some.places)
        self.places = None if like is None else like.new_zeros(num_slots, *like.shape[1:], device=device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._device = device
        at_once = max(1, min(num_slots, _STAGED_BYTES // max(1, some.tokens.nbytes)))
        self._staged = [_Staged(snapshot, at_once) for _ in range(2)]
        self._at_once = at_once
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def read(self, ids: Sequence[int], slots: Sequence[int]) -> None:
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            for start in range(0, len(ids), self._at_once):
                self._staged.reverse()
                part = slice(start, start + self._at_once)
                self._upload(self._staged[0], ids[part], slots[part])
            self._done.record(self._stream)

    def _upload(self, staged: _Staged, ids: Sequence[int], slots: Sequence[int]) -> None:
        staged.free.synchronize()  # its last upload is over
        self._snapshot.read_tokens_at(ids, range(len(ids)), staged.batch)
        rows = torch.tensor(slots).pin_memory().to(self._device, non_blocking=True)
        here, there = ([memory.tokens, memory.frame_mask, memory.scales, memory.places] for memory in (self, staged))
        for target, source in zip(here, there, strict=True):
            if target is not None and source is not None:
                target.index_copy_(0, rows, source[: len(ids)].to(self._device, non_blocking=True))
        staged.free.record(self._stream)

    def frames(self, slots: NDArray[np.int64]) -> FrameEmbeddingBatch | None:
        """None: they are needed on the host."""
        return None

    def ready(self) -> None:
        """Nothing waits on the host."""
        torch.cuda.current_stream(self._device).wait_event(self._done)


class _Staged:
    """Pinned memory that the GPU fetches from by itself."""

    def __init__(self, snapshot: Snapshot, num_rows: int) -> None:
        some = snapshot.empty_tokens(1)
        self.tokens = _pinned(torch.from_numpy(some.tokens), num_rows)
        self.frame_mask = _pinned(torch.from_numpy(some.frame_mask), num_rows)
        self.scales = None if some.scales is None else _pinned(torch.from_numpy(some.scales), num_rows)
        self.places = None if some.places is None else _pinned(places_tensor(some.places), num_rows)
        times = np.empty((num_rows, *some.timestamps_seconds.shape[1:]))
        scales = None if self.scales is None else self.scales.numpy()
        places = None if some.places is None or self.places is None else self.places.numpy().view(some.places.dtype)
        self.batch = TokenBatch(self.tokens.numpy(), scales, self.frame_mask.numpy(), times, places)
        self.free = torch.cuda.Event()  # type: ignore[no-untyped-call]


def _dtype(array: NDArray[np.generic]) -> torch.dtype:
    return torch.from_numpy(array).dtype


def _pinned(like: Tensor, num_rows: int) -> Tensor:
    return torch.empty(num_rows, *like.shape[1:], dtype=like.dtype, pin_memory=True)


def pool_size(snapshot: Snapshot, capacity: int, device: torch.device) -> int:
    """Slots for batches of ``capacity`` videos: two of them, and on a GPU as much of the corpus as fits."""
    corpus = max(1, snapshot.num_searchable)
    if device.type != "cuda":
        return min(2 * capacity, corpus)
    free_bytes, _ = torch.cuda.mem_get_info(device)
    video_bytes = snapshot.empty_tokens(1).tokens.nbytes
    return min(max(2 * capacity, int(_GPU_SHARE * free_bytes) // video_bytes), corpus)
