"""TokenBinder's focused-view fusion network (Zhang et al., WACV 2025, sections 3.4-3.6).

The query indicators I_2..I_M of a text look at the local tokens f of ALL its candidates at once. One of H heads, r, of
one indicator, I, with unit-length I and f:

    a(f)   = s I W_r f + I T_r (time(f) + place(f)) + slope_r time(f)      how much it asks for token f
    w      = softmax of a over the tokens of ALL candidates, each weighing 1 / (tokens of its video)
    share_k, g_k = the part of w that falls on candidate k, and the mean by w of its f + time(f) + place(f)

W_r starts as the identity: the first step is EERCF's parameter-free gate. The heads' slopes start apart, so that one
head looks at the beginning and one at the end: a mean over frames cannot tell what came first.
Between blocks an indicator takes in what it found, I <- I + MLP(I + O sum_k share_k g_k). Two heads make scores of it:

    equivariant   of each candidate (V d_k, log share_k, log mean exp a, I U_r d_k) of all heads and indicators, where
                  d_k = g_k - mean_j g_j, and of what is asked, A I; candidates compare theirs by self-attention,
                  which knows no order; Delta_k from the result
    positional    as printed: {Delta_1..Delta_K} = MLP(I_2..I_M), candidates told apart by embeddings of their rank

Last layers start at zero: untrained, Delta = 0 and the focused view is the broad view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import normalize

from stages.rerankers.fixed_shape import linear, total

Head = Literal["equivariant", "positional"]
"""How Delta is made of what the indicators found."""

NUM_TIMES = 16
"""Length of the table of time embeddings, which is interpolated: videos of any number of frames."""
_SHARPNESS = 60.0
"""Tokens of one CLIP lie within a narrow cone: cosines with a text differ by some hundredths only."""
_SLOPE = 8.0
_GAIN = 10.0
"""The bilinear form of text with time and place starts small and has to grow fast."""
NUM_VALUES = 8
_GATHERED = 10.0
_ASKED = 20.0
"""What tells near-duplicates apart is small in the joint space; without a gain, training sees the evidence only."""
_LONGEST_SUM = 512
NEVER = -1e9
"""Logit of a token that is padding: finite, so that a video of padding alone gives no NaN."""


@dataclass(frozen=True, slots=True)
class FusionConfig:
    """Sizes and form of the network."""

    width: int
    """D of the joint space."""
    num_places: int
    """Q, tokens that the tower gives for a frame, so many places are learned; 0 where it is not known which patch a
    token is (stores that keep the N best without their places)."""
    num_indicators: int = 4
    """M; the first is the sentence of the broad view."""
    num_blocks: int = 1
    num_heads: int = 4
    head: Head = "equivariant"
    num_candidates: int = 10
    """K of the positional head; the equivariant one takes any number."""
    is_listwise: bool = True
    """False: every candidate is scored alone, by a network of the same size, for comparison."""
    gumbel: float = 0.0
    """Size of the noise on the logits in training; 0 = none."""
    hidden: int = 64

    def __post_init__(self) -> None:
        """Raise ValueError for sizes that make no network."""
        if self.num_indicators < 2 or min(self.num_blocks, self.num_heads, self.num_candidates) < 1:
            raise ValueError(f"a focused view needs two indicators, a block, a head and a candidate at least: {self}")
        if self.head == "positional" and not self.is_listwise:
            raise ValueError("the positional head has no form that scores candidates alone")


@dataclass(frozen=True, slots=True, eq=False)
class VideoTokens:
    """The tokens of V videos for each of G groups. L = F * P. Q: tokens of a frame before some were chosen."""

    tokens: Tensor
    """float32 [G, V, F, P, D], unit length, anything where masked."""
    frame_mask: Tensor
    """bool [G, V, F], True = real frame."""
    places: Tensor | None = None
    """Where P of the Q tokens were kept, any whole numbers [G, V, F, P]: which each is, 0 .. Q - 1; None: P is Q, or
    nobody knows."""

    @staticmethod
    def of(raw: Tensor, frame_mask: Tensor, places: Tensor | None = None) -> VideoTokens:
        """From tokens [G, V, F, P, D] of any length and any float dtype."""
        return VideoTokens(normalize(raw.float(), dim=-1), frame_mask, places)

    def to(self, device: torch.device) -> VideoTokens:
        """The same on another device."""
        places = None if self.places is None else self.places.to(device)
        return VideoTokens(self.tokens.to(device), self.frame_mask.to(device), places)


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """What R rows (indicators x heads) of each of N candidates found in its video."""

    evidence: Tensor
    """float32 [G, N, R], log of the mean of exp a over the video's tokens."""
    gathered: Tensor
    """float32 [G, N, R, D]."""


class FusionNetwork(nn.Module):
    """Indicators and candidates' tokens -> Delta of each candidate."""

    def __init__(self, config: FusionConfig) -> None:
        """A network that gives Delta = 0; its other weights depend on torch's seed."""
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList([Gathering(config) for _ in range(config.num_blocks)])
        self.takes_in = nn.ModuleList([TakesIn(config) for _ in range(config.num_blocks - 1)])
        self.head: EquivariantHead | PositionalHead
        self.head = EquivariantHead(config) if config.head == "equivariant" else PositionalHead(config)

    def forward(self, indicators: Tensor, videos: VideoTokens, broad: Tensor, is_candidate: Tensor) -> Tensor:
        """Delta float32 [G, N] in units of logits, 0 where there is no candidate.

        indicators float32 [G, T, M - 1, D] with I_2..I_M of T texts; either one text and V = N videos (t2v), or T = N
        texts and one video (v2t). broad float32 [G, N], logits of the broad view; is_candidate bool [G, N].
        """
        state = normalize(indicators, dim=-1)
        for block, takes_in in zip(self.blocks, self.takes_in, strict=False):
            found = block(state, videos)
            state = takes_in(state, found, is_candidate)
        found = self.blocks[-1](state, videos)
        with torch.autocast(state.device.type, enabled=False):  # small, and it tells nearly equal candidates apart
            delta: Tensor = self.head(state, found, broad, is_candidate)
        return delta.masked_fill(~is_candidate, 0.0)


class Gathering(nn.Module):
    """Cross-attention whose projections are folded into the query side: a text has few rows, a video many tokens.

    W_r = W_k^T W_q of an ordinary attention; keys are never made. Values are projected after the weighted mean, which
    is the same as before: sum_f w V f = V sum_f w f.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        width, heads = config.width, config.num_heads
        self.gumbel = config.gumbel
        self.ask = nn.Parameter(torch.eye(width).repeat(heads, 1, 1) + 0.02 * torch.randn(heads, width, width))
        self.when = nn.Parameter(0.02 * torch.randn(heads, width, width))
        self.sharpness = nn.Parameter(torch.tensor(math.log(_SHARPNESS)))
        slopes = torch.zeros(heads)
        slopes[: min(2, heads)] = torch.tensor([_SLOPE, -_SLOPE])[: min(2, heads)]
        self.slope = nn.Parameter(slopes)
        self.time = nn.Parameter(0.05 * torch.randn(NUM_TIMES, width))
        self.place = nn.Parameter(0.1 * torch.randn(max(1, config.num_places), width))

    def forward(self, state: Tensor, videos: VideoTokens) -> Findings:
        """What state [G, T, M - 1, D] finds in the videos; N = T x V, one of which is 1."""
        groups, num_texts, _, width = state.shape
        _, num_videos, num_frames, num_tokens, _ = videos.tokens.shape
        asked = self.asked(state)
        which = self._which(videos)
        bias = self._bias(state, videos, which)  # [G, V, T, R, F, P]
        rows = asked.shape[2]
        asked = asked.unsqueeze(1).expand(-1, num_videos, -1, -1, -1).reshape(groups * num_videos, -1, width)
        tokens = videos.tokens.reshape(groups * num_videos, num_frames * num_tokens, width)
        logits = torch.bmm(asked, tokens.transpose(1, 2)).view(bias.shape).float() + bias.float()
        if self.training and self.gumbel:
            logits = logits + self.gumbel * _gumbel_like(logits)
        logits = logits.masked_fill(~videos.frame_mask[:, :, None, None, :, None], NEVER).flatten(4)
        total = logits.logsumexp(dim=-1)
        weights = (logits - total.unsqueeze(-1)).exp()
        gathered = torch.bmm(weights.flatten(2, 3).flatten(0, 1), tokens)
        gathered = gathered.view(groups, num_videos, num_texts, rows, width).float() + self._where(
            weights, videos, which
        )
        num_real = videos.frame_mask.sum(dim=-1).clamp_min(1) * num_tokens
        evidence = total - num_real.log()[:, :, None, None]
        return Findings(evidence.flatten(1, 2), gathered.flatten(1, 2))

    def asked(self, state: Tensor) -> Tensor:
        """What is multiplied with a token of unit length, [..., M - 1, D] -> [..., (M - 1) * H, D]."""
        return _rows(state, self.ask) * self.sharpness.exp()

    def asked_when_and_where(self, state: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """[..., M - 1, D] -> logits of the rows of the time table [..., R, S] and of a place table [..., R, Q]."""
        rows = _GAIN * _rows(state, self.when)
        return linear(rows, self.time), linear(rows, table)

    def places(self, num_tokens: int) -> Tensor:
        """The place table [P, D] of all P tokens of a frame; the same row for all where no place was learned."""
        return self.place if len(self.place) == num_tokens else self.place.expand(num_tokens, -1)

    @property
    def knows_places(self) -> bool:
        """Whether it makes a difference which patch a token is."""
        return len(self.place) > 1

    def _bias(self, state: Tensor, videos: VideoTokens, which: Tensor | None) -> Tensor:
        """What depends on a token's time and place only, [G, V, T, R, F, P]."""
        table = self.places(videos.tokens.shape[3]) if which is None else self.place
        times, by_place = self.asked_when_and_where(state, table)
        moments = moments_of(videos.frame_mask)
        by_time = torch.einsum("gtrs,gvfs->gvtrf", times, interpolation(moments))
        slopes = self.slope.repeat(times.shape[2] // len(self.slope))
        by_time = by_time + slopes[:, None] * (moments - 0.5)[:, :, None, None, :]
        if which is None:
            return by_time.unsqueeze(-1) + by_place[:, None, :, :, None, :]
        return by_time.unsqueeze(-1) + torch.einsum("gtrq,gvfpq->gvtrfp", by_place, which)

    def _where(self, weights: Tensor, videos: VideoTokens, which: Tensor | None) -> Tensor:
        """The mean time and place of what was gathered, [G, V, T, R, D]; weights [G, V, T, R, L]."""
        num_frames, num_tokens = videos.tokens.shape[2:4]
        weights = weights.view(*weights.shape[:-1], num_frames, num_tokens)
        per_time = torch.einsum("gvtrf,gvfs->gvtrs", weights.sum(-1), interpolation(moments_of(videos.frame_mask)))
        if which is None:
            return per_time @ self.time + weights.sum(-2) @ self.places(num_tokens)
        return per_time @ self.time + torch.einsum("gvtrfp,gvfpq->gvtrq", weights, which) @ self.place

    def _which(self, videos: VideoTokens) -> Tensor | None:
        """A one at each token's place, float32 [G, V, F, P, Q]; None where all are there, or it makes no difference."""
        if videos.places is None or not self.knows_places:
            return None
        return one_at(videos.places, len(self.place))


class TakesIn(nn.Module):
    """Between two blocks: the indicators learn what they found, over all candidates."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        width = config.width
        self.is_listwise = config.is_listwise
        self.output = nn.Linear(config.num_heads * width, width, bias=False)
        last = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), last)
        for layer in (self.output, last):
            nn.init.normal_(layer.weight, std=0.02 / math.sqrt(config.num_heads))

    def forward(self, state: Tensor, found: Findings, is_candidate: Tensor) -> Tensor:
        """The new state [G, T, M - 1, D]. A text alone with one video takes in that one."""
        groups, num_texts, num_indicators, width = state.shape
        if num_texts == 1 and self.is_listwise:
            share = _log_share(found.evidence, is_candidate).exp()
            gathered = (share.unsqueeze(-1) * found.gathered).sum(dim=1, keepdim=True)
        elif num_texts == 1:
            state = state.expand(-1, found.gathered.shape[1], -1, -1)
            gathered = found.gathered
        else:
            gathered = found.gathered
        gathered = gathered.view(groups, -1, num_indicators, gathered.shape[2] // num_indicators * width)
        state = state + _through(self.output, gathered)
        return normalize(state + _through(self.mlp, state), dim=-1)


class EquivariantHead(nn.Module):
    """Candidates compare what they gave; permuting them permutes the scores. Any number of candidates."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        width, heads, hidden = config.width, config.num_heads, config.hidden
        self.is_listwise = config.is_listwise
        self.match = nn.Parameter(torch.eye(width).repeat(heads, 1, 1) + 0.02 * torch.randn(heads, width, width))
        self.value = nn.Linear(width, NUM_VALUES)
        num_rows = (config.num_indicators - 1) * heads
        self.enter = nn.Linear(num_rows * (NUM_VALUES + 3) + 1, hidden)
        self.asked = nn.Linear((config.num_indicators - 1) * width, hidden, bias=False)
        self.compare = Comparison(hidden)
        self.leave = nn.Sequential(nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, 1))
        _zero(self.leave[-1])

    def forward(self, state: Tensor, found: Findings, broad: Tensor, is_candidate: Tensor) -> Tensor:
        """Delta [G, N]."""
        values = linear(found.gathered, self.value.weight)
        fit = (found.gathered * self.matched(state)).sum(dim=-1)
        return self.score(state, found.evidence, values, fit, broad, is_candidate)

    def matched(self, state: Tensor) -> Tensor:
        """What is compared with what was gathered, U_r I: [..., M - 1, D] -> [..., (M - 1) * H, D]."""
        return _rows(state, self.match)

    def score(
        self, state: Tensor, evidence: Tensor, values: Tensor, fit: Tensor, broad: Tensor, is_candidate: Tensor
    ) -> Tensor:
        """Delta [G, N] from V g [G, N, R, NUM_VALUES] and I U_r g [G, N, R], whose mean over j is taken off here.

        Of state [G, T, M - 1, D], evidence [G, N, R], broad and is_candidate [G, N].
        """
        if self.is_listwise:
            values = values - _mean(values, is_candidate)
            fit = fit - _mean(fit, is_candidate)
            share = _log_share(evidence, is_candidate)
            lead = broad - broad.masked_fill(~is_candidate, NEVER).amax(dim=1, keepdim=True)
        else:
            share, lead = torch.zeros_like(evidence), broad
        values = (_GATHERED * values + self.value.bias).flatten(2)
        features = torch.cat([values, 0.1 * evidence, 5 * fit, 0.2 * share, 0.2 * lead.unsqueeze(-1)], dim=-1)
        features = features.masked_fill(~is_candidate.unsqueeze(-1), 0.0)
        hidden = _through(self.enter, features) + _through(self.asked, _ASKED * state.flatten(2))
        hidden = self.compare(hidden, is_candidate, self.is_listwise)
        return _through(self.leave, hidden).squeeze(-1)


class Comparison(nn.Module):
    """One pre-norm transformer layer over the candidates, without positions."""

    _HEADS = 4

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.mix = nn.Linear(hidden, 3 * hidden)
        self.output = nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden)
        )

    def forward(self, hidden: Tensor, is_candidate: Tensor, is_listwise: bool) -> Tensor:
        """[G, N, hidden] -> the same shape; where not listwise, each candidate sees itself only."""
        groups, number, width = hidden.shape
        mixed = _through(self.mix, self.norm(hidden)).view(groups, number, 3, self._HEADS, width // self._HEADS)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        itself = torch.eye(number, dtype=torch.bool, device=hidden.device)
        seen = (is_candidate[:, None] | itself) if is_listwise else itself.expand(groups, -1, -1)
        logits = (query @ key.transpose(-1, -2)) / math.sqrt(width // self._HEADS)
        weights = logits.masked_fill(~seen[:, None], NEVER).softmax(dim=-1)
        hidden = hidden + _through(self.output, (weights @ value).transpose(1, 2).flatten(2))
        return hidden + _through(self.mlp, hidden)


class PositionalHead(nn.Module):
    """As printed: the indicators, having looked at all candidates, give all Deltas at once; ranks tell who is who.

    Candidates after the first K keep Delta = 0. With several texts and one video (v2t) each text takes in the video,
    and gives the Delta of its own rank.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        width, rows = config.width, (config.num_indicators - 1) * config.num_heads
        self.rank = nn.Parameter(0.1 * torch.randn(config.num_candidates, width))
        self.rank_evidence = nn.Parameter(torch.zeros(config.num_candidates, rows))
        self.output = nn.Linear(config.num_heads * width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm((config.num_indicators - 1) * width),
            nn.Linear((config.num_indicators - 1) * width, 4 * config.hidden),
            nn.GELU(),
            nn.Linear(4 * config.hidden, config.num_candidates),
        )
        _zero(self.mlp[-1])

    def forward(self, state: Tensor, found: Findings, broad: Tensor, is_candidate: Tensor) -> Tensor:
        """Delta [G, N]."""
        groups, num_texts, num_indicators, _ = state.shape
        number = min(len(self.rank), broad.shape[1])
        gathered = found.gathered[:, :number] + self.rank[:number, None]
        if num_texts == 1:
            evidence = found.evidence[:, :number] + self.rank_evidence[:number]
            share = _log_share(evidence, is_candidate[:, :number]).exp()
            gathered = (share.unsqueeze(-1) * gathered).sum(dim=1, keepdim=True)
        found_of = gathered.reshape(groups, gathered.shape[1], num_indicators, -1)
        informed = state[:, :number] + _through(self.output, found_of)
        delta = _through(self.mlp, informed.flatten(2))
        delta = delta.squeeze(1) if num_texts == 1 else delta.diagonal(dim1=1, dim2=2)
        return functional.pad(delta[:, :number], (0, broad.shape[1] - number))


def _rows(state: Tensor, matrices: Tensor) -> Tensor:
    """[..., M - 1, D] x [H, E, D] -> [..., (M - 1) * H, E]."""
    return linear(state, matrices.flatten(0, 1)).reshape(*state.shape[:-2], -1, matrices.shape[1])


def _through(layer: nn.Module, rows: Tensor) -> Tensor:
    """``layer(rows)``; without gradients the last bits of a row depend on no other row."""
    if isinstance(layer, nn.Sequential):
        for part in layer:
            rows = _through(part, rows)
        return rows
    if isinstance(layer, nn.Linear):
        return _deep_linear(layer, rows)
    result: Tensor = layer(rows)
    return result


def _deep_linear(layer: nn.Linear, rows: Tensor) -> Tensor:
    """A long sum is cut: several threads would share it, and the last bits would tell how many there were."""
    if torch.is_grad_enabled() or layer.in_features <= _LONGEST_SUM:
        return linear(rows, layer.weight, layer.bias)
    parts = zip(torch.split(rows, _LONGEST_SUM, -1), torch.split(layer.weight, _LONGEST_SUM, 1), strict=True)
    result = sum(linear(part, weight) for part, weight in parts)
    assert isinstance(result, Tensor)
    return result if layer.bias is None else result + layer.bias


def moments_of(frame_mask: Tensor) -> Tensor:
    """Where in its video each frame is, float32 [..., F], the middles of equal parts of 0..1."""
    position = frame_mask.cumsum(dim=-1) - 0.5
    return (position / frame_mask.sum(dim=-1, keepdim=True).clamp_min(1)).clamp(0, 1)


def interpolation(moments: Tensor) -> Tensor:
    """Weights float32 [..., F, NUM_TIMES] of the two nearest rows of the time table."""
    position = moments.unsqueeze(-1) * (NUM_TIMES - 1)
    return (1 - (position - torch.arange(NUM_TIMES, device=moments.device)).abs()).clamp_min(0)


def one_at(places: Tensor, num_places: int) -> Tensor:
    """A one at each token's place and zeros elsewhere, [..., P] -> float32 [..., Q]: weights of rows of a place table.

    What is multiplied with it comes out as it is, and sums are products, the same bits each time.
    """
    ones = torch.zeros(*places.shape, num_places, device=places.device)
    return ones.scatter_(-1, places.long().unsqueeze(-1), 1.0)


def _log_share(evidence: Tensor, is_candidate: Tensor) -> Tensor:
    """Log softmax over the candidates, [G, N, R]. Evidence is a mean over tokens: short videos are not at a loss."""
    return evidence.masked_fill(~is_candidate.unsqueeze(-1), NEVER).log_softmax(dim=1)


def _mean(found: Tensor, is_candidate: Tensor) -> Tensor:
    """The mean over the candidates, [G, N, ...] -> [G, 1, ...]."""
    real = is_candidate.view(*is_candidate.shape, *[1] * (found.ndim - 2))
    summed = total(found.masked_fill(~real, 0.0), dim=1).unsqueeze(1)
    return summed / real.sum(dim=1, keepdim=True).clamp_min(1)


def _gumbel_like(logits: Tensor) -> Tensor:
    return -torch.empty_like(logits).exponential_().clamp_min(1e-20).log()


def _zero(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Linear)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
