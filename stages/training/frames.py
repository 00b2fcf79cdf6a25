"""The videos of a batch from their files, with an image tower that learns.

The gradient is cached: all frames pass the tower without a graph, the losses give the gradient of their tokens, and the
frames pass once more in small parts, each with the gradient of its own tokens. Memory is that of one part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from index_store.errors import InputError
from index_store.settings import StoreSettings
from stages.decode_pool import DecodeResult, DecodeTask
from stages.errors import REASONS
from stages.lanes import uploaded
from stages.preprocess import Preprocessor
from stages.rerankers.fusion import VideoTokens
from stages.training.lists import Batch
from stages.training.model import TokenBinderModel
from stages.training.ranks import Ranks

if TYPE_CHECKING:
    from stages.extract import FrameSource

_CODES = tuple(REASONS)


@dataclass(frozen=True, slots=True)
class VideoFiles:
    """Where the frames of a corpus come from."""

    source: FrameSource
    paths: Sequence[Path]
    """Of each video of the corpus."""


class FrameReader:
    """Decodes this rank's part of the batches to come, ahead of them."""

    def __init__(self, files: VideoFiles, settings: StoreSettings, device: torch.device, ranks: Ranks) -> None:
        self._files, self._device, self._ranks = files, device, ranks
        self._preprocessor = Preprocessor(settings.model)
        self._shape = settings.token_shape
        self._results: Iterator[DecodeResult] = iter(())
        self.failed: dict[int, str] = {}
        """Position of each video that could not be decoded, of any rank, and the reason code."""

    def start(self, coming: Iterable[NDArray[np.int64]]) -> None:
        """Begin with the positions of what will be read, in that order."""
        own = (position for positions in coming for position in positions[self._ranks.part(len(positions))].tolist())
        self._results = self._files.source.map(DecodeTask(self._files.paths[position]) for position in own)

    def read(self, batch: Batch, model: TokenBinderModel, at_once: int, at_least: int) -> FrameVideos:
        """The next batch without the videos that cannot be decoded. ``at_once``: frames in the tower.

        Raises InputError when fewer videos than ``at_least`` are left.
        """
        number = len(batch.positions)
        part = self._ranks.part(number)
        own = [self._pixels(next(self._results)) for _ in batch.positions[part]]
        reasons = torch.tensor([_CODES.index(one) + 1 if isinstance(one, str) else 0 for one in own])
        codes = self._ranks.together(reasons.long().to(self._device), part, number).cpu().numpy()
        usable = codes == 0
        self.failed |= {int(batch.positions[row]): _CODES[codes[row] - 1] for row in np.flatnonzero(~usable)}
        if usable.sum() < at_least:
            raise InputError(f"{number - usable.sum()} of the {number} videos of a batch are lost; {self.losses()}")
        pixels = [one for one in own if not isinstance(one, str)]
        none = torch.empty(0, 3, self._preprocessor.size, self._preprocessor.size, dtype=torch.uint8)
        frames = FrameParts(torch.cat([none.to(self._device), *pixels]), tuple(len(one) for one in pixels), at_once)
        begin = int(usable[: part.start].sum())
        texts = [text for text, is_kept in zip(batch.texts, usable, strict=True) if is_kept]
        return FrameVideos(Batch(batch.positions[usable], texts), frames, begin, self._shape, model, self._ranks)

    def losses(self) -> str:
        """What is to be said of the videos that could not be decoded; empty when there are none."""
        if not self.failed:
            return ""
        position, reason = min(self.failed.items())
        return (
            f"videos that could not be decoded and were left out: {len(self.failed)} (first: "
            f"{self._files.paths[position]}: {reason}, {REASONS[reason]})"
        )

    def _pixels(self, result: DecodeResult) -> Tensor | str:
        """uint8 [n, 3, S, S] on the device, or the reason why there are none."""
        if result.frames is None:
            return result.error.reason_code if result.error else "no_frame"
        pixels = self._preprocessor(uploaded(torch.as_tensor(result.frames.frames), self._device))
        result.release()
        return pixels


@dataclass(frozen=True, slots=True, eq=False)
class FrameParts:
    """The frames of n videos, to be gone through in parts."""

    pixels: Tensor
    """uint8 [frames of all, 3, S, S]."""
    lengths: tuple[int, ...]
    """Frames of each video."""
    at_once: int

    def __iter__(self) -> Iterator[Tensor]:
        """Parts of at most ``at_once`` frames, none of them empty."""
        return iter(torch.split(self.pixels, self.at_once) if len(self.pixels) else ())


class FrameVideos:
    """B videos of one batch, each rank holding the pixels of its part and all the tokens of all. See StepVideos."""

    def __init__(
        self,
        batch: Batch,
        frames: FrameParts,
        begin: int,
        shape: tuple[int, int, int],
        model: TokenBinderModel,
        ranks: Ranks,
    ) -> None:
        """Encode the frames of this rank's videos, those from ``begin`` of the batch, and share the tokens.

        ``shape``: (F, P, D), one video's tokens.
        """
        self.batch = batch
        self.own = np.arange(len(batch.positions))
        self._frames, self._model, self._ranks = frames, model, ranks
        self._part = slice(begin, begin + len(frames.lengths))
        device = frames.pixels.device
        own_mask = torch.arange(shape[0], device=device) < torch.tensor(frames.lengths, device=device)[:, None]
        tokens = torch.zeros(len(frames.lengths), *shape, device=device)
        places = torch.zeros(len(frames.lengths), *shape[:2], dtype=torch.long, device=device)
        with torch.no_grad():
            rows = [model.frame_tokens(part) for part in frames]
        if rows:
            tokens[own_mask] = torch.cat([kept for kept, _ in rows])
        known = [where for _, where in rows if where is not None]
        if known:
            places[own_mask] = torch.cat(known)
        self._places = ranks.together(places, self._part, len(self.own)) if model.keeps_some else None
        self._mask = ranks.together(own_mask.long(), self._part, len(self.own)) > 0
        self._leaf = ranks.together(tokens, self._part, len(self.own)).requires_grad_()

    @property
    def pooled(self) -> Tensor:
        """As the store has it: the direction of the mean of the frames' unit-length embeddings."""
        return normalize((self._leaf[:, :, 0] * self._mask.unsqueeze(-1)).sum(dim=1), dim=-1)

    def tokens(self, chosen: NDArray[np.int64]) -> tuple[VideoTokens, Tensor]:
        """All of the batch."""
        places = None if self._places is None else self._places[None]
        return VideoTokens(self._leaf[None], self._mask[None], places), torch.from_numpy(chosen).to(self._leaf.device)

    def backward(self) -> None:
        """Send the tokens' gradient through the image tower, part by part."""
        assert self._leaf.grad is not None
        gradient = self._ranks.add_up(self._leaf.grad)[self._part][self._mask[self._part]]
        for pixels, rows in zip(self._frames, torch.split(gradient, self._frames.at_once), strict=False):
            torch.autograd.backward(self._model.frame_tokens(pixels)[0], rows)
