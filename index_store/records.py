"""Frozen records that are stored, or passed from one stage to the next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

VideoStatus = Literal["ok", "partial", "quarantined", "removed"]
"""ok: all sampled frames; partial: damaged, some frames; quarantined: no frame, and a reason; removed: a tombstone."""

SEARCHABLE: tuple[VideoStatus, ...] = ("ok", "partial")
"""The states in which a video has features."""


class ShapeError(ValueError):
    """An array does not have the shape or dtype that its record promises."""


def expect(name: str, array: NDArray[np.generic], shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    """Raise ShapeError unless ``array`` has exactly this shape and one of these dtypes."""
    if array.shape != shape or array.dtype.name not in dtypes:
        raise ShapeError(f"{name} is {array.dtype}{list(array.shape)}, expected {'|'.join(dtypes)}{list(shape)}")


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A video file as the scan found it."""

    key: str
    """What users see: POSIX path relative to its source."""
    path: Path
    """Absolute path."""
    size_bytes: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True, eq=False)
class VideoFeatures:
    """Everything of one video that does not depend on a query. F frames, P tokens a frame, D width."""

    tokens: NDArray[np.generic]
    """float16 or int8 [F, P, D], raw (not normalised), in the joint space; row 0 of P is the frame embedding.
    Zero where masked."""
    token_scales: NDArray[np.float32] | None
    """float32 [F, P] when tokens are int8: token = int8 value x scale; None for float16."""
    frame_mask: NDArray[np.bool_]
    """bool [F], True = real frame; always a prefix of True."""
    timestamps_seconds: NDArray[np.float64]
    """float64 [F], presentation time of each frame from the start of the video; 0 where masked."""
    frame_embeddings: NDArray[np.float16]
    """float16 [F, D], raw; 0 where masked."""
    pooled: NDArray[np.float32]
    """float32 [D], unit length: the normalised mean of the unit-length frame embeddings."""
    token_places: NDArray[np.unsignedinteger[Any]] | None = None
    """uint8 or uint16 [F, P] where some patches are kept: which token of its frame each was, 0 = the frame embedding,
    1.. = the patches in the order of the picture; 0 where masked. None: not known, or P is all of them."""

    def __post_init__(self) -> None:
        """Check every shape and dtype against the tokens."""
        if self.tokens.ndim != 3:
            raise ShapeError(f"tokens has {self.tokens.ndim} dimensions, expected 3 (frames, tokens, width)")
        frames, tokens, width = self.tokens.shape
        expect("tokens", self.tokens, (frames, tokens, width), ("float16", "int8"))
        expect("frame_mask", self.frame_mask, (frames,), ("bool",))
        expect("timestamps_seconds", self.timestamps_seconds, (frames,), ("float64",))
        expect("frame_embeddings", self.frame_embeddings, (frames, width), ("float16",))
        expect("pooled", self.pooled, (width,), ("float32",))
        if (self.tokens.dtype == np.int8) != (self.token_scales is not None):
            raise ShapeError("token_scales must be given for int8 tokens and only for them")
        if self.token_scales is not None:
            expect("token_scales", self.token_scales, (frames, tokens), ("float32",))
        if self.token_places is not None:
            expect("token_places", self.token_places, (frames, tokens), ("uint8", "uint16"))

    def __repr__(self) -> str:
        """Shapes and dtype, not the numbers."""
        return (
            f"VideoFeatures(tokens={self.tokens.dtype}{list(self.tokens.shape)}, frames={int(self.frame_mask.sum())})"
        )


@dataclass(frozen=True, slots=True)
class VideoOutcome:
    """What extract found out about one file: the unit that is committed."""

    file: VideoFile
    status: VideoStatus
    content_hash: str = ""
    """SHA-256 of the file, hex; empty when it could not be read."""
    duration_seconds: float = 0.0
    decoder: str = ""
    decoder_note: str = ""
    """Why an earlier decoder was not used; empty when the first one worked."""
    reason_code: str = ""
    """Why the video is quarantined or partial, one of stages.errors.REASONS; empty when ok."""
    reason_detail: str = ""
    features: VideoFeatures | None = None
    same_content_as: str = ""
    """Content hash of a video that is stored, or earlier in the same commit: its features are shared."""


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One row of the catalog's table ``videos``."""

    id: int
    """Immutable; never given twice."""
    key: str
    path: Path
    size_bytes: int
    mtime_ns: int
    inode: int
    content_hash: str
    duration_seconds: float
    decoder: str
    decoder_note: str
    status: VideoStatus
    reason_code: str
    reason_detail: str
    attempts: int
    shard: int | None
    row: int | None
    checksum: str
    """BLAKE2b-128 over the record's bytes in the shard, hex; empty without features."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One candidate of one query."""

    video_id: int
    key: str
    broad_score: float
    """Inner product of unit-length text and pooled video embedding."""
    focused_score: float | None = None
    """Score of the reranker; None after the broad view alone."""
    moment_seconds: float | None = None
    """Time of the frame that fits the query best; None when not asked for."""

    @property
    def score(self) -> float:
        """The score that orders the ranking."""
        return self.broad_score if self.focused_score is None else self.focused_score


@dataclass(frozen=True, slots=True)
class Ranking:
    """The candidates of one query, best first; ties are ordered by video id."""

    query_id: str
    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class Query:
    """One text query."""

    id: str
    text: str
