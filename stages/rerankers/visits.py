"""Who looks at whom: cuts the (query, candidate) pairs of a batch into pieces that are scored at once.

Every video is prepared once and then visited by the queries it is a candidate of, VISIT_QUERIES at a time, padded.
The shape is fixed on purpose: a matrix product of another shape may sum in another order and give other last bits,
and then a score would depend on what else is in the batch. With one shape it does not (tests/stages/test_rerank.py).

Where a text is as heavy as a video, padding is waste: then queries with the same candidates visit those together, and
the method itself sees to its shapes (``shared_blocks``, ``fixed_shape``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

VISIT_QUERIES = 8
"""Q. On one core, 12 x 50 x 512 tokens: 108, 150 and 207 us a video for 4, 8 and 16; preparing a video costs 200 us."""

_BLOCK_BYTES = {"cpu": 24 << 20, "cuda": 256 << 20}
"""float32 tokens of a block. 12 x 50 x 512, one core: 1950, 980, 830, 1090 us a video at 2, 10, 32, 64 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class Visit:
    """Up to Q queries for each of c videos."""

    videos: slice | Tensor
    """Which videos of the block, c of them."""
    queries: slice | Tensor
    """int64 [c, Q], rows of the batch of queries, B (one past the last) = padding; or [Q], the same for all videos."""
    cells: Tensor
    """int64 [c, Q], where the score belongs in the flat [B * K] scores; B * K (one past the last) = padding."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Some videos that follow each other, and everyone who looks at them."""

    videos: slice
    visits: list[Visit]


def videos_per_block(floats_per_video: int, device: torch.device) -> int:
    """How many videos of this size are prepared at once."""
    return max(1, _BLOCK_BYTES.get(device.type, _BLOCK_BYTES["cpu"]) // (4 * max(1, floats_per_video)))


def blocks(index: Tensor, num_videos: int, block_size: int, device: torch.device) -> Iterator[Block]:
    """All pairs of ``index``, each once, by blocks of at most ``block_size`` videos.

    index int64 [B, K] on the CPU: row of the video, -1 = none. Videos with many visitors should come first: then no
    block has to be copied for its later visits.
    """
    num_candidates = index.shape[1]
    flat = index.reshape(-1).numpy()
    cells = np.flatnonzero(flat >= 0)
    cells = cells[np.argsort(flat[cells], kind="stable")]
    starts = np.searchsorted(flat[cells], np.arange(num_videos + 1))
    for first in range(0, num_videos, block_size):
        last = min(first + block_size, num_videos)
        if starts[first] == starts[last]:
            continue
        visits = list(_visits(cells, starts[first : last + 1], len(flat), num_candidates, device))
        yield Block(slice(first, last), visits)


def shared_blocks(
    index: Tensor, num_videos: int, block_size: int, device: torch.device, num_queries: int, num_visited: int = 0
) -> Iterator[Block]:
    """All pairs of ``index`` as by ``blocks``, but in each visit the same queries look at each of the videos.

    At most ``num_queries`` look at ``num_visited`` videos at a time, 0 = all that they share in the block; there is no
    padding.
    """
    flat = index.reshape(-1).numpy()
    for first in range(0, num_videos, block_size):
        last = min(first + block_size, num_videos)
        cells = np.flatnonzero((first <= flat) & (flat < last))
        if len(cells):
            visits = _shared_visits(index, cells, first, num_queries, num_visited or block_size, device)
            yield Block(slice(first, last), list(visits))


def _shared_visits(
    index: Tensor, cells: NDArray[np.int64], first: int, num_queries: int, num_visited: int, device: torch.device
) -> Iterator[Visit]:
    """Queries that look at the same videos of the block, in the order of the videos, are taken together."""
    videos = index.reshape(-1).numpy()[cells] - first
    queries = cells // index.shape[1]
    order = np.argsort(queries * (1 + videos.max()) + videos, kind="stable")
    cuts = np.flatnonzero(np.diff(queries[order])) + 1
    groups: dict[bytes, list[NDArray[np.int64]]] = {}
    for of_query in np.split(order, cuts):
        groups.setdefault(videos[of_query].tobytes(), []).append(of_query)
    for members in groups.values():
        for start in range(0, len(members), num_queries):
            together = np.stack(members[start : start + num_queries])
            for left in range(0, together.shape[1], num_visited):
                part = together[:, left : left + num_visited]
                yield Visit(
                    videos=_slice_or_rows(videos[part[0]], device),
                    queries=_slice_or_rows(queries[part[:, 0]], device),
                    cells=torch.from_numpy(cells[part].T.copy()).to(device),
                )


def _slice_or_rows(rows: NDArray[np.int64], device: torch.device) -> slice | Tensor:
    """Rows that follow each other as a slice, which copies nothing."""
    if (np.diff(rows) == 1).all():
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return torch.from_numpy(rows).to(device)


def _visits(
    cells: NDArray[np.int64], starts: NDArray[np.int64], spare: int, num_candidates: int, device: torch.device
) -> Iterator[Visit]:
    counts = np.diff(starts)
    for done in range(0, int(counts.max()), VISIT_QUERIES):
        rows = np.flatnonzero(counts > done)
        slots = done + np.arange(VISIT_QUERIES)
        positions = np.minimum(starts[rows, None] + slots, len(cells) - 1)
        here = np.where(slots < counts[rows, None], cells[positions], spare)
        prefix = rows[-1] + 1 == len(rows)
        yield Visit(
            videos=slice(0, len(rows)) if prefix else torch.from_numpy(rows).to(device),
            queries=torch.from_numpy(here // num_candidates).to(device),
            cells=torch.from_numpy(here).to(device),
        )
