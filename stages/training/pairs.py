"""Captions joined to the features of their videos: what training reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index_store.errors import InputError
from index_store.snapshot import Snapshot
from stages.rerankers.fusion import VideoTokens
from stages.token_batches import places_tensor

MIN_VIDEOS = 8


@dataclass(frozen=True, slots=True)
class CaptionedId:
    """One sentence and the video it belongs to."""

    text: str
    video_id: int


@dataclass(frozen=True, slots=True, eq=False)
class RawTokens:
    """The tokens of n videos as the image tower gave them."""

    tokens: Tensor
    """float32 [n, F, P, D], row 0 of P the frame embedding; 0 where masked."""
    frame_mask: Tensor
    """bool [n, F], True = real frame."""

    def to(self, device: torch.device) -> RawTokens:
        """The same on ``device``."""
        return RawTokens(self.tokens.to(device), self.frame_mask.to(device))


class PairCorpus:
    """N videos with their captions; pooled embeddings in memory, tokens read when asked for."""

    def __init__(self, snapshot: Snapshot, captions: Sequence[CaptionedId]) -> None:
        """Raises InputError for fewer than MIN_VIDEOS videos, StoreError for a video without features."""
        texts: dict[int, list[str]] = {}
        for caption in captions:
            texts.setdefault(caption.video_id, []).append(caption.text)
        if len(texts) < MIN_VIDEOS:
            raise InputError(f"{len(texts)} videos have captions, expected at least {MIN_VIDEOS} to train on")
        self._snapshot = snapshot
        self.ids = np.array(sorted(texts), np.int64)
        self.captions = [texts[video_id] for video_id in self.ids.tolist()]
        """Of each video, at least one."""
        blocks = [rows for _, rows in snapshot.read_pooled(self.ids.tolist())]
        self.pooled = torch.from_numpy(np.concatenate(blocks))
        """float32 [N, D], unit length."""

    def __len__(self) -> int:
        """N."""
        return len(self.ids)

    def split(self, share: float, seed: int, run: int = 1) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions to train on and positions to validate on, both ascending; the latter are ``share`` of all.

        ``run`` videos that follow each other, from a multiple of it on, stay on one side.
        """
        runs = np.random.default_rng([seed, 1]).permutation(-(-len(self) // run))
        held = round(share * len(runs))
        positions = np.arange(len(self))
        is_held = np.isin(positions // run, runs[:held])
        return positions[~is_held], positions[is_held]

    def tokens(self, positions: NDArray[np.int64]) -> VideoTokens:
        """Tokens of the videos at these positions [n], as one group: [1, n, F, P, D]."""
        batch = self._snapshot.read_tokens(self.ids[positions].tolist())
        raw = torch.from_numpy(batch.tokens)  # the scale of an int8 token changes its length only
        places = None if batch.places is None else places_tensor(batch.places)[None]
        return VideoTokens.of(raw[None], torch.from_numpy(batch.frame_mask)[None], places)

    def raw_tokens(self, positions: NDArray[np.int64], *, with_patches: bool = True) -> RawTokens:
        """Tokens of the videos at these positions [n], of their own length; or the frame embeddings alone, P = 1."""
        if not with_patches:
            frames = self._snapshot.read_frame_embeddings(self.ids[positions].tolist())
            return RawTokens(
                torch.from_numpy(frames.embeddings).float().unsqueeze(2), torch.from_numpy(frames.frame_mask)
            )
        batch = self._snapshot.read_tokens(self.ids[positions].tolist())
        tokens = torch.from_numpy(batch.tokens).float()
        if batch.scales is not None:
            tokens *= torch.from_numpy(batch.scales).unsqueeze(-1)
        return RawTokens(tokens, torch.from_numpy(batch.frame_mask))


def nearest(pooled: Tensor, positions: NDArray[np.int64], allowed: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    """int64 [n, number]: of each position the ``number`` nearest others among ``allowed``, by cosine, then position."""
    cosines = pooled[positions] @ pooled[allowed].T
    cosines[torch.from_numpy(positions[:, None] == allowed[None])] = -torch.inf
    order = cosines.sort(dim=1, descending=True, stable=True).indices[:, :number]
    found: NDArray[np.int64] = allowed[order.numpy()]
    return found
