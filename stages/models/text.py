"""Text towers: token ids -> sentence and words in the joint space.

ids [T, W] -> sentence [T, D] (what open_clip's encode_text gives) and words [T, W, D]: ``ln_final`` and the text
projection applied to every position, as the CLIP4Clip family does. Nothing is normalised to unit length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from index_store.errors import UsageError
from stages.models.architecture import Architecture
from stages.models.text_transformer import TextTransformer, is_plain


class TextTower:
    """CLIP's text transformer, or open_clip's for towers of other kinds."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.context_length = int(module.context_length)
        is_read_at_end = module.cls_emb is None and module.pool_type in ("argmax", "eos")
        self.may_be_cut = module.attn_mask is not None and is_read_at_end
        """Nothing after a text's end changes it (causal mask, sentence read at the end): short texts may run short."""

    def features(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids int64 [T, W] -> sentence [T, D], words [T, W, D]."""
        tower = self.module
        words = self._to_joint_space(self.hidden(ids))
        if isinstance(tower, TextTransformer):
            return words[torch.arange(len(ids), device=ids.device), ids.argmax(dim=1)], words
        if tower.cls_emb is not None:  # CoCa's class token stands at the end
            return words[:, -1], words[:, :-1]
        from open_clip.transformer import text_global_pool

        return text_global_pool(words, ids, pool_type=tower.pool_type, eos_token_id=tower.eos_id), words

    def hidden(self, ids: Tensor, word_mask: Tensor | None = None) -> Tensor:
        """Ids int64 [T, W] -> every position after ``ln_final`` and before the projection, [T, W, width].

        word_mask bool [T, W], False = nobody looks there (as Hugging Face's CLIP has it). Behind a causal mask this
        changes nothing but the positions after a text's end, which are masked wherever they could count.
        """
        tower = self.module
        embedded, mask = tower._embeds(ids)
        length = embedded.shape[1]
        if mask is not None:
            mask = mask[..., :length, :length]
        if word_mask is not None and mask is not None:
            heads = tower.transformer.resblocks[0].attn.num_heads
            unseen = mask.masked_fill(~word_mask[:, None], -torch.inf)
            mask = unseen.repeat_interleave(heads, dim=0)
        hidden = tower.transformer(embedded, attn_mask=mask)
        normalised: Tensor = tower.ln_final(hidden)
        return normalised

    def check_takes_indicators(self, name: str) -> None:
        """Raise UsageError for a tower that does not read its sentence at the end-of-text token."""
        if not self.may_be_cut:
            raise UsageError(
                f"model {name} does not read its sentence at an end-of-text token behind a causal mask, which query "
                "indicators stand in for; use a CLIP model such as ViT-B-32"
            )

    def first_indicators(self, number: int, end_id: int, generator: torch.Generator) -> Tensor:
        """Untrained query indicators [M, width]: the end-of-text token itself, then others at the scale of words.

        Indicators that start alike stay alike, so I_2..I_M are drawn at random.
        """
        words = self.module.token_embedding.weight.detach().float()
        drawn: Tensor = torch.randn(number, words.shape[1], generator=generator) * words.std()
        drawn[0] = words[end_id]
        return drawn

    def features_with_indicators(self, ids: Tensor, ends: Tensor, indicators: Tensor) -> tuple[Tensor, Tensor]:
        """Ids int64 [T, W], ends int64 [T], indicators [M, width] -> words [T, W, D], indicators [T, M, D].

        Each indicator stands where the end-of-text token does and sees what that sees: all words, and itself. ``ends``
        is the position of that token. The first indicator, untrained, is the sentence of ``features``.
        """
        tower = self.module
        embedded, mask = tower._embeds(ids)
        length, number = embedded.shape[1], len(indicators)
        # The gradient of plain indexing is added up by several threads at once: other last bits each time.
        positions = functional.embedding(ends, tower.positional_embedding)
        asked = indicators.to(embedded.dtype) + positions[:, None].to(embedded.dtype)
        seen = torch.zeros(len(ids), length + number, length + number, dtype=torch.bool, device=ids.device)
        seen[:, :length, :length] = mask[..., :length, :length] == 0
        seen[:, length:, :length] = (torch.arange(length, device=ids.device) < ends[:, None])[:, None]
        seen[:, length:, length:] = torch.eye(number, dtype=torch.bool, device=ids.device)
        blocked = torch.zeros(seen.shape, dtype=embedded.dtype, device=ids.device).masked_fill_(~seen, -torch.inf)
        heads = tower.transformer.resblocks[0].attn.num_heads
        hidden = tower.transformer(
            torch.cat([embedded, asked], dim=1), attn_mask=blocked.repeat_interleave(heads, dim=0)
        )
        features = self._to_joint_space(tower.ln_final(hidden))
        return features[:, :length], features[:, length:]

    def _to_joint_space(self, features: Tensor) -> Tensor:
        projection = self.module.text_projection
        if projection is None:
            return features
        projected: Tensor = projection(features) if isinstance(projection, nn.Linear) else features @ projection
        return projected


def build(architecture: Architecture) -> TextTower:
    """The text tower of ``architecture``, its weights not yet filled in. Raises UsageError for one not supported."""
    if is_plain(architecture.text):
        return TextTower(TextTransformer(architecture.text, architecture.embed_dim, architecture.quick_gelu))
    if architecture.text.get("hf_model_name"):
        raise UsageError(
            f"model {architecture.name} takes its text tower from the transformers library, which is not supported; "
            "use a model with a CLIP text tower, such as ViT-B-32"
        )
    from open_clip.model import CLIPTextCfg, _build_text_tower

    module = _build_text_tower(architecture.embed_dim, CLIPTextCfg(**architecture.text), architecture.quick_gelu)
    return TextTower(module)


def cut(ids: Tensor, num_words: int, end_id: int) -> Tensor:
    """The first ``num_words`` positions of ids int64 [T, W]; a text that does not end there has its end at the last."""
    first = ids[:, :num_words].clone()
    goes_on = ~(first == end_id).any(dim=1)
    first[goes_on, -1] = end_id
    return first


def word_mask(ids: Tensor, end_id: int) -> Tensor:
    """Bool [T, W], True from the first position to the first end-of-text token of each row of ids [T, W]."""
    ends = (ids == end_id).int()
    has_end = ends.any(dim=1, keepdim=True)
    last = torch.where(has_end, ends.argmax(dim=1, keepdim=True), ids.shape[1] - 1)
    return torch.arange(ids.shape[1], device=ids.device)[None] <= last
