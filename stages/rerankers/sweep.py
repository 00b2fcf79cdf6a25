"""TokenBinder's fusion network over stored tokens: one pass over the videos of a batch for all its queries.

The same numbers as ``FusionNetwork.forward``, for use without gradients. What a (query, video) pair costs with R rows
(indicators x heads) and L tokens of width D: two products of R x L x D, and nothing else of that size.

- A stored video is converted once and then visited by all its queries.
- Tokens are not brought to unit length: their lengths [L] divide the logits and the weights instead, and the scales of
  int8 tokens, which change lengths only, are not needed.
- What depends on the query alone (what it asks for, when and where) is computed for all queries together.
- Weights are summed by time and place, and the embeddings of these come in once, for all pairs together.

On a CPU a product has the same shape whatever the batch: the last bits depend neither on that nor on the threads. On a
GPU products take float16 and add up in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from stages.rerankers.fixed_shape import linear
from stages.rerankers.fusion import NEVER, Findings, FusionNetwork, Gathering, interpolation, moments_of

_BLOCK_BYTES = {"cpu": 10 << 20, "cuda": 1 << 30}
"""Converted tokens that are looked at together; on a CPU they stay in its cache."""
_OFTEN = 4
"""A video of so many visitors or more is looked at by these alone, all at once."""
_MOST_VISITORS = 256
_SHORTEST = 1e-12
"""Shorter tokens count as of this length, as torch's ``normalize`` has it."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredTokens:
    """The tokens of U videos as they are stored. L = F * P."""

    tokens: Tensor
    """float16, int8 or float32 [U, F, P, D], of any length; int8 without their scales."""
    frame_mask: Tensor
    """bool [U, F], True = real frame; the tokens of other frames may be anything finite."""


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """Who looks at whom, and where in flat lists [G * N] that belongs: int64 [n] each."""

    texts: NDArray[np.int64]
    videos: NDArray[np.int64]
    cells: NDArray[np.int64]

    def __getitem__(self, rows: NDArray[np.int64]) -> _Pairs:
        """Some of them, or all in another order."""
        return _Pairs(self.texts[rows], self.videos[rows], self.cells[rows])


@dataclass(frozen=True, slots=True)
class _Look:
    """Pairs that are scored at once."""

    pairs: slice
    """In the order of the plan."""
    videos: slice | int
    """Of the block: one for each pair, or one for all of them."""


def score_lists(
    network: FusionNetwork,
    indicators: Tensor,
    videos: StoredTokens,
    texts_of: NDArray[np.int64],
    videos_of: NDArray[np.int64],
    broad: Tensor,
) -> Tensor:
    """Delta float32 [G, N] in units of logits, 0 where there is no candidate.

    indicators float32 [T, M - 1, D], I_2..I_M of T texts. texts_of and videos_of int64, -1 = no candidate: [G, 1] and
    [G, N] for the candidate videos of a text, [G, N] and [G, 1] for the candidate texts of a video. broad float32
    [G, N], logits of the broad view, finite.
    """
    shape = (broad.shape[0], broad.shape[1])
    texts, seen = np.broadcast_to(texts_of, shape), np.broadcast_to(videos_of, shape)
    real = (texts >= 0) & (seen >= 0)
    if not real.any():
        return torch.zeros_like(broad)
    pairs = _Pairs(texts[real], seen[real], np.flatnonzero(real))
    is_candidate = torch.from_numpy(real).to(broad.device)
    rows = normalize(indicators, dim=-1)
    state = rows[torch.from_numpy(texts_of.clip(min=0)).to(rows.device)]
    for block, takes_in in zip(network.blocks, network.takes_in, strict=False):
        state = takes_in(state, _sweep(block, rows, videos, pairs, shape), is_candidate)
        rows = state.flatten(0, 1)
        own = np.broadcast_to(np.arange(len(rows)).reshape(state.shape[:2]), shape)
        pairs = _Pairs(own[real], pairs.videos, pairs.cells)
    delta: Tensor = network.head(state, _sweep(network.blocks[-1], rows, videos, pairs, shape), broad, is_candidate)
    return delta.masked_fill(~is_candidate, 0.0)


def _sweep(block: nn.Module, state: Tensor, videos: StoredTokens, pairs: _Pairs, shape: tuple[int, int]) -> Findings:
    """What the texts state [T, M - 1, D] find in the videos of their lists, 0 where there is no candidate."""
    assert isinstance(block, Gathering)
    buffer = _empty_block(videos.tokens, len(pairs.videos))
    order, plan = _plan(pairs.videos, len(buffer))
    pairs = pairs[order]
    search = _Search(block, state, videos, pairs)
    for rows, looks in plan:
        raw = _loaded(videos.tokens, rows, buffer)
        per_length = torch.linalg.vector_norm(raw, dim=-1, dtype=torch.float32).clamp_min_(_SHORTEST).reciprocal_()
        for look in looks:
            search.look(look, raw, per_length)
    return search.findings(shape)


class _Search:
    """What pairs ask for, in the order of the plan, and what they found so far. n pairs of T texts with R rows each."""

    def __init__(self, block: Gathering, state: Tensor, videos: StoredTokens, pairs: _Pairs) -> None:
        num_places = videos.tokens.shape[2]
        half = torch.float16 if state.device.type == "cuda" else torch.float32
        seen = torch.from_numpy(pairs.videos).to(state.device)
        self._cells = torch.from_numpy(pairs.cells).to(state.device)
        self._texts = torch.from_numpy(pairs.texts).to(state.device)
        self._asked = block.asked(state).transpose(1, 2).contiguous().to(half)  # [T, D, R]
        times, self._by_place = block.asked_when_and_where(state, num_places)  # [T, R, S], [T, R, P]
        moments = moments_of(videos.frame_mask)
        self._between = interpolation(moments)[seen]  # [n, F, S]
        by_time = torch.bmm(times[self._texts], self._between.transpose(1, 2))
        slopes = block.slope.repeat(by_time.shape[1] // len(block.slope))
        by_time += slopes[:, None] * (moments - 0.5)[seen, None]
        self._by_time = by_time.masked_fill_(~videos.frame_mask[seen, None], NEVER)  # [n, R, F]
        self._tables = torch.cat([block.time, block.places(num_places)])  # [S + P, D]
        self._num_real = videos.frame_mask.sum(dim=-1).clamp_min(1)[seen, None] * num_places
        number, num_rows = by_time.shape[:2]
        self._gathered = state.new_empty(number, num_rows, state.shape[-1])
        self._where = state.new_empty(number, num_rows, len(self._tables))
        self._highest = state.new_empty(number, num_rows, 1)
        self._total = state.new_empty(number, num_rows, 1)

    def look(self, look: _Look, raw: Tensor, per_length: Tensor) -> None:
        """Let some pairs find what they ask for in a block of videos, raw [c, L, D] with 1 / lengths [c, L]."""
        here = look.pairs
        texts = self._texts[here]
        number, num_times = len(texts), self._between.shape[2]
        if isinstance(look.videos, int):
            tokens = raw[look.videos].expand(number, -1, -1)
            per_length = per_length[look.videos].expand(number, -1)
        else:
            tokens, per_length = raw[look.videos], per_length[look.videos]
        products = _bmm(tokens, self._asked[texts])
        weights = self._by_time[here, :, :, None] + self._by_place[texts, :, None, :]  # [n, R, F, P]
        grid = (number, *weights.shape[2:])
        weights.addcmul_(products.view(*grid, -1).permute(0, 3, 1, 2), per_length.view(number, 1, *grid[1:]))
        flat = weights.flatten(2)
        torch.amax(flat, dim=-1, keepdim=True, out=self._highest[here])
        flat.sub_(self._highest[here]).exp_()
        by_time, by_place = weights.sum(dim=3), weights.sum(dim=2)
        torch.sum(by_time, dim=-1, keepdim=True, out=self._total[here])
        where = self._where[here]
        where[:, :, :num_times] = torch.bmm(by_time, self._between[here])
        where[:, :, num_times:] = by_place
        _bmm_into(self._gathered[here], flat.mul_(per_length.unsqueeze(1)), tokens)

    def findings(self, shape: tuple[int, int]) -> Findings:
        """All of it, as lists."""
        evidence = (self._total.log() + self._highest).squeeze(-1) - self._num_real.log()
        self._gathered += linear(self._where, self._tables.T)
        self._gathered /= self._total
        return Findings(self._in_lists(evidence, shape), self._in_lists(self._gathered, shape))

    def _in_lists(self, found: Tensor, shape: tuple[int, int]) -> Tensor:
        """[n, ...] -> [G, N, ...], 0 where there is no candidate."""
        number = shape[0] * shape[1]
        make = found.new_empty if number == len(found) else found.new_zeros
        lists = make(number, *found.shape[1:])
        lists[self._cells] = found
        return lists.view(*shape, *found.shape[1:])


# -- the order in which pairs are scored -------------------------------------------------------------------------------


def _plan(
    videos: NDArray[np.int64], block_size: int
) -> tuple[NDArray[np.int64], list[tuple[NDArray[np.int64], list[_Look]]]]:
    """The order of pairs with these videos, int64 [n], and block by block the videos and who looks at them.

    A block has at most ``block_size`` videos, the most visited ones come first.
    """
    distinct, inverse, counts = np.unique(videos, return_inverse=True, return_counts=True)
    ranked = np.argsort(-counts, kind="stable")
    place = np.empty_like(ranked)
    place[ranked] = np.arange(len(ranked))
    by_place = np.argsort(place[inverse], kind="stable")
    distinct, counts = distinct[ranked], counts[ranked]
    starts = np.cumsum(counts) - counts
    order: list[NDArray[np.int64]] = []
    blocks: list[tuple[NDArray[np.int64], list[_Look]]] = []
    done = 0
    for first in range(0, len(distinct), block_size):
        looks: list[_Look] = []
        block = slice(first, first + block_size)
        for pairs, seen in _visits(by_place, starts[block], counts[block]):
            order.append(pairs)
            looks.append(_Look(slice(done, done + len(pairs)), seen))
            done += len(pairs)
        blocks.append((distinct[block], looks))
    return np.concatenate(order), blocks


def _visits(
    by_place: NDArray[np.int64], starts: NDArray[np.int64], counts: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], slice | int]]:
    """Pairs, and which of a block's videos they look at: those of many visitors one by one, the others in rounds."""
    often = int((counts >= _OFTEN).sum())
    for row in range(often):
        pairs = by_place[starts[row] : starts[row] + counts[row]]
        for start in range(0, len(pairs), _MOST_VISITORS):
            yield pairs[start : start + _MOST_VISITORS], row
    for visit in range(int(counts[often:].max(initial=0))):
        stop = often + int((counts[often:] > visit).sum())
        yield by_place[starts[often:stop] + visit], slice(often, stop)


# -- tokens ------------------------------------------------------------------------------------------------------------


def _empty_block(tokens: Tensor, most: int) -> Tensor:
    """Room for the converted tokens of some videos, [c, L, D]."""
    _, num_frames, num_places, width = tokens.shape
    dtype = torch.float16 if tokens.is_cuda else torch.float32
    size = num_frames * num_places * width * dtype.itemsize
    number = max(1, min(most, len(tokens), _BLOCK_BYTES[tokens.device.type] // size))
    return torch.empty(number, num_frames * num_places, width, dtype=dtype, device=tokens.device)


def _loaded(tokens: Tensor, rows: NDArray[np.int64], buffer: Tensor) -> Tensor:
    """The tokens [c, L, D] of some videos, converted into ``buffer``."""
    into = buffer[: len(rows)]
    if rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        return into.copy_(tokens[int(rows[0]) : int(rows[-1]) + 1].flatten(1, 2))
    return torch.cat([tokens[row : row + 1].flatten(1, 2) for row in rows.tolist()], out=into)


def _bmm(left: Tensor, right: Tensor) -> Tensor:
    """Products in float32, of float16 too."""
    return torch.bmm(left, right) if left.dtype == torch.float32 else torch.bmm(left, right, out_dtype=torch.float32)


def _bmm_into(result: Tensor, weights: Tensor, tokens: Tensor) -> None:
    """Set result float32 [n, R, D] = weights float32 [n, R, L], 0 or more, times tokens [n, L, D]."""
    if tokens.dtype == torch.float32:
        torch.bmm(weights, tokens, out=result)
        return
    largest = weights.amax(dim=-1, keepdim=True).clamp_min_(_SHORTEST)  # 1 / length may be beyond float16
    torch.mul(_bmm((weights / largest).to(tokens.dtype), tokens), largest, out=result)
