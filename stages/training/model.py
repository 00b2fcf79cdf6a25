"""TokenBinder as a module that learns: text tower with indicators, fusion network, temperature, and its losses.

    l = (l_t2v + l_v2t) / 2 + (l_focus,t + l_focus,v) / 2

l_t2v, l_v2t: InfoNCE over the batch of B pairs; l_focus: cross-entropy over the K candidates, on S = S' + Delta.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from index_store.errors import UsageError
from index_store.settings import KeepRule
from stages.models.clip import ClipModel
from stages.models.text import word_mask
from stages.preprocess import normalise
from stages.rerankers.fusion import FusionConfig, FusionNetwork, VideoTokens
from stages.rerankers.token_binder import TokenBinderWeights, part_of
from stages.tokens import choose_tokens
from stages.training.config import Precision
from stages.training.losses import ON_COSINES, Contrast, contrast

MAX_LOGIT_SCALE = 100.0
"""As CLIP: the temperature is not let below 0.01."""


class TokenBinderModel(nn.Module):
    """What is trained on cached features."""

    def __init__(
        self,
        clip: ClipModel,
        config: FusionConfig,
        seed: int,
        start: TokenBinderWeights | None = None,
        precision: Precision = "float32",
        keep: KeepRule | None = None,
        contrast: Contrast = "mean",
    ) -> None:
        """Start from the text tower of ``clip``, untrained: I_1 is its sentence and Delta is 0; or from ``start``.

        ``precision``: of the matrix products while the module is in training mode. ``keep``: the image tower
        learns too, and these tokens of a frame are used. ``contrast``: the broad view's.
        """
        super().__init__()
        self._contrast = contrast
        self._precision = precision
        self._keep = keep
        if keep is not None and clip.sees_videos:
            raise UsageError(
                f"model {clip.name} sees whole videos, and --finetune shows it single frames; train on stored features"
            )
        self._preprocessing = clip.architecture.preprocessing
        self._image_tower = None if keep is None else clip.image_side()
        self.image: Any = None if self._image_tower is None else self._image_tower.module
        self._tower, self._tokenizer = clip.query_side()
        self._tower.check_takes_indicators(clip.name)
        if start is not None and start.text:
            self._tower.module.load_state_dict(dict(start.text))
        generator = torch.Generator().manual_seed(seed)
        first = self._tower.first_indicators(config.num_indicators, self._tokenizer.end_id, generator)
        self.indicators = nn.Parameter(first)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.fusion = FusionNetwork(config)
        if start is not None and start.fusion and start.config == config:
            self.indicators.data.copy_(start.indicators)
            self.fusion.load_state_dict(dict(start.fusion))
        self.text: Any = self._tower.module
        self.log_scale = nn.Parameter(torch.tensor(math.log(min(clip.logit_scale, MAX_LOGIT_SCALE))))

    @property
    def scale(self) -> Tensor:
        """Factor of the cosines in the softmax, 1 / tau."""
        return self.log_scale.exp().clamp(max=MAX_LOGIT_SCALE)

    def encode(self, texts: list[str]) -> Tensor:
        """Indicators [B, M, D] of the texts; I_1 is the sentence."""
        ids = self._tokenizer(texts)
        ends = word_mask(ids, self._tokenizer.end_id).sum(dim=1) - 1
        ids = ids[:, : int(ends.max()) + 1].to(self.indicators.device)
        with self._lowered():
            _, indicators = self._tower.features_with_indicators(ids, ends.to(ids.device), self.indicators)
        return indicators.float()

    def train(self, mode: bool = True) -> TokenBinderModel:
        """As every module; but the image tower draws no noise: frames pass it twice and must come out the same."""
        super().train(mode)
        if self.image is not None:
            self.image.eval()
        return self

    @property
    def keeps_some(self) -> bool:
        """Whether ``frame_tokens`` keeps some patches of a frame, and says which."""
        return self._keep is not None and self._keep.num_patches > 0

    def frame_tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens float32 [n, P, D] of unit length, row 0 the frame embedding, of uint8 pixels [n, 3, S, S].

        Where some patches are kept, also which token of its frame each is: int64 [n, P]; else None.
        """
        assert self._image_tower is not None
        assert self._keep is not None
        with self._lowered():
            rows = self._image_tower.tokens(normalise(pixels, self._preprocessing.mean, self._preprocessing.std))
        kept, places = choose_tokens(rows.float(), self._keep)
        return normalize(kept, dim=-1), places

    def clip_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of ``state`` as those of an image-text model, by the keys that weight files have.

        I_1 takes the place of the end-of-text token, whose sentence it is: alone, the model recalls as it was trained.
        """
        found = {f"visual.{name}": value for name, value in part_of(state, "image.").items()}
        found |= {f"text.{name}": value for name, value in part_of(state, "text.").items()}
        words = found["text.token_embedding.weight"].clone()
        words[self._tokenizer.end_id] = state["indicators"][0]
        scale = state["log_scale"].clamp(max=math.log(MAX_LOGIT_SCALE))
        return {**found, "text.token_embedding.weight": words, "logit_scale": scale}

    def broad_loss(self, indicators: Tensor, pooled: Tensor, same: Tensor) -> Tensor:
        """(l_t2v + l_v2t) / 2 of B pairs, or another contrast that was asked for.

        pooled [B, D]; same bool [B, B]: other pairs that are right as well.
        """
        sentences = normalize(indicators[:, 0], dim=-1)
        scores = (sentences if self._contrast in ON_COSINES else self.scale * sentences) @ pooled.T
        return contrast(self._contrast, scores.masked_fill(same, -torch.inf))

    def focused_scores(
        self, indicators: Tensor, videos: VideoTokens, broad: Tensor, is_candidate: Tensor | None = None
    ) -> Tensor:
        """Logits of S [G, K]. indicators [G, T, M, D], broad cosines [G, K]; see FusionNetwork for T and the videos."""
        logits = (self.scale * broad).detach()  # the broad view has a loss of its own
        if is_candidate is None:
            is_candidate = torch.ones(broad.shape, dtype=torch.bool, device=broad.device)
        with self._lowered():
            delta = self.fusion(indicators[:, :, 1:], videos, logits, is_candidate)
        scores: Tensor = logits + delta
        return scores

    def _lowered(self) -> AbstractContextManager[object]:
        """Matrix products in bfloat16 around float32 weights; in training only: validation ranks as reranking does."""
        device = self.indicators.device.type
        chosen = ("bfloat16" if device == "cuda" else "float32") if self._precision == "auto" else self._precision
        is_lower = self.training and chosen == "bfloat16"
        return torch.autocast(device, dtype=torch.bfloat16) if is_lower else nullcontext()
