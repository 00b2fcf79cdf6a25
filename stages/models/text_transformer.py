"""CLIP's text transformer (Radford et al., ICML 2021), which opens without open_clip.

open_clip has the same module, but importing it costs more than torch itself (torchvision, timm and torch's compiler
come along), and a search needs nothing else of it. Names, attributes and sums are open_clip's, to the last bit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.models.quick_gelu import QuickGelu

PLAIN = frozenset({"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"})
"""Settings of towers that this one can be; open_clip's others ask for towers of other kinds."""
_ABOUT_TOKENIZER = frozenset({"hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"})


def is_plain(text: Mapping[str, Any]) -> bool:
    """Whether a text tower with these settings of open_clip's is CLIP's own."""
    return not {key for key, value in text.items() if value is not None} - PLAIN - _ABOUT_TOKENIZER


class TextTransformer(nn.Module):
    """Token ids -> hidden states. L positions, C channels; weights and attributes are named as open_clip's."""

    pool_type = "argmax"
    """The sentence is read where the largest id stands: at the end-of-text token."""
    cls_emb = None
    """There is no other token to read it from."""

    def __init__(self, text: Mapping[str, Any], embed_dim: int, quick_gelu: bool) -> None:
        """With the settings ``text``, not filled. Raises TypeError or ValueError for settings that make no tower."""
        super().__init__()
        width, self.context_length = int(text.get("width", 512)), int(text.get("context_length", 77))
        self.token_embedding = nn.Embedding(int(text.get("vocab_size", 49408)), width)
        self.positional_embedding = nn.Parameter(torch.empty(self.context_length, width))
        self.transformer = _Transformer(
            width,
            int(text.get("layers", 12)),
            int(text.get("heads", 8)),
            int(width * float(text.get("mlp_ratio", 4.0))),
            quick_gelu,
        )
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        unseen = torch.full((self.context_length, self.context_length), -torch.inf).triu(1)
        self.register_buffer("attn_mask", unseen, persistent=False)

    def _embeds(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Ids int64 [T, L] -> their embeddings [T, L, C] and the causal mask, float [W, W], -inf = not seen."""
        embedded = self.token_embedding(ids).to(self.transformer.weight_dtype)
        positions = self.positional_embedding[: ids.shape[1]].to(embedded.dtype)
        return embedded + positions, self.get_buffer("attn_mask")


class LayerNorm(nn.LayerNorm):
    """One whose result has the precision of its input, also where autocast would widen it."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise over the last axis."""
        normalised = functional.layer_norm(hidden, self.normalized_shape, self.weight, self.bias, self.eps)
        return normalised.to(hidden.dtype)


class _Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, mlp_width: int, quick_gelu: bool) -> None:
        super().__init__()
        self.width = width
        self.resblocks = nn.ModuleList([_Block(width, heads, mlp_width, quick_gelu) for _ in range(layers)])

    @property
    def weight_dtype(self) -> torch.dtype:
        """That of the matrices, which may be less precise than the rest."""
        weight: Tensor = self.resblocks[0].get_parameter("mlp.c_fc.weight")
        return weight.dtype

    def forward(self, hidden: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Hidden [T, L, C] -> the same through all blocks; attn_mask float [L, L] or [T heads, L, L] is added."""
        for block in self.resblocks:
            hidden = block(hidden, attn_mask)
        return hidden


class _Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, mlp_width: int, quick_gelu: bool) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, mlp_width),
                gelu=QuickGelu() if quick_gelu else nn.GELU(),
                c_proj=nn.Linear(mlp_width, width),
            )
        )

    def forward(self, hidden: Tensor, attn_mask: Tensor | None) -> Tensor:
        seen = self.ln_1(hidden)
        mask = None if attn_mask is None else attn_mask.to(seen.dtype)
        hidden = hidden + self.attn(seen, seen, seen, need_weights=False, attn_mask=mask)[0]
        mixed: Tensor = hidden + self.mlp(self.ln_2(hidden))
        return mixed
