"""The training loop: steps, validation, early stop, and a state from which it goes on exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import normalize

from index_store.errors import UsageError
from index_store.settings import StoreSettings
from stages.models.clip import ClipModel
from stages.rerankers.fusion import FusionConfig, VideoTokens
from stages.rerankers.token_binder import FeatureKind, TokenBinderWeights, part_of
from stages.training.config import TrainConfig
from stages.training.frames import FrameReader, VideoFiles
from stages.training.journal import Journal
from stages.training.lists import Batch, draw_batch, top_lists
from stages.training.model import TokenBinderModel
from stages.training.optimisers import SCHEDULES, is_decayed, make_optimiser
from stages.training.pairs import PairCorpus
from stages.training.ranks import Ranks
from stages.training.state import load_state, save_state
from stages.training.videos import CachedVideos, StepVideos, rows_at

MAX_VALIDATION_QUERIES = 1000
MAX_VALIDATION_VIDEOS = 200
"""Where frames are read: they are decoded and their tokens held at once."""
_GRADIENT_NORM = 1.0
_VALIDATION_PART = 16
_NEXT_RANK = 1_000_000_007
"""Between the seeds of two ranks' noise."""


@dataclass(frozen=True, slots=True)
class Validation:
    """How well the validation videos are found among all videos by their captions."""

    broad: dict[str, float]
    """R@1, R@5, R@10 in percent."""
    focused: dict[str, float]
    reciprocal_rank: float
    """Mean of 1 / focused rank: what the best weights are chosen by."""


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a run of training did."""

    steps: int
    planned_steps: int
    stopped_early: bool
    best_step: int
    first: Validation | None
    """Before the first step."""
    best: Validation | None
    """None without validation videos; then the last weights are kept."""
    interrupted: bool
    """Asked to stop before the end: run again, it goes on."""


class Trainer:
    """Trains TokenBinder on cached features or on frames. Seed, data, device and threads determine the weights.

    Several ranks part the texts and the candidate lists of every step among them and hold the same weights. These are
    those of one process but for the rounding of sums; with Gumbel noise, for the noise too.
    """

    def __init__(
        self,
        settings: StoreSettings,
        clip: ClipModel,
        corpus: PairCorpus,
        config: TrainConfig,
        device: torch.device,
        start: TokenBinderWeights | None = None,
        ranks: Ranks | None = None,
        files: VideoFiles | None = None,
    ) -> None:
        """``start``: earlier weights for features of this kind; their fusion network counts where it has this form.

        With ``files`` the image tower learns too, on their frames. Raises UsageError for batches of fewer captions than
        there are ranks.
        """
        self.config, self.corpus, self.device = config, corpus, device
        self.ranks = ranks or Ranks()
        self.kind = FeatureKind.of(settings)
        fusion = FusionConfig(
            width=settings.embed_dim,
            num_places=settings.token_shape[1] if settings.tokens.keep == "all" else 0,
            num_indicators=config.num_indicators,
            num_blocks=config.num_blocks,
            num_heads=config.num_heads,
            head=config.head,
            num_candidates=config.num_candidates,
            is_listwise=config.is_listwise,
            gumbel=config.gumbel,
            hidden=max(64, settings.embed_dim // 4),
        )
        keep = settings.tokens.keep if files else None
        told = (config.precision, keep, config.contrast)
        self.model = TokenBinderModel(clip, fusion, config.seed, start, *told).to(device)
        self.frames = FrameReader(files, settings, device, self.ranks) if files else None
        """Where the image tower learns, what decodes for it; None: the features are what they are."""
        self.train_on, self.validate_on = corpus.split(config.validation, config.seed, config.validation_run)
        smallest = min(config.batch_size, len(self.train_on))
        if smallest < self.ranks.size:
            raise UsageError(f"a batch of {smallest} captions cannot be parted among {self.ranks.size} processes")
        self.pooled = corpus.pooled.to(device)
        num_pairs = len(self.train_on)
        if config.epoch_of == "captions":
            num_pairs = sum(len(corpus.captions[position]) for position in self.train_on)
        self.num_steps = max(1, math.ceil(config.epochs * num_pairs / config.batch_size))
        self.optimiser = self._optimiser()
        self.step = 0
        self.best_step = 0
        self.best: dict[str, Tensor] = {}
        self.first_validation: Validation | None = None
        self.best_validation: Validation | None = None

    def run(
        self,
        journal: Journal,
        state: Path,
        on_step: Callable[[int], object],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> TrainReport:
        """Train to the end, or until no evaluation was better for a while. ``state``: where to go on from, and to.

        ``on_step`` is told how many steps were done; what it raises ends the run, which goes on from ``state`` later.
        ``should_stop`` is asked between two steps: the state is then kept, and the report says so.
        """
        self._begin(journal, state, on_step)
        interrupted = False
        while self.step < self.num_steps and not self._has_stalled():
            if interrupted := self.ranks.any(should_stop(), self.device):
                self._save(state)
                break
            measured = self._train_step()
            self.step += 1
            if self.ranks.is_first:
                journal.add("step", self.step, **measured)
            if self._is_evaluated_after(self.step):
                self._validate(journal)
                self._save(state)
            on_step(1)
        stopped_early = self.step < self.num_steps and not interrupted
        validations = self.first_validation, self.best_validation
        return TrainReport(self.step, self.num_steps, stopped_early, self.best_step, *validations, interrupted)

    def _begin(self, journal: Journal, state: Path, on_step: Callable[[int], object]) -> None:
        goes_on = self.ranks.any(state.exists(), self.device)
        if goes_on:
            load_state(state, self)
        if self.ranks.is_first:
            journal.cut(self.step if goes_on else -1)
        if self.frames is not None:
            self.frames.start(self._coming(with_first=not goes_on))
        if goes_on:
            on_step(self.step)
        else:
            self._validate(journal)

    def _coming(self, with_first: bool) -> Iterator[NDArray[np.int64]]:
        """The positions of what will be read, step by step; ``with_first``: what is validated before the first one."""
        if with_first:
            yield self._validation_batch().positions
        for step in range(self.step, self.num_steps):
            yield self._batch(step).positions
            if self._is_evaluated_after(step + 1):
                yield self._validation_batch().positions

    def _is_evaluated_after(self, step: int) -> bool:
        return step % self.config.evaluate_every == 0 or step == self.num_steps

    def _save(self, state: Path) -> None:
        if self.ranks.is_first:
            save_state(state, self)

    def weights(self) -> TokenBinderWeights:
        """The best weights so far; the present ones without validation videos."""
        state = self._chosen()
        scale = float(state["log_scale"].exp().clamp(max=100.0))
        text = part_of(state, "text.") if self.config.text_learning_rate else {}
        config, fusion = self.model.fusion.config, part_of(state, "fusion.")
        return TokenBinderWeights(self.kind, config, scale, state["indicators"], text, fusion)

    def clip_weights(self) -> dict[str, Tensor]:
        """The image-text model that belongs to ``weights``, by the keys of a weight file, where frames were read."""
        return self.model.clip_weights(self._chosen())

    def _chosen(self) -> dict[str, Tensor]:
        return self.best or self.model.state_dict()

    # -- one step -----------------------------------------------------------------------------------------------------

    def _train_step(self) -> dict[str, float]:
        config, ranks = self.config, self.ranks
        for group in self.optimiser.param_groups:
            group["lr"] = SCHEDULES[config.schedule](group["peak"], self.step, self.num_steps, config.warmup)
        torch.manual_seed(config.seed * 1_000_003 + self.step + _NEXT_RANK * ranks.rank)  # of the Gumbel noise
        self.model.train()
        self.optimiser.zero_grad(set_to_none=True)
        videos = self._videos(self._batch(self.step), self.train_on, max(2, ranks.size))
        texts = videos.batch.texts
        part = ranks.part(len(texts))
        indicators = self.model.encode(texts[part])
        # The gradient is gathered on a copy of all ranks' indicators, list by list; it goes through the tower once.
        leaf = ranks.together(indicators, part, len(texts)).requires_grad_()
        measured = self._focus(videos, leaf) if config.focused else {}
        same = _same_text(texts).to(self.device)
        broad_loss = self.model.broad_loss(leaf, videos.pooled[torch.from_numpy(videos.own)], same)
        torch.autograd.backward(broad_loss / ranks.size)  # every rank has all of it, and gradients are added up
        assert leaf.grad is not None
        torch.autograd.backward(indicators, ranks.add_up(leaf.grad)[part])
        videos.backward()
        ranks.add_up_gradients(self.model.parameters())
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), _GRADIENT_NORM)
        self.optimiser.step()
        return {"broad_loss": broad_loss.item(), **measured, "scale": self.model.scale.item(), "norm": norm.item()}

    def _batch(self, step: int) -> Batch:
        config = self.config
        return draw_batch(self.corpus, self.train_on, config.batch_size, config.neighbours, config.seed, step)

    def _videos(self, batch: Batch, candidates: NDArray[np.int64], at_least: int) -> StepVideos:
        """What a batch is compared with: the videos at the candidates' positions, or itself where frames are read."""
        if self.frames is not None:
            return self.frames.read(batch, self.model, self.config.micro_frames, at_least)
        return CachedVideos(self.corpus, candidates, batch, self.pooled[candidates])

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
            tokens = VideoTokens(rows_at(source.tokens[0], chosen), source.frame_mask[0, chosen])
            scores = self.model.focused_scores(asked, tokens, cosines)
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

    def _optimiser(self) -> torch.optim.Optimizer:
        """The towers slower than what is new; what decays is the optimiser's own rule."""
        config = self.config
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, parameter in self.model.named_parameters():
            tower = name.split(".")[0]
            rate = {"text": config.text_learning_rate, "image": config.image_learning_rate}.get(
                tower, config.learning_rate
            )
            parameter.requires_grad_(rate > 0)
            if rate > 0:
                decay = config.weight_decay if is_decayed(config.optimiser, name, parameter) else 0.0
                groups.setdefault((rate, decay), []).append(parameter)
        told = [{"params": found, "peak": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]
        return make_optimiser(config.optimiser, told, config.learning_rate)

    # -- validation ---------------------------------------------------------------------------------------------------

    def _has_stalled(self) -> bool:
        return self.step - self.best_step >= self.config.patience * self.config.evaluate_every and bool(self.best)

    def _validate(self, journal: Journal) -> None:
        """Measure, and keep the weights if they are the best so far."""
        if not len(self.validate_on):
            return
        started = time.monotonic()
        found = self.validation()
        if self.first_validation is None:
            self.first_validation = found
        if self.best_validation is None or found.reciprocal_rank > self.best_validation.reciprocal_rank:
            self.best_validation, self.best_step = found, self.step
            self.best = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        seconds = time.monotonic() - started
        if self.ranks.is_first:
            journal.add(
                "validation",
                self.step,
                broad=found.broad,
                focused=found.focused,
                reciprocal_rank=found.reciprocal_rank,
                indicator_cosine=self.indicator_cosine(),
                seconds=seconds,
            )

    @torch.inference_mode()
    def validation(self) -> Validation:
        """The first caption of every validation video asks for it among all videos, as a user's query would.

        Where frames are read, among the validation videos: the others would have to be decoded each time.
        """
        self.model.eval()
        videos = self._videos(self._validation_batch(), np.arange(len(self.corpus)), 1)
        number = len(videos.batch.texts)
        own = self.ranks.part(number)
        rows = np.arange(number)[own]
        found = self._places(videos, rows) if len(rows) else torch.zeros(0, 2, dtype=torch.long)
        broad, focused = self.ranks.together(found.to(self.device), own, number).cpu().T
        return Validation(_recall(broad), _recall(focused), (1 / (1 + focused.double())).mean().item())

    def _validation_batch(self) -> Batch:
        positions = self.validate_on[: MAX_VALIDATION_QUERIES if self.frames is None else MAX_VALIDATION_VIDEOS]
        return Batch(positions, [self.corpus.captions[position][0] for position in positions])

    def _places(self, videos: StepVideos, rows: NDArray[np.int64]) -> Tensor:
        """How many videos come before those of these captions [n]: int64 [n, 2], in the broad and the focused view."""
        texts = [videos.batch.texts[row] for row in rows]
        indicators = torch.cat([self.model.encode(texts[part]) for part in self._parts(len(texts))])
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
            tokens = VideoTokens(source.tokens[0, places], source.frame_mask[0, places])
            scores = self.model.focused_scores(indicators[part, None], tokens, cosines.gather(1, top))
            is_right = top == own[part, None]
            better = (scores > scores.masked_fill(~is_right, -torch.inf).amax(dim=1, keepdim=True)).sum(dim=1)
            focused[part] = torch.where(is_right.any(dim=1), better, broad[part].to(better.device)).cpu()
        return torch.stack([broad, focused], dim=1)

    @torch.inference_mode()
    def indicator_cosine(self) -> float:
        """Mean cosine between different ones of I_2..I_M over some captions: indicators that are alike ask alike."""
        positions = self.validate_on[:64] if len(self.validate_on) else self.train_on[:64]
        found = normalize(self.model.encode([self.corpus.captions[p][0] for p in positions])[:, 1:], dim=-1)
        number = found.shape[1]
        cosines = (found @ found.transpose(1, 2)).mean(dim=0)
        return float((cosines.sum() - cosines.diagonal().sum()) / max(1, number * (number - 1)))


def _cosines(sentences: Tensor, pooled: Tensor) -> Tensor:
    """[G, K] of sentences [G, 1 or K, D], any length, and pooled [G, K or 1, D], unit length."""
    cosines: Tensor = (normalize(sentences, dim=-1) * pooled).sum(dim=-1)
    return cosines


def _same_text(texts: list[str]) -> Tensor:
    """Bool [B, B]: other rows with the very same sentence, which are not wrong answers."""
    same = torch.tensor([[one == other for other in texts] for one in texts])
    return same & ~torch.eye(len(texts), dtype=torch.bool)


def _recall(places: Tensor) -> dict[str, float]:
    return {f"R@{cut}": 100 * (places < cut).double().mean().item() for cut in (1, 5, 10)}
