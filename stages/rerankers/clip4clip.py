"""CLIP4Clip (Luo et al., Neurocomputing 2022): its parameter-free, sequential and tight similarity calculators."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import normalize

from stages.models.quick_gelu import quick_gelu
from stages.rerankers.base import QueryBatch
from stages.rerankers.fixed_shape import linear
from stages.rerankers.pairwise import PairwiseReranker
from stages.rerankers.temporal import (
    EPSILON,
    NUM_POSITIONS,
    Frames,
    TemporalHead,
    Transformer,
    number_of_layers,
    pool,
    temporal_sizes,
)

_DROPOUT = 0.1
_PAIRS_AT_ONCE = 64
"""Sequences that the cross transformer takes: 13 x 512 of them and what is made of them stay in the cache."""


class Clip4ClipHead(TemporalHead):
    """The cosine of the sentence and the mean direction of the frames, times the logit scale.

    Which frames: as they are (meanP, without weights), after the temporal transformer (seqTransf, with layers), or
    after a recurrent layer, to whose output they are added (seqLSTM, with ``recurrent``). Frames that are padding
    never take part, in the released code neither.
    """

    name = "clip4clip"
    sees_patches = False
    sees_lengths = True

    def __init__(
        self,
        width: int = 0,
        num_layers: int = 0,
        num_heads: int | None = None,
        num_positions: int = NUM_POSITIONS,
        *,
        recurrent: bool = False,
    ) -> None:
        super().__init__(width, num_layers, num_heads, num_positions)
        self.lstm_visual = nn.LSTM(width, width, batch_first=True) if recurrent else None

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], num_heads: int | None = None) -> Clip4ClipHead:
        """With the weights of a released checkpoint, the image-text model's left out and ``clip.`` taken away.

        The names say which calculator it is; a checkpoint of seqLSTM also has a position table that nothing uses.
        """
        recurrent = "lstm_visual.weight_hh_l0" in state
        if recurrent:
            state = {name: value for name, value in state.items() if name != "frame_position_embeddings.weight"}
        sizes = {"width": state["lstm_visual.weight_hh_l0"].shape[1]} if recurrent else temporal_sizes(state)
        head = cls(num_heads=num_heads, recurrent=recurrent, **sizes)
        head.load_state_dict(dict(state))
        return head

    def texts(self, queries: QueryBatch) -> Tensor:
        """Unit-length sentences float32 [B, D]."""
        return normalize(queries.sentence, dim=-1)

    def videos(self, tokens: Tensor, frame_mask: Tensor) -> Tensor:
        """Mean directions float32 [c, D], unit length."""
        frames = tokens[:, :, 0].masked_fill(~frame_mask.unsqueeze(-1), 0.0)
        if self.lstm_visual is not None:
            frames = _recurrent(self.lstm_visual, frames) + frames
        return pool(self.temporal(frames, frame_mask), frame_mask)

    def score(self, texts: Tensor, videos: Tensor) -> Tensor:
        """Scores float32 [c, Q]."""
        return self.logit_scale.exp() * (texts * videos[:, None]).sum(-1)


class Clip4ClipTightHead(nn.Module):
    """tightTransf: a transformer looks at sentence and frames of a pair together; it has no zero-shot form.

    The sequence [t, f_1 .. f_F], raw, gets position embeddings; the first token of the result goes through LayerNorm,
    a linear layer, QuickGELU and one more linear layer. In training an input is left out with probability 0.1. There is
    no logit scale, though checkpoints have one.
    """

    name = "clip4clip-tight"
    sees_patches = False
    sees_lengths = True

    def __init__(
        self, width: int, num_layers: int, num_heads: int | None = None, num_positions: int = NUM_POSITIONS
    ) -> None:
        """D, and at most ``num_positions`` - 1 frames."""
        super().__init__()
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.cross = _Cross(width, num_layers, num_heads, num_positions)
        self.similarity_dense = nn.Linear(width, 1)

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], num_heads: int | None = None) -> Clip4ClipTightHead:
        """With the weights of a released checkpoint, the image-text model's left out and ``clip.`` taken away."""
        positions, width = state["cross.embeddings.position_embeddings.weight"].shape
        head = cls(width, number_of_layers(state, "cross.transformer."), num_heads, positions)
        head.load_state_dict(dict(state))
        return head

    def texts(self, queries: QueryBatch) -> Tensor:
        """Sentences float32 [B, D], raw."""
        return queries.sentence

    def videos(self, tokens: Tensor, frame_mask: Tensor) -> Frames:
        """Frames float32 [c, F, D], raw, 0 where padding."""
        return Frames(tokens[:, :, 0].masked_fill(~frame_mask.unsqueeze(-1), 0.0), frame_mask)

    def score(self, texts: Tensor, videos: Frames) -> Tensor:
        """Scores float32 [c, Q]: some pairs at a time go through the transformer."""
        count, num_texts = len(videos.frames), texts.shape[1]
        sentences = texts.expand(count, -1, -1).flatten(0, 1)
        scores = []
        for start in range(0, count * num_texts, _PAIRS_AT_ONCE):
            pairs = torch.arange(start, min(start + _PAIRS_AT_ONCE, count * num_texts), device=sentences.device)
            of_pairs = videos[pairs // num_texts]
            scores.append(self._score(sentences[pairs], of_pairs.frames, of_pairs.frame_mask))
        return torch.cat(scores).view(count, num_texts)

    def _score(self, sentences: Tensor, frames: Tensor, frame_mask: Tensor) -> Tensor:
        """Of n pairs: [n, D], [n, F, D], [n, F] -> [n]."""
        sequences = torch.cat([sentences.unsqueeze(1), frames], 1)
        pooled: Tensor = self.cross(sequences, functional.pad(frame_mask, (1, 0), value=True))
        return (pooled * self.similarity_dense.weight[0]).sum(-1) + self.similarity_dense.bias


class Clip4ClipReranker(PairwiseReranker):
    """CLIP4Clip as a reranker; without a head, its parameter-free form."""

    def __init__(self, head: Clip4ClipHead | Clip4ClipTightHead | None = None) -> None:
        super().__init__((head or Clip4ClipHead()).eval())


class _Cross(nn.Module):
    """Positions, transformer and pooler, by official names."""

    def __init__(self, width: int, num_layers: int, num_heads: int | None, num_positions: int) -> None:
        super().__init__()
        self.embeddings = _Positions(width, num_positions)
        self.transformer = Transformer(width, num_layers, num_heads)
        self.pooler = _Pooler(width)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Raw sequences [n, N, D], mask [n, N] -> [n, D]. Raises ValueError for more tokens than positions."""
        placed = functional.dropout(self.embeddings(hidden), _DROPOUT, self.training)
        pooled: Tensor = self.pooler(self.transformer(placed, mask)[:, 0])
        return pooled


class _Positions(nn.Module):
    def __init__(self, width: int, num_positions: int) -> None:
        super().__init__()
        self.position_embeddings = nn.Embedding(num_positions, width)

    def forward(self, hidden: Tensor) -> Tensor:
        positions = self.position_embeddings.weight
        if hidden.shape[1] > len(positions):
            raise ValueError(
                f"{hidden.shape[1] - 1} frames a video, but the weights have {len(positions) - 1} positions for them"
            )
        return hidden + positions[: hidden.shape[1]]


class _Pooler(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_pool = nn.LayerNorm(width, eps=EPSILON)
        self.dense = nn.Linear(width, width)

    def forward(self, first: Tensor) -> Tensor:
        return quick_gelu(linear(self.ln_pool(first), self.dense.weight, self.dense.bias))


def _recurrent(lstm: nn.LSTM, frames: Tensor) -> Tensor:
    """The states of one layer, one direction, over frames float32 [c, F, D]: no frame depends on those after it.

    Step by step in products of fixed shape: torch's own would take all videos of a batch in one product.
    """
    weights = dict(lstm.named_parameters())
    inputs = linear(frames, weights["weight_ih_l0"], weights["bias_ih_l0"] + weights["bias_hh_l0"])
    state = memory = frames.new_zeros(len(frames), frames.shape[-1])
    states = []
    for step in inputs.unbind(1):
        enter, forget, new, leave = (step + linear(state, weights["weight_hh_l0"])).chunk(4, -1)
        memory = forget.sigmoid() * memory + enter.sigmoid() * new.tanh()
        state = leave.sigmoid() * memory.tanh()
        states.append(state)
    return torch.stack(states, 1)
