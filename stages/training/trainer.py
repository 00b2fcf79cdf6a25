"""The training loop: steps, validation, early stop, and a state from which it goes on exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import normalize

from index_store.settings import StoreSettings
from stages.models.clip import ClipModel
from stages.rerankers.fusion import FusionConfig, VideoTokens
from stages.rerankers.token_binder import FeatureKind, TokenBinderWeights
from stages.training.config import TrainConfig
from stages.training.journal import Journal
from stages.training.lists import Batch, Lists, draw_batch, top_lists
from stages.training.model import TokenBinderModel
from stages.training.pairs import PairCorpus
from stages.training.state import load_state, save_state

MAX_VALIDATION_QUERIES = 1000
_GRADIENT_NORM = 1.0
_VALIDATION_PART = 16


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


class Trainer:
    """Trains TokenBinder on cached features: the same seed, data, device and threads give the same weights."""

    def __init__(
        self,
        settings: StoreSettings,
        clip: ClipModel,
        corpus: PairCorpus,
        config: TrainConfig,
        device: torch.device,
        start: TokenBinderWeights | None = None,
    ) -> None:
        """``start``: earlier weights for features of this kind; their fusion network counts where it has this form."""
        self.config, self.corpus, self.device = config, corpus, device
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
        self.model = TokenBinderModel(clip, fusion, config.seed, start, config.precision).to(device)
        self.train_on, self.validate_on = corpus.split(config.validation, config.seed)
        self.pooled = corpus.pooled.to(device)
        self.num_steps = max(1, math.ceil(config.epochs * len(self.train_on) / config.batch_size))
        self.optimiser = self._optimiser()
        self.step = 0
        self.best_step = 0
        self.best: dict[str, Tensor] = {}
        self.first_validation: Validation | None = None
        self.best_validation: Validation | None = None

    def run(self, journal: Journal, state: Path, on_step: Callable[[int], object]) -> TrainReport:
        """Train to the end, or until no evaluation was better for a while. ``state``: where to go on from, and to.

        ``on_step`` is told how many steps were done; what it raises ends the run, which goes on from ``state`` later.
        """
        if state.exists():
            load_state(state, self)
            journal.cut(self.step)
            on_step(self.step)
        else:
            journal.cut(-1)
            self._validate(journal)
        try:
            while self.step < self.num_steps and not self._has_stalled():
                journal.add("step", self.step + 1, **self._train_step())
                self.step += 1
                if self.step % self.config.evaluate_every == 0 or self.step == self.num_steps:
                    self._validate(journal)
                    save_state(state, self)
                on_step(1)
        except KeyboardInterrupt:
            save_state(state, self)
            raise
        return TrainReport(
            self.step,
            self.num_steps,
            self.step < self.num_steps,
            self.best_step,
            self.first_validation,
            self.best_validation,
        )

    def weights(self) -> TokenBinderWeights:
        """The best weights so far; the present ones without validation videos."""
        state = self.best or self.model.state_dict()
        text = {name.removeprefix("text."): value for name, value in state.items() if name.startswith("text.")}
        fusion = {name.removeprefix("fusion."): value for name, value in state.items() if name.startswith("fusion.")}
        scale = float(state["log_scale"].exp().clamp(max=100.0))
        trained_text = text if self.config.text_learning_rate else {}
        return TokenBinderWeights(self.kind, self.model.fusion.config, scale, state["indicators"], trained_text, fusion)

    # -- one step -----------------------------------------------------------------------------------------------------

    def _train_step(self) -> dict[str, float]:
        config = self.config
        factor = learning_rate_factor(self.step, self.num_steps, config.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        torch.manual_seed(config.seed * 1_000_003 + self.step)  # of the Gumbel noise
        self.model.train()
        self.optimiser.zero_grad(set_to_none=True)
        batch = draw_batch(self.corpus, self.train_on, config.batch_size, config.neighbours, config.seed, self.step)
        indicators = self.model.encode(batch.texts)
        broad_loss = self.model.broad_loss(
            indicators, self.pooled[batch.positions], _same_text(batch.texts).to(self.device)
        )
        # The focused view's gradient is gathered on a copy, list by list, and then goes through the text tower once.
        leaf = indicators.detach().requires_grad_()
        measured = self._focus(batch, leaf)
        torch.autograd.backward([broad_loss, indicators], [torch.ones_like(broad_loss), leaf.grad])
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), _GRADIENT_NORM)
        self.optimiser.step()
        return {"broad_loss": broad_loss.item(), **measured, "scale": self.model.scale.item(), "norm": norm.item()}

    def _focus(self, batch: Batch, indicators: Tensor) -> dict[str, float]:
        """Add up the gradient of (l_focus,t + l_focus,v) / 2; returns the losses and how often the first is right."""
        number = self.config.num_candidates
        sentences = normalize(indicators[:, 0].detach(), dim=-1)
        own = torch.from_numpy(np.searchsorted(self.train_on, batch.positions))
        t2v = top_lists(sentences @ self.pooled[self.train_on].T, own, number)
        measured = self._focus_t2v(indicators, Lists(self.train_on[t2v.candidates], t2v.target))
        if self.config.v2t:
            cosines = self.pooled[batch.positions] @ sentences.T
            measured |= self._focus_v2t(indicators, batch, top_lists(cosines, torch.arange(len(sentences)), number))
        return measured

    def _focus_t2v(self, indicators: Tensor, lists: Lists) -> dict[str, float]:
        distinct, inverse = np.unique(lists.candidates, return_inverse=True)
        places = torch.from_numpy(inverse.reshape(lists.candidates.shape)).to(self.device)
        videos = self._tokens(distinct)
        total = right = broad_right = 0.0
        for part in self._parts(len(places)):
            chosen = places[part]
            cosines = _cosines(indicators[part, :1], self.pooled[torch.from_numpy(distinct)][chosen])
            tokens = VideoTokens(videos.tokens[0, chosen], videos.frame_mask[0, chosen])
            scores = self.model.focused_scores(indicators[part, None], tokens, cosines)
            target = lists.target[part].to(self.device)
            loss = functional.cross_entropy(scores, target, reduction="sum") / (2 * len(places))
            loss.backward()  # type: ignore[no-untyped-call]
            total += 2 * loss.item()
            right += int((scores.argmax(dim=1) == target).sum())
            broad_right += int((cosines.argmax(dim=1) == target).sum())
        return {"focused_loss": total, "focused_first": right / len(places), "broad_first": broad_right / len(places)}

    def _focus_v2t(self, indicators: Tensor, batch: Batch, lists: Lists) -> dict[str, float]:
        videos = self._tokens(batch.positions)
        places = torch.from_numpy(lists.candidates).to(self.device)
        total = 0.0
        for part in self._parts(len(places)):
            chosen = indicators[places[part]]
            cosines = _cosines(chosen[:, :, 0], self.pooled[batch.positions[part], None])
            tokens = VideoTokens(videos.tokens[0, part, None], videos.frame_mask[0, part, None])
            scores = self.model.focused_scores(chosen, tokens, cosines)
            target = lists.target[part].to(self.device)
            loss = functional.cross_entropy(scores, target, reduction="sum") / (2 * len(places))
            loss.backward()  # type: ignore[no-untyped-call]
            total += 2 * loss.item()
        return {"focused_loss_v2t": total}

    def _parts(self, number: int) -> list[slice]:
        size = self.config.micro_lists
        return [slice(start, min(start + size, number)) for start in range(0, number, size)]

    def _tokens(self, positions: NDArray[np.int64]) -> VideoTokens:
        videos = self.corpus.tokens(positions)
        return VideoTokens(videos.tokens.to(self.device), videos.frame_mask.to(self.device))

    def _optimiser(self) -> torch.optim.Optimizer:
        """AdamW; the text tower slower than what is new, no decay of biases, norms, scales and embeddings."""
        config = self.config
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, parameter in self.model.named_parameters():
            rate = config.text_learning_rate if name.startswith("text.") else config.learning_rate
            parameter.requires_grad_(rate > 0)
            if rate > 0:
                is_matrix = parameter.ndim > 1 and not name.endswith(("indicators", "time", "place", "rank"))
                groups.setdefault((rate, config.weight_decay if is_matrix else 0.0), []).append(parameter)
        return torch.optim.AdamW(
            [{"params": found, "peak": rate, "weight_decay": decay} for (rate, decay), found in groups.items()],
            lr=config.learning_rate,
            betas=(0.9, 0.98),
        )

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
        """The first caption of every validation video asks for it among all videos, as a user's query would."""
        self.model.eval()
        positions = self.validate_on[:MAX_VALIDATION_QUERIES]
        texts = [self.corpus.captions[position][0] for position in positions]
        indicators = torch.cat([self.model.encode(texts[part]) for part in self._parts(len(texts))])
        own = torch.from_numpy(positions).to(self.device)
        broad = torch.empty(len(texts), dtype=torch.long)
        focused = torch.empty(len(texts), dtype=torch.long)
        for start in range(0, len(texts), _VALIDATION_PART):
            part = slice(start, start + _VALIDATION_PART)
            cosines = normalize(indicators[part, 0], dim=-1) @ self.pooled.T
            broad[part] = (cosines > cosines.gather(1, own[part, None])).sum(dim=1).cpu()
            top = cosines.sort(dim=1, descending=True, stable=True).indices[:, : self.config.num_candidates]
            distinct, inverse = np.unique(top.cpu().numpy(), return_inverse=True)
            videos = self._tokens(distinct)
            chosen = torch.from_numpy(inverse.reshape(top.shape)).to(self.device)
            tokens = VideoTokens(videos.tokens[0, chosen], videos.frame_mask[0, chosen])
            scores = self.model.focused_scores(indicators[part, None], tokens, cosines.gather(1, top))
            is_right = top == own[part, None]
            better = (scores > scores.masked_fill(~is_right, -torch.inf).amax(dim=1, keepdim=True)).sum(dim=1)
            focused[part] = torch.where(is_right.any(dim=1), better, broad[part].to(better.device)).cpu()
        return Validation(_recall(broad), _recall(focused), (1 / (1 + focused.double())).mean().item())

    @torch.inference_mode()
    def indicator_cosine(self) -> float:
        """Mean cosine between different ones of I_2..I_M over some captions: indicators that are alike ask alike."""
        positions = self.validate_on[:64] if len(self.validate_on) else self.train_on[:64]
        found = normalize(self.model.encode([self.corpus.captions[p][0] for p in positions])[:, 1:], dim=-1)
        number = found.shape[1]
        cosines = (found @ found.transpose(1, 2)).mean(dim=0)
        return float((cosines.sum() - cosines.diagonal().sum()) / max(1, number * (number - 1)))


def learning_rate_factor(step: int, num_steps: int, warmup: float) -> float:
    """Linear rise over the first ``warmup`` of the steps, then half a cosine down to 2 %."""
    rising = max(1.0, warmup * num_steps)
    if step + 1 < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1.0, num_steps - rising)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, done))))


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
