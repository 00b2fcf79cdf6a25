"""TokenBinder's training: the broad view on the whole batch, the focused view on candidate lists of its queries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import normalize

from index_store.settings import StoreSettings
from stages.models.clip import ClipModel
from stages.rerankers.fusion import FusionConfig, VideoTokens
from stages.rerankers.token_binder import FeatureKind, TokenBinderWeights, part_of
from stages.training.frames import FrameReader, VideoFiles
from stages.training.lists import Batch, same_text, top_lists
from stages.training.model import TokenBinderModel
from stages.training.objective import Positions, Setup
from stages.training.videos import CachedVideos, StepVideos, rows_at

MAX_VALIDATION_QUERIES = 1000
MAX_VALIDATION_VIDEOS = 200
"""Where frames are read: they are decoded and their tokens held at once."""
_VALIDATION_PART = 16


class TokenBinderObjective:
    """Text tower, indicators and fusion network; with files of videos also the image tower."""

    def __init__(
        self,
        setup: Setup,
        settings: StoreSettings,
        clip: ClipModel,
        start: TokenBinderWeights | None = None,
        files: VideoFiles | None = None,
    ) -> None:
        """``start``: earlier weights for features of this kind; their fusion network counts where it has this form.

        With ``files`` the image tower learns too, on their frames.
        """
        config = setup.config
        self.config, self.corpus, self.device, self.ranks = config, setup.corpus, setup.device, setup.ranks
        self.kind = FeatureKind.of(settings)
        fusion = FusionConfig(
            width=settings.embed_dim,
            num_places=settings.model.tokens_per_frame if settings.tokens.knows_places else 0,
            num_indicators=config.num_indicators,
            num_blocks=config.num_blocks,
            num_heads=config.num_heads,
            head=config.head,
            num_candidates=config.num_candidates,
            is_listwise=config.is_listwise,
            gumbel=config.gumbel,
            hidden=max(64, settings.embed_dim // 4),
        )
        keep = settings.tokens.rule if files else None
        told = (config.precision, keep, config.contrast)
        self.module = TokenBinderModel(clip, fusion, config.seed, start, *told).to(self.device)
        self.frames = FrameReader(files, settings, self.device, self.ranks) if files else None
        """Where the image tower learns, what decodes for it; None: the features are what they are."""
        self._has_own_text = config.text_learning_rate > 0 or (start is not None and bool(start.text))
        self._pooled = self.corpus.pooled.to(self.device)

    @property
    def reads_frames(self) -> bool:
        """See Objective."""
        return self.frames is not None

    @property
    def most_validated(self) -> int:
        """See Objective."""
        return MAX_VALIDATION_VIDEOS if self.reads_frames else MAX_VALIDATION_QUERIES

    def rate(self, name: str) -> float:
        """The towers slower than what is new."""
        config = self.config
        towers = {"text": config.text_learning_rate, "image": config.image_learning_rate}
        return towers.get(name.split(".")[0], config.learning_rate)

    def expect(self, coming: Iterable[Positions]) -> None:
        """Begin to decode."""
        if self.frames is not None:
            self.frames.start(coming)

    def left_out(self) -> str:
        """Videos that could not be decoded."""
        return "" if self.frames is None else self.frames.losses()

    def weights(self, state: Mapping[str, Tensor]) -> TokenBinderWeights:
        """What reranking reads."""
        scale = float(state["log_scale"].exp().clamp(max=100.0))
        text = part_of(state, "text.") if self._has_own_text else {}
        config, fusion = self.module.fusion.config, part_of(state, "fusion.")
        return TokenBinderWeights(self.kind, config, scale, state["indicators"], text, fusion)

    # -- one step -----------------------------------------------------------------------------------------------------

    def gradients(self, batch: Batch, among: Positions) -> dict[str, float]:
        """See Objective: those of both views' losses."""
        ranks = self.ranks
        videos = self._videos(batch, among, max(2, ranks.size))
        texts = videos.batch.texts
        part = ranks.part(len(texts))
        indicators = self.module.encode(texts[part])
        # The gradient is gathered on a copy of all ranks' indicators, list by list; it goes through the tower once.
        leaf = ranks.together(indicators, part, len(texts)).requires_grad_()
        measured = self._focus(videos, leaf) if self.config.focused else {}
        same = same_text(texts).to(self.device)
        broad_loss = self.module.broad_loss(leaf, videos.pooled[torch.from_numpy(videos.own)], same)
        torch.autograd.backward(broad_loss / ranks.size)  # every rank has all of it, and gradients are added up
        assert leaf.grad is not None
        torch.autograd.backward(indicators, ranks.add_up(leaf.grad)[part])
        videos.backward()
        ranks.add_up_gradients(self.module.parameters())
        return {"broad_loss": broad_loss.item(), **measured}

    def after_step(self) -> dict[str, float]:
        """Nothing is out of bounds: the module clamps its temperature where it uses it."""
        return {"scale": self.module.scale.item()}

    def _videos(self, batch: Batch, candidates: Positions, at_least: int) -> StepVideos:
        """What a batch is compared with: the videos at the candidates' positions, or itself where frames are read."""
        if self.frames is not None:
            return self.frames.read(batch, self.module, self.config.micro_frames, at_least)
        return CachedVideos(self.corpus, candidates, batch, self._pooled[candidates])

    def _focus(self, videos: StepVideos, indicators: Tensor) -> dict[str, float]:
        """Add up the gradient of (l_focus,t + l_focus,v) / 2; returns the losses and how often the first is right.

        The gradient is that of this rank's lists, what is returned is about the lists of all ranks.
        """
        number = self.config.num_candidates
        sentences, pooled = normalize(indicators[:, 0].detach(), dim=-1), videos.pooled.detach()
        rows = np.arange(len(sentences))[self.ranks.part(len(sentences))]
        right = videos.own[rows]
        t2v = top_lists(sentences[rows] @ pooled.T, torch.from_numpy(right), number)
        loss, first, broad_first = self._focus_lists(videos, indicators, rows[:, None], t2v.candidates, t2v.target)
        measured = {"focused_loss": loss, "focused_first": first, "broad_first": broad_first}
        if self.config.v2t:
            v2t = top_lists(pooled[right] @ sentences.T, torch.from_numpy(rows), number)
            loss, _, _ = self._focus_lists(videos, indicators, v2t.candidates, right[:, None], v2t.target)
            measured["focused_loss_v2t"] = loss
        total = self.ranks.add_up(torch.tensor(list(measured.values()), dtype=torch.float64, device=self.device))
        return dict(zip(measured, total.tolist(), strict=True))

    def _focus_lists(
        self,
        videos: StepVideos,
        indicators: Tensor,
        texts: NDArray[np.int64],
        candidates: NDArray[np.int64],
        targets: Tensor,
    ) -> tuple[float, float, float]:
        """Loss, share of lists whose right one is first, and that of the broad view, all in parts of the whole batch.

        indicators [B, M, D]; G lists of one text [G, 1] and videos [G, K], or of texts [G, K] and one video [G, 1].
        """
        loss_sum = right = broad_right = 0.0
        batch_size = len(indicators)
        source, places = videos.tokens(candidates)
        pooled = videos.pooled.detach()
        for part in self._parts(len(places)):
            asked = rows_at(indicators, torch.from_numpy(texts[part]))
            cosines = _cosines(asked[:, :, 0], pooled[torch.from_numpy(candidates[part])])
            chosen = places[part]
            where = None if source.places is None else source.places[0, chosen]
            tokens = VideoTokens(rows_at(source.tokens[0], chosen), source.frame_mask[0, chosen], where)
            scores = self.module.focused_scores(asked, tokens, cosines)
            target = targets[part].to(self.device)
            loss = functional.cross_entropy(scores, target, reduction="sum") / (2 * batch_size)
            loss.backward()  # type: ignore[no-untyped-call]
            loss_sum += 2 * loss.item()
            right += int((scores.argmax(dim=1) == target).sum())
            broad_right += int((cosines.argmax(dim=1) == target).sum())
        return loss_sum, right / batch_size, broad_right / batch_size

    def _parts(self, number: int) -> list[slice]:
        size = self.config.micro_lists
        return [slice(start, min(start + size, number)) for start in range(0, number, size)]

    # -- validation ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def places(self, batch: Batch, among: Positions) -> Tensor:
        """See Objective; where frames are read, among the videos of the batch."""
        videos = self._videos(batch, among, 1)
        number = len(videos.batch.texts)
        own = self.ranks.part(number)
        rows = np.arange(number)[own]
        found = self._places(videos, rows) if len(rows) else torch.zeros(0, 2, dtype=torch.long)
        return self.ranks.together(found.to(self.device), own, number)

    def _places(self, videos: StepVideos, rows: NDArray[np.int64]) -> Tensor:
        """How many videos come before those of these captions [n]: int64 [n, 2], in the broad and the focused view."""
        texts = [videos.batch.texts[row] for row in rows]
        indicators = torch.cat([self.module.encode(texts[part]) for part in self._parts(len(texts))])
        own = torch.from_numpy(videos.own[rows]).to(self.device)
        pooled = videos.pooled
        broad = torch.empty(len(texts), dtype=torch.long)
        focused = torch.empty(len(texts), dtype=torch.long)
        for start in range(0, len(texts), _VALIDATION_PART):
            part = slice(start, start + _VALIDATION_PART)
            cosines = normalize(indicators[part, 0], dim=-1) @ pooled.T
            broad[part] = (cosines > cosines.gather(1, own[part, None])).sum(dim=1).cpu()
            top = cosines.sort(dim=1, descending=True, stable=True).indices[:, : self.config.num_candidates]
            source, places = videos.tokens(top.cpu().numpy())
            where = None if source.places is None else source.places[0, places]
            tokens = VideoTokens(source.tokens[0, places], source.frame_mask[0, places], where)
            scores = self.module.focused_scores(indicators[part, None], tokens, cosines.gather(1, top))
            is_right = top == own[part, None]
            better = (scores > scores.masked_fill(~is_right, -torch.inf).amax(dim=1, keepdim=True)).sum(dim=1)
            focused[part] = torch.where(is_right.any(dim=1), better, broad[part].to(better.device)).cpu()
        return torch.stack([broad, focused], dim=1)

    def remarks(self, positions: Positions) -> dict[str, float]:
        """How alike the indicators are."""
        return {"indicator_cosine": self.indicator_cosine(positions)}

    @torch.inference_mode()
    def indicator_cosine(self, positions: Positions) -> float:
        """Mean cosine between different ones of I_2..I_M over captions of some of the videos: those alike ask alike."""
        found = normalize(self.module.encode([self.corpus.captions[p][0] for p in positions[:64]])[:, 1:], dim=-1)
        number = found.shape[1]
        cosines = (found @ found.transpose(1, 2)).mean(dim=0)
        return float((cosines.sum() - cosines.diagonal().sum()) / max(1, number * (number - 1)))


def _cosines(sentences: Tensor, pooled: Tensor) -> Tensor:
    """[G, K] of sentences [G, 1 or K, D], any length, and pooled [G, K or 1, D], unit length."""
    cosines: Tensor = (normalize(sentences, dim=-1) * pooled).sum(dim=-1)
    return cosines
