"""The videos that one step of training looks at: where lists are drawn from, and their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from stages.rerankers.fusion import VideoTokens
from stages.training.lists import Batch
from stages.training.pairs import PairCorpus


def rows_at(rows: Tensor, index: Tensor) -> Tensor:
    """``rows[index]`` of rows [N, ...] and index int64 of any shape, with a gradient of the same bits each time.

    That of plain indexing is added up by several threads at once, in the order in which they come.
    """
    return functional.embedding(index.to(rows.device), rows.flatten(1)).view(*index.shape, *rows.shape[1:])


class StepVideos(Protocol):
    """N videos that candidates are drawn from, those of the batch among them."""

    @property
    def batch(self) -> Batch:
        """B captions of B of the videos."""
        ...

    @property
    def own(self) -> NDArray[np.int64]:
        """int64 [B], which of the N each caption belongs to."""
        ...

    @property
    def pooled(self) -> Tensor:
        """float32 [N, D], unit length; a gradient may go through."""
        ...

    def tokens(self, chosen: NDArray[np.int64]) -> tuple[VideoTokens, Tensor]:
        """Tokens [1, n, F, P, D] of the chosen ones, int64 [G, K] of N, and which of n each is, int64 [G, K]."""
        ...

    def backward(self) -> None:
        """Hand on the gradient that was gathered; nothing to do where videos do not learn."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class CachedVideos:
    """All videos that are trained on, as the store holds them."""

    corpus: PairCorpus
    allowed: NDArray[np.int64]
    """int64 [N], positions in the corpus, ascending."""
    batch: Batch
    pooled: Tensor

    @property
    def own(self) -> NDArray[np.int64]:
        """See StepVideos."""
        return np.searchsorted(self.allowed, self.batch.positions)

    def tokens(self, chosen: NDArray[np.int64]) -> tuple[VideoTokens, Tensor]:
        """Read from the store, each video once."""
        distinct, inverse = np.unique(chosen, return_inverse=True)
        device = self.pooled.device
        places = torch.from_numpy(inverse.reshape(chosen.shape)).to(device)
        return self.corpus.tokens(self.allowed[distinct]).to(device), places

    def backward(self) -> None:
        """Nothing: the features are what they are."""
