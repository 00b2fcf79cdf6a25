"""Extraction: the same clips, frames and weights -> an embedding of each frame; CPU seconds of whole processes.

A peer runs over a few clips and over all of them. The difference is what a clip costs; what the first run costs beside
its clips is start-up: importing, loading weights, first use.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.corpus import random_weights
from benchmarks.near_duplicates import sha256_of
from benchmarks.peers import job
from benchmarks.peers.clips import digest, make_clips
from benchmarks.peers.environment import python_of
from benchmarks.peers.plan import EVERY, FRAMES, FRAMES_PER_SECOND, OURS, ExtractionScale, Peer
from benchmarks.peers.processes import run_program
from index_store.errors import InputError
from index_store.store import Store
from stages.models.clip import has_native_bfloat16

BOUNDS = ("decode-alone", "model-alone")
"""They have no output."""
SAME_COSINE, SAME_FOUND = 0.99, 0.99
_WIDTH = 512

Embeddings = NDArray[np.float32]
"""[clips, FRAMES, D], of unit length."""


class Extraction:
    """Peers that turn clips into frame embeddings."""

    def __init__(self, work: Path, videos: Path | None, weights: Path | None, scale: ExtractionScale) -> None:
        self._work = work.resolve()
        self._clips = [clip.resolve() for clip in make_clips(self._work, videos, scale.clips)]
        self._weights = (weights or _random_weights(self._work)).resolve()
        self._few = self._clips[: scale.few]
        self.scale: Mapping[str, Any] = asdict(scale) | {
            "corpus": digest(self._clips),
            "weights": sha256_of(self._weights),
        }

    def measure(self, peer: Peer) -> tuple[dict[str, float], dict[str, float], bool]:
        """CPU seconds, agreement with ours, and whether that is the same output, which is looked at first.

        seconds: "few" and "all" of the whole runs, "clip" of one clip, "start". agreement: "cosine" of the median frame
        with ours, "worst" of the 1st percentile, "found": share of the frames whose nearest one of ours is the same
        frame of the same clip; of ours and of bounds, none. Raises NotInstallableError, CommandFailedError, InputError.
        """
        seconds = {"few": self._run(peer, self._few)}
        agreement: dict[str, float] = {}
        same = True
        if peer.name not in (*BOUNDS, OURS["extraction"]):
            agreement, same = compare(self._embeddings(peer), self._reference())
        seconds["all"] = self._run(peer, self._clips)
        seconds["clip"] = (seconds["all"] - seconds["few"]) / (len(self._clips) - len(self._few))
        seconds["start"] = seconds["few"] - len(self._few) * seconds["clip"]
        return seconds, agreement, same

    def _reference(self) -> Embeddings:
        """Ours, of the few clips. Raises InputError when they were not extracted yet."""
        store = self._folder(OURS["extraction"], len(self._few)) / "store"
        if not store.exists():
            raise InputError(f"{store} is gone; remove {self._work} and start again")
        return _unit(_stored(store, self._few))

    def _embeddings(self, peer: Peer) -> Embeddings:
        shape = (len(self._few), FRAMES, _WIDTH)
        return _unit(job.array(self._folder(peer.name, len(self._few)), "embeddings", shape))

    def _run(self, peer: Peer, clips: Sequence[Path]) -> float:
        folder = self._folder(peer.name, len(clips))
        shutil.rmtree(folder, ignore_errors=True)
        fields: dict[str, Any] = {
            "clips": [str(clip) for clip in clips],
            "frames": [place * EVERY for place in range(FRAMES)],
            "every": EVERY,
            "frames_per_second": FRAMES_PER_SECOND / EVERY,
            "weights": self._weights,
            "threads": self.scale["threads"],
            "output": folder,
            "bfloat16": peer.name in BOUNDS and has_native_bfloat16(),
        }
        path = job.write(folder, fields | dict(peer.options))
        return run_program(python_of(peer, self._work), peer.program, path, self.scale["threads"])

    def _folder(self, name: str, count: int) -> Path:
        return self._work / "runs" / name / str(count)


def compare(found: Embeddings, reference: Embeddings) -> tuple[dict[str, float], bool]:
    """How embeddings of unit length agree with those of the same frames.

    With weights that learned nothing all pictures lie close together, so a high cosine alone says little: the nearest
    frame must be the right one too.
    """
    ours = reference.reshape(-1, reference.shape[-1])
    theirs = found.reshape(ours.shape)
    cosines = np.einsum("nd,nd->n", theirs, ours)
    nearest = (theirs @ ours.T).argmax(axis=1)
    # equal pictures (a title, a still) are each other's nearest as well
    right = (nearest == np.arange(len(ours))) | (np.einsum("nd,nd->n", ours[nearest], ours) > 1 - 1e-5)
    agreement = {
        "cosine": float(np.median(cosines)),
        "worst": float(np.percentile(cosines, 1)),
        "found": float(right.mean()),
    }
    return agreement, agreement["cosine"] >= SAME_COSINE and agreement["found"] >= SAME_FOUND


def _random_weights(work: Path) -> Path:
    path = work / "random-vit-b-32.safetensors"
    if not path.exists():
        random_weights(path.with_suffix(".part")).replace(path)
    return path


def _unit(embeddings: NDArray[Any]) -> Embeddings:
    wide = embeddings.astype(np.float32)
    unit: Embeddings = wide / np.linalg.norm(wide, axis=-1, keepdims=True)
    return unit


def _stored(directory: Path, clips: Sequence[Path]) -> NDArray[np.float16]:
    """The frame embeddings of these clips, in their order."""
    with Store.open(directory).snapshot() as snapshot:
        ids = {record.path.resolve(): record.id for record in snapshot.videos()}
        return snapshot.read_frame_embeddings([ids[clip] for clip in clips]).embeddings
