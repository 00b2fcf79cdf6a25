"""Training of the methods that score pairs: contrast over the scores of a batch's texts with its videos.

Text tower and head learn; the videos' features are the store's. With S [B, B] the head's scores, the gradient is cached
block by block: blocks of videos are scored without a graph, the loss gives the gradient of S, and each block is scored
once more to hand on its part. So memory is that of one block, and the gradient that of the whole batch. EERCF's loss
is more than a function of S and takes the batch at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from index_store.errors import UsageError
from index_store.settings import StoreSettings
from stages.models.clip import ClipModel
from stages.models.text import word_mask
from stages.rerankers.base import CandidateBatch, QueryBatch
from stages.rerankers.head_weights import HEADS, HeadWeights, method_of
from stages.rerankers.token_binder import ANY_TOKENS, FeatureKind, TokenBinderWeights, part_of
from stages.training.eercf_loss import EercfLossWeights, eercf_terms
from stages.training.heads import MAX_LOG_SCALE, untrained_head
from stages.training.lists import Batch, same_text
from stages.training.losses import ON_COSINES, contrast
from stages.training.objective import Positions, Setup
from stages.training.pairs import RawTokens

MAX_VALIDATION_QUERIES = 1000
_VALIDATION_PART = 8
_STEM = ("text.token_embedding.", "text.positional_embedding")
"""Of the text tower: stays as it is in all these systems."""
_DRAWING = ("ts2-net", "ucofia")
"""Methods whose choice of patches is perturbed in training."""
_MAX_SEED = 1 << 62


class HeadModel(nn.Module):
    """A text tower and a head."""

    def __init__(self, clip: ClipModel, head: nn.Module) -> None:
        super().__init__()
        self._tower, self._tokenizer = clip.query_side()
        self.text: Any = self._tower.module
        self.head: Any = head

    def encode(self, texts: list[str], is_lowered: bool = False) -> QueryBatch:
        """Features of the texts; words beyond the longest are cut where that changes nothing.

        ``is_lowered``: matrix products in bfloat16, around float32 weights.
        """
        device = self.head.logit_scale.device
        ids = self._tokenizer(texts)
        mask = word_mask(ids, self._tokenizer.end_id)
        if self._tower.may_be_cut:
            longest = int(mask.sum(dim=1).max())
            ids, mask = ids[:, :longest], mask[:, :longest]
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_lowered):
            sentence, words = self._tower.features(ids.to(device))
        mask = mask[:, : words.shape[1]].to(device)
        return QueryBatch(sentence.float(), words.float().masked_fill(~mask.unsqueeze(-1), 0.0), mask)


class HeadObjective:
    """One of the published systems; see HEADS. One process only: S is that of the whole batch."""

    reads_frames = False
    most_validated = MAX_VALIDATION_QUERIES

    def __init__(self, setup: Setup, settings: StoreSettings, clip: ClipModel, start: Path | None = None) -> None:
        """``start``: earlier weights of this method, whose form the head then has; or TokenBinder's, for their text.

        Raises UsageError for several processes, for a contrast that the method cannot have and for ``start`` of another
        method, FingerprintError for one of other features, InputError for a broken file.
        """
        config = setup.config
        self.config, self.corpus, self.device = config, setup.corpus, setup.device
        if setup.ranks.size > 1:
            raise UsageError(
                f"several processes train token-binder only; train {config.method} in one, without torchrun"
            )
        if config.method == "eercf" and config.contrast != "mean":
            raise UsageError(f"contrast = {config.contrast!r}: EERCF has a loss of its own; leave contrast out")
        self._has_own_text = config.text_learning_rate > 0
        head, self._sizes = (
            untrained_head(clip, settings, config) if start is None else self._go_on(start, settings, clip)
        )
        self.module = HeadModel(clip, head).to(self.device)
        kind = FeatureKind.of(settings)
        self.kind = kind if head.sees_patches else replace(kind, keep_tokens=ANY_TOKENS)
        _, self._reranker = HEADS[config.method]
        self._pooled = self.corpus.pooled.to(self.device)

    def _go_on(self, path: Path, settings: StoreSettings, clip: ClipModel) -> tuple[Any, Mapping[str, int]]:
        """The head of earlier weights and its sizes; ``clip`` takes their text tower over.

        TokenBinder's weights have no head of this kind: it then starts from their text tower as from any other.
        """
        if method_of(path) == "token-binder":
            other = TokenBinderWeights.load(path)
            other.kind.require(settings, path)
            self._take_text(other.text, clip, path)
            return untrained_head(clip, settings, self.config)
        start = HeadWeights.load(path)
        if start.method != self.config.method:
            raise UsageError(f"{path} has weights of {start.method}, the method to train is {self.config.method}")
        start.kind.require(settings, path)
        self._take_text(start.text, clip, path)
        return start.head(path), start.sizes

    def _take_text(self, text: Mapping[str, Tensor], clip: ClipModel, path: Path) -> None:
        if text:
            self._has_own_text = True
            clip.adopt_text_tower(text, path)

    def rate(self, name: str) -> float:
        """The text tower slower than the head; the logit scale is a part of CLIP and learns as the tower does."""
        if name.startswith(_STEM):
            return 0.0
        is_of_clip = name.startswith("text.") or name == "head.logit_scale"
        return self.config.text_learning_rate if is_of_clip else self.config.learning_rate

    def expect(self, coming: Iterable[Positions]) -> None:
        """Nothing: features are read when they are needed."""

    def left_out(self) -> str:
        """Nothing."""
        return ""

    def weights(self, state: Mapping[str, Tensor]) -> HeadWeights:
        """What reranking reads."""
        text = part_of(state, "text.") if self._has_own_text else {}
        return HeadWeights(self.config.method, self.kind, self._sizes, part_of(state, "head."), text)

    # -- one step -----------------------------------------------------------------------------------------------------

    def gradients(self, batch: Batch, among: Positions) -> dict[str, float]:
        """See Objective."""
        queries = self.module.encode(batch.texts, self._is_lowered)
        if self.config.method == "eercf":
            return {"loss": self._own_loss(queries, batch)}
        leaf = QueryBatch(_leaf(queries.sentence), _leaf(queries.words), queries.word_mask)
        loss = self._contrast(leaf, batch)
        if queries.sentence.requires_grad:
            pairs = [(queries.sentence, leaf.sentence.grad), (queries.words, leaf.words.grad)]
            used = [(feature, gradient) for feature, gradient in pairs if gradient is not None]
            torch.autograd.backward([feature for feature, _ in used], [gradient for _, gradient in used])
        return {"loss": loss}

    def _own_loss(self, queries: QueryBatch, batch: Batch) -> float:
        """EERCF's, as released: a video with the very same text is a wrong one."""
        videos = self._tokens(batch.positions)
        loss = eercf_terms(self.module.head, queries, videos.tokens, videos.frame_mask).loss(EercfLossWeights())
        torch.autograd.backward(loss)
        return loss.item()

    def _contrast(self, queries: QueryBatch, batch: Batch) -> float:
        """The loss of the batch; its gradient is added up in the head and the queries."""
        blocks = self._blocks(batch.positions)
        if len(blocks) == 1:
            loss = self._loss(self._scores(queries, *blocks[0]).T, batch.texts)
            torch.autograd.backward(loss)
            return loss.item()
        with torch.no_grad():
            scores = torch.cat([self._scores(queries, block, seed) for block, seed in blocks]).T
        scores.requires_grad_()
        loss = self._loss(scores, batch.texts)
        torch.autograd.backward(loss)
        assert scores.grad is not None
        columns = torch.split(scores.grad, self.config.micro_videos, dim=1)
        for (block, seed), gradient in zip(blocks, columns, strict=True):
            torch.autograd.backward(self._scores(queries, block, seed), gradient.T)
        return loss.item()

    @torch.no_grad()
    def after_step(self) -> dict[str, float]:
        """The temperature is not let below 0.01."""
        scale: Tensor = self.module.head.logit_scale
        return {"scale": scale.clamp_(max=MAX_LOG_SCALE).exp().item()}

    def _loss(self, scores: Tensor, texts: list[str]) -> Tensor:
        """Of scores [B, B], rows = texts; a video with the very same text is neither right nor wrong."""
        if self.config.contrast in ON_COSINES:
            scores = scores / self.module.head.logit_scale.exp()
        return contrast(self.config.contrast, scores.masked_fill(same_text(texts).to(scores.device), -torch.inf))

    def _scores(self, queries: QueryBatch, positions: Positions, seed: int) -> Tensor:
        """Of all queries with the videos at c positions, [c, B]; noise and dropout are those of the seed."""
        head, videos = self.module.head, self._tokens(positions)
        torch.manual_seed(seed)
        if self.config.method in _DRAWING and head.sees_patches:
            count, num_frames, num_tokens, _ = videos.tokens.shape
            noise = torch.randn(count * num_frames, self.config.num_draws, num_tokens - 1, device=self.device)
            prepared = head.videos(videos.tokens, videos.frame_mask, noise)
        else:
            prepared = head.videos(videos.tokens, videos.frame_mask)
        scores: Tensor = head.score(head.texts(queries)[None], prepared)
        return scores

    def _blocks(self, positions: Positions) -> list[tuple[Positions, int]]:
        """Some videos at a time, each time with a seed for the noise of both passes."""
        size = self.config.micro_videos
        parts = [positions[start : start + size] for start in range(0, len(positions), size)]
        return list(zip(parts, torch.randint(_MAX_SEED, (len(parts),)).tolist(), strict=True))

    def _tokens(self, positions: Positions) -> RawTokens:
        return self.corpus.raw_tokens(positions, with_patches=self.module.head.sees_patches).to(self.device)

    @property
    def _is_lowered(self) -> bool:
        """The text tower alone: a head divides cosines by 0.01, which bfloat16 has no digits for."""
        precision = self.config.precision
        return precision == "bfloat16" or (precision == "auto" and self.device.type == "cuda")

    # -- validation ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def places(self, batch: Batch, among: Positions) -> Tensor:
        """See Objective: the head re-orders the best K of the broad view, as reranking does."""
        pooled = self._pooled[among]
        own = torch.searchsorted(torch.from_numpy(among), torch.from_numpy(batch.positions)).to(self.device)
        reranker = self._reranker(self.module.head)
        found = []
        for part in _parts(len(batch.texts)):
            queries = self.module.encode(batch.texts[part])
            cosines = normalize(queries.sentence, dim=-1) @ pooled.T
            right = own[part, None]
            broad = (cosines > cosines.gather(1, right)).sum(dim=1)
            top = cosines.sort(dim=1, descending=True, stable=True).indices[:, : self.config.num_candidates]
            distinct, index = torch.unique(top.cpu(), return_inverse=True)
            videos = self._tokens(among[distinct.numpy()])
            scores = reranker.rank(
                queries, CandidateBatch(videos.tokens, None, videos.frame_mask, index, cosines.gather(1, top))
            )
            is_right = top == right
            better = (scores > scores.masked_fill(~is_right, -torch.inf).amax(dim=1, keepdim=True)).sum(dim=1)
            found.append(torch.stack([broad, torch.where(is_right.any(dim=1), better, broad)], dim=1))
        return torch.cat(found)

    def remarks(self, positions: Positions) -> dict[str, float]:
        """Nothing."""
        return {}


def _leaf(features: Tensor) -> Tensor:
    return features.detach().requires_grad_()


def _parts(number: int) -> Iterator[slice]:
    return (slice(start, min(start + _VALIDATION_PART, number)) for start in range(0, number, _VALIDATION_PART))
