"""Tokens of videos in bounded memory: two buffers, one of which is read into while the other is being scored."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index_store.errors import UsageError
from index_store.snapshot import Snapshot, TokenBatch
from stages.rerankers.base import CandidateBatch

DEFAULT_MEMORY_BYTES = 256 << 20
"""Larger batches share more reads between queries; where the corpus is large, little is shared anyway."""

_Item = TypeVar("_Item")


def video_capacity(snapshot: Snapshot, num_candidates: int, memory_bytes: int) -> int:
    """How many videos' tokens fit into half of the memory; the other half is being filled meanwhile.

    Raises UsageError when fewer than ``num_candidates`` do.
    """
    frames, tokens, width = snapshot.settings.token_shape
    video_bytes = frames * tokens * (2 * width if snapshot.settings.tokens.dtype == "float16" else width + 4)
    capacity = memory_bytes // (2 * video_bytes)
    if capacity < max(1, num_candidates):
        needed_mb = -(-2 * video_bytes * max(1, num_candidates) // 10**6)
        raise UsageError(
            f"{num_candidates} candidates of {video_bytes} bytes do not fit twice into {memory_bytes // 10**6} MB; "
            f"give --memory {needed_mb} MB or a smaller --top-k"
        )
    return capacity


class TokenBuffers:
    """Two arrays for tokens, given out in turn: one is scored while the other is filled."""

    def __init__(self, snapshot: Snapshot, capacity: int) -> None:
        shape = (min(capacity, max(1, snapshot.num_searchable)), *snapshot.settings.token_shape)
        self._arrays = [np.empty(shape, snapshot.settings.tokens.dtype) for _ in range(2)]

    def next(self) -> NDArray[np.generic]:
        """The array that was given out longer ago."""
        self._arrays.reverse()
        return self._arrays[0]


def ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """The same items; the next one is made in another thread while the caller works on this one."""
    end = object()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-tokens") as pool:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item  # type: ignore[misc]


def candidate_batch(
    tokens: TokenBatch, index: NDArray[np.int64], broad: NDArray[np.float32], device: torch.device
) -> CandidateBatch:
    """What a reranker gets: the tokens of U videos, index [B, K] and broad scores [B, K], on ``device``."""
    return CandidateBatch(
        tokens=torch.from_numpy(tokens.tokens).to(device),
        scales=None if tokens.scales is None else torch.from_numpy(tokens.scales).to(device),
        frame_mask=torch.from_numpy(tokens.frame_mask).to(device),
        index=torch.from_numpy(index),
        broad=torch.from_numpy(broad).to(device),
        places=None if tokens.places is None else places_tensor(tokens.places).to(device),
    )


def places_tensor(places: NDArray[np.generic]) -> Tensor:
    """Which token of its frame each is, as read: uint8, or int16 for uint16, which torch does little with."""
    return torch.from_numpy(places if places.dtype == np.uint8 else places.view(np.int16))
