"""TokenBinder's fusion network over stored tokens: one pass over the videos of a batch for all its queries.

The same numbers as ``FusionNetwork.forward``, for use without gradients. What a (query, video) pair costs with R rows
(indicators x heads) and L tokens of width D: one product of L x D with D x (2 R + 8), and nothing else of that size.

- A stored video is converted once and then visited by all its queries.
- Tokens are not brought to unit length: their lengths [L] divide the logits and the weights instead, and the scales of
  int8 tokens, which change lengths only, are not needed.
- What depends on the query alone (what it asks for, when and where) is computed for all queries together.
- Weights are summed by time and place, and the embeddings of these come in once, for all pairs together.

On a CPU a product has the same shape whatever the batch: the last bits depend neither on that nor on the threads. On a
GPU products take float16 and add up in float32. bfloat16, which some CPUs multiply faster, is not taken: rounding the
stored float16 to it moved scores of 300 near-duplicates by up to 0.0044, products in it by 0.0125, and a product is a
quarter of the time.
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
from stages.rerankers.fusion import (
    NEVER,
    NUM_TIMES,
    NUM_VALUES,
    EquivariantHead,
    Findings,
    FusionNetwork,
    Gathering,
    interpolation,
    moments_of,
    one_at,
)

_BLOCK_BYTES = {"cpu": 5 << 20, "cuda": 1 << 30}
"""Converted tokens that are looked at together; on a CPU by each thread, in whose cache they then are. One core,
12 x 50 x 512: 691, 603, 571, 603, 734 us a pair at 1.2, 2.5, 5, 10 and 20 MB."""
_MOST_THREADS = 8
_BLOCKS_TOGETHER = 4
"""On a CPU the products of so many blocks are weighed together: they are small, and the steps are many."""
_OFTEN = 4
"""A video of so many visitors or more is looked at by these alone, all at once."""
_MOST_VISITORS = 32
_SHORTEST = 1e-12
"""Shorter tokens count as of this length, as torch's ``normalize`` has it."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredTokens:
    """The tokens of U videos as they are stored. L = F * P."""

    tokens: Tensor
    """float16, int8 or float32 [U, F, P, D], of any length; int8 without their scales."""
    frame_mask: Tensor
    """bool [U, F], True = real frame; the tokens of other frames may be anything finite."""
    places: Tensor | None = None
    """Where P of Q tokens were kept, any whole numbers [U, F, P]: which each is, 0 .. Q - 1; None: P is Q, or nobody
    knows."""


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """Who looks at whom, and where in flat lists [G * N] that belongs: int64 [n] each."""

    texts: NDArray[np.int64]
    videos: NDArray[np.int64]
    cells: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Look:
    """Pairs that are scored at once."""

    pairs: slice
    """In the order of the plan."""
    videos: slice | int
    """Of the block: one for each pair, or one for all of them."""


@dataclass(frozen=True, slots=True, eq=False)
class _Products:
    """What tokens brought to unit length give with the columns of the texts that look at them."""

    pairs: slice
    """n of them, in the order of the plan."""
    products: Tensor
    """float32 [n, L, C]."""
    tokens: Tensor | None = None
    """[n, L, D] of any length, where a keeper needs them."""
    per_length: Tensor | None = None
    """1 / lengths, float32 [n, L], of these tokens."""


def list_bytes(network: FusionNetwork, num_texts: int, num_videos: int, num_places: int) -> int:
    """What one list of so many texts or videos takes in ``score_lists`` at most, beside the videos' tokens.

    ``num_places``: P, or Q where it is known which of Q places a token has.
    """
    config = network.config
    rows = (config.num_indicators - 1) * config.num_heads
    is_digested = config.num_blocks == 1 and config.head == "equivariant"
    for_text = config.width * (5 * rows + NUM_VALUES)
    for_pair = rows * (NUM_TIMES + num_places + (NUM_VALUES if is_digested else 2 * config.width))
    return 4 * (num_texts * for_text + max(num_texts, num_videos) * for_pair)


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
    used, own = np.unique(texts[real], return_inverse=True)
    pairs = _Pairs(own, seen[real], np.flatnonzero(real))
    is_candidate = torch.from_numpy(real).to(broad.device)
    rows = normalize(indicators[torch.from_numpy(used).to(indicators.device)], dim=-1)
    of_lists = np.searchsorted(used, texts_of).clip(max=len(used) - 1)
    state = rows[torch.from_numpy(of_lists).to(rows.device)]
    for block, takes_in in zip(network.blocks, network.takes_in, strict=False):
        state = takes_in(state, _gather(_Sweep(block, rows, videos, pairs, shape)), is_candidate)
        rows = state.flatten(0, 1)
        own = np.broadcast_to(np.arange(len(rows)).reshape(state.shape[:2]), shape)[real]
        pairs = _Pairs(own, pairs.videos, pairs.cells)
    sweep, head = _Sweep(network.blocks[-1], rows, videos, pairs, shape), network.head
    if isinstance(head, EquivariantHead):
        digest = _Digest(sweep, head)
        sweep.run(digest)
        delta = head.score(state, sweep.evidence(), *digest.lists(), broad, is_candidate)
    else:
        delta = head(state, _gather(sweep), broad, is_candidate)
    return delta.masked_fill(~is_candidate, 0.0)


class _Sweep:
    """One pass over the videos: n pairs, in the order of a plan, of T texts that ask with R rows each."""

    def __init__(
        self, block: nn.Module, state: Tensor, videos: StoredTokens, pairs: _Pairs, shape: tuple[int, int]
    ) -> None:
        """Of texts state [T, M - 1, D]; shape of the lists, [G, N]."""
        assert isinstance(block, Gathering)
        self.state = state
        self._shape, self._stored = shape, videos.tokens
        self._buffer = _empty_block(videos.tokens, len(pairs.videos))
        order, self._blocks = _plan(pairs.videos, len(self._buffer))
        self._cells = torch.from_numpy(pairs.cells[order]).to(state.device)
        self.texts = torch.from_numpy(pairs.texts[order]).to(state.device)
        seen = torch.from_numpy(pairs.videos[order]).to(state.device)

        num_tokens = videos.tokens.shape[2]
        self._places = None if videos.places is None or not block.knows_places else videos.places.flatten(1)[seen]
        """Of each pair's tokens, [n, L]; None: the p-th of a frame has the p-th place."""
        table = block.places(num_tokens) if self._places is None else block.place
        self._asked = block.asked(state).transpose(1, 2)  # [T, D, R]
        times, self._by_place = block.asked_when_and_where(state, table)  # [T, R, S], [T, R, Q]
        frame_mask = videos.frame_mask[seen]
        moments = moments_of(frame_mask)
        self._between = interpolation(moments)  # [n, F, S]
        by_time = torch.bmm(times[self.texts], self._between.transpose(1, 2))
        slopes = block.slope.repeat(by_time.shape[1] // len(block.slope))
        by_time += slopes[:, None] * (moments - 0.5)[:, None]
        self._by_time = by_time.masked_fill_(~frame_mask[:, None], NEVER)  # [n, R, F]
        self._num_real = frame_mask.sum(dim=-1, keepdim=True).clamp_min(1) * num_tokens

        self.tables = torch.cat([block.time, table])
        """What is known of a token's time and place, [S + Q, D]."""
        number, num_rows = by_time.shape[:2]
        self.where = state.new_empty(number, num_rows, len(self.tables))
        """The weights of those, [n, R, S + Q]."""
        self.total = state.new_empty(number, num_rows, 1)
        """What all weights [n, R, 1] are still to be divided by."""
        self._highest = torch.empty_like(self.total)

    def run(self, keeper: _Gathered | _Digest) -> None:
        """Let every pair look, and ``keeper`` keep what it found."""
        asked = torch.cat([self._asked, keeper.columns], dim=-1).to(self._buffer.dtype)
        looks = self._at_once(asked) if keeper.needs_tokens or asked.is_cuda else self._together(asked)
        for look in looks:
            keeper.keep(look, self._weigh(look))
        keeper.finish()

    def _at_once(self, asked: Tensor) -> Iterator[_Products]:
        """Products with asked [T, D, C], look by look, with the tokens."""
        for rows, looks in self._blocks:
            raw = _loaded(self._stored, rows, self._buffer)
            lengths = torch.linalg.vector_norm(raw, dim=-1, dtype=torch.float32)
            per_length = lengths.clamp_min_(_SHORTEST).reciprocal_()
            for look in looks:
                number = look.pairs.stop - look.pairs.start
                tokens, of_tokens = raw[look.videos].expand(number, -1, -1), per_length[look.videos].expand(number, -1)
                products = _bmm(tokens, asked[self.texts[look.pairs]]).mul_(of_tokens.unsqueeze(-1))
                yield _Products(look.pairs, products, tokens, of_tokens)

    def _together(self, asked: Tensor) -> Iterator[_Products]:
        """Products with asked [T, D, C] of several looks, each made while its tokens are in the cache."""
        most = max(_BLOCKS_TOGETHER * len(self._buffer), _MOST_VISITORS)
        products = asked.new_empty(most, self._buffer.shape[1], asked.shape[2])
        lengths: list[Tensor] = []
        first = 0

        def held(stop: int) -> _Products:
            of_pairs = products[: stop - first]
            of_pairs *= torch.cat(lengths).clamp_min_(_SHORTEST).reciprocal_().unsqueeze_(-1)
            lengths.clear()
            return _Products(slice(first, stop), of_pairs)

        for rows, looks in self._blocks:
            raw = _loaded(self._stored, rows, self._buffer)
            of_block = torch.linalg.vector_norm(raw, dim=-1)
            for look in looks:
                start, stop = look.pairs.start, look.pairs.stop
                if stop - first > most:
                    yield held(start)
                    first = start
                tokens, of_tokens = raw[look.videos], of_block[look.videos]
                if isinstance(look.videos, int):
                    tokens, of_tokens = tokens.expand(stop - start, -1, -1), of_tokens.expand(stop - start, -1)
                lengths.append(of_tokens)
                asking = asked.index_select(0, self.texts[look.pairs])
                torch.bmm(tokens, asking, out=products[start - first : stop - first])
        yield held(len(self.texts))

    def _weigh(self, look: _Products) -> Tensor:
        """The weights of tokens [n, R, L], still to be divided by their total."""
        here, texts = look.pairs, self.texts[look.pairs]
        num_times, num_places = self._between.shape[2], self._by_place.shape[2]
        by_place = self._by_place.index_select(0, texts)  # [n, R, Q]
        if self._places is None:
            places, by_place = None, by_place.unsqueeze(2)
        else:
            places = self._places[here].long().unsqueeze(1).expand(-1, by_place.shape[1], -1)  # [n, R, L]
            by_place = by_place.gather(2, places).view(*self._by_time[here].shape, -1)
        weights = self._by_time[here, :, :, None] + by_place  # [n, R, F, P]
        flat = weights.flatten(2)
        flat += look.products[:, :, : flat.shape[1]].transpose(1, 2)
        torch.amax(flat, dim=-1, keepdim=True, out=self._highest[here])
        flat.sub_(self._highest[here]).exp_()
        by_time = weights.sum(dim=3)
        torch.sum(by_time, dim=-1, keepdim=True, out=self.total[here])
        where = self.where[here]
        where[:, :, :num_times] = torch.bmm(by_time, self._between[here])
        where[:, :, num_times:] = weights.sum(dim=2) if places is None else _summed_at(places, flat, num_places)
        return flat

    def evidence(self) -> Tensor:
        """Log of the mean of exp a over each video's tokens, [G, N, R]."""
        return self.lists((self.total.log() + self._highest).squeeze(-1) - self._num_real.log())

    def lists(self, found: Tensor) -> Tensor:
        """What pairs found, [n, ...] -> [G, N, ...], 0 where there is no candidate."""
        number = self._shape[0] * self._shape[1]
        lists = (found.new_empty if number == len(found) else found.new_zeros)(number, *found.shape[1:])
        lists[self._cells] = found
        return lists.view(*self._shape, *found.shape[1:])


class _Gathered:
    """Keeps the mean token that each row found, [n, R, D]: what the next block and the positional head take in."""

    needs_tokens = True

    def __init__(self, sweep: _Sweep) -> None:
        self._sweep = sweep
        self.columns = sweep.state.new_empty(len(sweep.state), sweep.state.shape[-1], 0)
        self._gathered = sweep.state.new_empty(*sweep.where.shape[:2], sweep.state.shape[-1])

    def keep(self, look: _Products, weights: Tensor) -> None:
        """Keep weights [n, R, L], which are no longer needed, x tokens [n, L, D]."""
        assert look.tokens is not None
        assert look.per_length is not None
        _bmm_into(self._gathered[look.pairs], weights.mul_(look.per_length.unsqueeze(1)), look.tokens)

    def finish(self) -> None:
        """Time and place come in."""
        self._gathered += linear(self._sweep.where, self._sweep.tables.T)
        self._gathered /= self._sweep.total

    def lists(self) -> Tensor:
        """[G, N, R, D]."""
        return self._sweep.lists(self._gathered)


class _Digest:
    """Keeps only what the equivariant head makes of the mean token g, V g and I U_r g.

    Both are linear, so they are taken of every token, V f and I U_r f, in the product that gives the logits: tokens are
    read from memory once, and not a second time to gather them.
    """

    needs_tokens = False

    def __init__(self, sweep: _Sweep, head: EquivariantHead) -> None:
        self._sweep = sweep
        self._matched, self._value = head.matched(sweep.state), head.value.weight
        value = self._value.T.expand(len(self._matched), -1, -1)
        self.columns = torch.cat([self._matched.transpose(1, 2), value], dim=-1)  # [T, D, R + NUM_VALUES]
        number, num_rows = sweep.where.shape[:2]
        self._fit = sweep.state.new_empty(number, num_rows, 1)
        self._values = sweep.state.new_empty(number, num_rows, len(self._value))

    def keep(self, look: _Products, weights: Tensor) -> None:
        """Of weights [n, R, L] and products [n, L, R + R + NUM_VALUES]. Each row needs its own fit only."""
        num_rows = weights.shape[1]
        found = torch.bmm(weights, look.products[:, :, num_rows:])
        self._fit[look.pairs] = found.diagonal(dim1=1, dim2=2).unsqueeze(-1)
        self._values[look.pairs] = found[:, :, num_rows:]

    def finish(self) -> None:
        """Time and place come in."""
        sweep = self._sweep
        self._values += linear(sweep.where, linear(sweep.tables, self._value).T)
        self._values /= sweep.total
        fits = linear(self._matched, sweep.tables)[sweep.texts]
        self._fit += fits.mul_(sweep.where).sum(dim=-1, keepdim=True)
        self._fit /= sweep.total

    def lists(self) -> tuple[Tensor, Tensor]:
        """V g [G, N, R, NUM_VALUES] and I U_r g [G, N, R]."""
        return self._sweep.lists(self._values), self._sweep.lists(self._fit.squeeze(-1))


def _gather(sweep: _Sweep) -> Findings:
    """Everything that was found."""
    gathered = _Gathered(sweep)
    sweep.run(gathered)
    return Findings(sweep.evidence(), gathered.lists())


# -- the order in which pairs are scored -------------------------------------------------------------------------------


def _plan(
    videos: NDArray[np.int64], block_size: int
) -> tuple[NDArray[np.int64], list[tuple[NDArray[np.int64], list[_Look]]]]:
    """The order of pairs with these videos, int64 [n], and block by block the videos and who looks at them.

    A block has at most ``block_size`` videos, the most visited ones come first. Those of many visitors are looked at
    one by one, the others in rounds.
    """
    distinct, inverse, counts = np.unique(videos, return_inverse=True, return_counts=True)
    ranked = np.argsort(-counts, kind="stable")
    place = np.empty_like(ranked)
    place[ranked] = np.arange(len(ranked))
    by_place = np.argsort(place[inverse], kind="stable")
    distinct, counts = distinct[ranked], counts[ranked]
    starts = np.cumsum(counts) - counts
    num_visitors, from_here, often = counts.tolist(), starts.tolist(), int((counts >= _OFTEN).sum())
    order: list[NDArray[np.int64]] = []
    blocks: list[tuple[NDArray[np.int64], list[_Look]]] = []
    done = 0

    def look(pairs: NDArray[np.int64], seen: slice | int) -> _Look:
        nonlocal done
        order.append(pairs)
        done += len(pairs)
        return _Look(slice(done - len(pairs), done), seen)

    for first in range(0, len(distinct), block_size):
        last = min(first + block_size, len(distinct))
        looks = [
            look(by_place[start : min(start + _MOST_VISITORS, from_here[row] + num_visitors[row])], row - first)
            for row in range(first, min(often, last))
            for start in range(from_here[row], from_here[row] + num_visitors[row], _MOST_VISITORS)
        ]
        row = max(first, often)
        for visit in range(num_visitors[row] if row < last else 0):
            while num_visitors[last - 1] <= visit:
                last -= 1
            looks.append(look(by_place[starts[row:last] + visit], slice(row - first, last - first)))
        blocks.append((distinct[first : first + block_size], looks))
    return np.concatenate(order), blocks


# -- tokens ------------------------------------------------------------------------------------------------------------


def _empty_block(tokens: Tensor, most: int) -> Tensor:
    """Room for the converted tokens of some videos, [c, L, D]."""
    _, num_frames, num_places, width = tokens.shape
    dtype = torch.float16 if tokens.is_cuda else torch.float32
    size = num_frames * num_places * width * dtype.itemsize
    room = _BLOCK_BYTES[tokens.device.type] * (1 if tokens.is_cuda else min(torch.get_num_threads(), _MOST_THREADS))
    number = max(1, min(most, len(tokens), room // size))
    return torch.empty(number, num_frames * num_places, width, dtype=dtype, device=tokens.device)


def _loaded(tokens: Tensor, rows: NDArray[np.int64], buffer: Tensor) -> Tensor:
    """The tokens [c, L, D] of some videos, converted, in ``buffer`` if they are not there as they should be."""
    flat, into = tokens.flatten(1, 2), buffer[: len(rows)]
    if rows[-1] - rows[0] + 1 == len(rows) and (rows[1:] > rows[:-1]).all():
        here = flat[int(rows[0]) : int(rows[-1]) + 1]
        return here if here.dtype == into.dtype else into.copy_(here)
    if tokens.is_cuda:
        return into.copy_(flat[torch.from_numpy(rows).to(tokens.device)])
    for place, row in enumerate(rows.tolist()):  # torch.cat into another dtype takes twice as long
        into[place].copy_(flat[row])
    return into


def _summed_at(places: Tensor, weights: Tensor, num_places: int) -> Tensor:
    """The sums of weights [n, R, L] at each place, [n, R, Q]; places int64 [n, R, L], the same for all R."""
    if weights.is_cuda:  # its scatter_add_ adds up in another order each time
        return torch.bmm(weights, one_at(places[:, 0], num_places))
    return weights.new_zeros(*weights.shape[:2], num_places).scatter_add_(2, places, weights)


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
