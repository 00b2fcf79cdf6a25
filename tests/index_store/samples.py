"""Small real settings, features and outcomes for the tests of the store."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from index_store.records import VideoFeatures, VideoFile, VideoOutcome
from index_store.settings import ModelSettings, SamplingSettings, StoreSettings, TokenSettings
from index_store.snapshot import Snapshot
from index_store.store import Store

SETTINGS = StoreSettings(
    ModelSettings(
        name="tiny",
        pretrained="nowhere",
        weights_sha256="0" * 64,
        embed_dim=8,
        tokens_per_frame=5,
        image_size=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        interpolation="bicubic",
        resize_mode="shortest",
        compute_dtype="float32",
    ),
    SamplingSettings("uniform", 3),
    TokenSettings("float16", "all"),
)
INT8_SETTINGS = replace(SETTINGS, tokens=TokenSettings("int8", "2"))
PLACED_SETTINGS = replace(SETTINGS, tokens=TokenSettings("int8", "2", places=True))


def features(seed: int, settings: StoreSettings = SETTINGS) -> VideoFeatures:
    """Features that differ for every seed."""
    rng = np.random.default_rng(seed)
    frames, tokens, width = settings.token_shape
    quantised = settings.tokens.dtype == "int8"
    shape = (frames, tokens, width)
    return VideoFeatures(
        tokens=rng.integers(-127, 128, shape, dtype=np.int8) if quantised else rng.standard_normal(shape).astype("f2"),
        token_scales=rng.random((frames, tokens), dtype=np.float32) if quantised else None,
        frame_mask=np.arange(frames) < 1 + seed % frames,
        timestamps_seconds=rng.random(frames),
        frame_embeddings=rng.standard_normal((frames, width)).astype(np.float16),
        pooled=rng.standard_normal(width).astype(np.float32),
        token_places=rng.integers(0, 5, (frames, tokens), dtype=np.uint8) if settings.tokens.places else None,
    )


def content(seed: int) -> str:
    """A content hash that differs for every seed."""
    return hashlib.sha256(str(seed).encode()).hexdigest()


def file(name: str) -> VideoFile:
    """A video file that the store has only heard of."""
    return VideoFile(key=name, path=Path("/videos") / name, size_bytes=1000 + len(name), mtime_ns=5, inode=7)


def ok(name: str, seed: int, settings: StoreSettings = SETTINGS) -> VideoOutcome:
    """A video whose frames could all be read."""
    return VideoOutcome(
        file(name), "ok", content(seed), duration_seconds=seed / 4, decoder="d 1", features=features(seed, settings)
    )


def copy_of(name: str, seed: int) -> VideoOutcome:
    """A second file with content that is stored already."""
    return VideoOutcome(file(name), "ok", same_content_as=content(seed))


def bad(name: str, status: Literal["quarantined", "removed"] = "quarantined") -> VideoOutcome:
    """A video without features."""
    return VideoOutcome(file(name), status, reason_code="damaged", reason_detail="no frame")


def fill(store: Store, *outcomes: VideoOutcome) -> None:
    """One commit."""
    with store.writer() as writer:
        writer.commit(outcomes)


def state(snapshot: Snapshot) -> dict[str, tuple[int, str, str]]:
    """Id, status and a hash of every stored byte, by key: equal states hold equal videos. Checks every checksum."""
    found: dict[str, tuple[int, str, str]] = {}
    for record in snapshot.videos():
        digest = hashlib.sha256()
        if record.shard is not None:
            snapshot.verify_record(record.id)
            batch = snapshot.read_tokens([record.id])
            embeddings = snapshot.read_frame_embeddings([record.id]).embeddings
            ((_, pooled),) = snapshot.read_pooled([record.id])
            for array in (batch.tokens, batch.scales, batch.frame_mask, batch.timestamps_seconds, embeddings, pooled):
                digest.update(b"" if array is None else array.tobytes())
        found[record.key] = (record.id, record.status, digest.hexdigest())
    return found
