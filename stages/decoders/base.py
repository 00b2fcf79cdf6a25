"""What a decoder is given, and what it must give back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from stages.decoders.pyav import OpenVideo


class DeclinedError(Exception):
    """This decoder cannot give these frames; another one may. The message becomes part of the video's note."""


class Decoder(Protocol):
    """Fetches the pixels of chosen frames."""

    def version(self) -> str:
        """Name and version, such as ``decord 0.6.0``."""
        ...

    def fetch(self, video: OpenVideo, frames: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The pictures of ``frames`` (indices into video.table, ascending, unique): uint8 [m, H, W, 3], RGB, upright.

        All or nothing: raises DeclinedError when any of them cannot be had undamaged, MemoryError when memory ends.
        """
        ...
