"""The video side of published methods: what their scorers make of a video alone, and what changes its numbers.

Bytes of a video at ViT-B/32 sizes, F = 12, D = 512, float32; its tokens take 614,400:

    clip4clip, dp       2,048      [D]
    clip4clip-tight    24,588      [F, D], mask [F]
    ts2-net            24,588      [F, D], mask [F]
    wti                24,636      [F, D], weights [F], mask [F]
    x-clip             53,260      2 x [F + 1, D], mask [F]; 26,636 without weights, where both are the same
    ucofia            124,940      [F + 1, D], [F, 4, D], mask [F]

EERCF and late interaction compare a text with every token: their video side holds all of them, in float32, so to read
it would cost twice what reading the tokens does, and they are not here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from index_store.errors import UsageError
from index_store.features import Array
from index_store.prepared import FORMAT, PreparedKey
from index_store.settings import StoreSettings
from stages.rerankers.base import Reranker
from stages.rerankers.clip4clip import Clip4ClipHead, Clip4ClipTightHead
from stages.rerankers.pairwise import PairwiseReranker
from stages.rerankers.temporal import Frames
from stages.rerankers.ts2net import Ts2NetHead
from stages.rerankers.ucofia import UcofiaHead, UcofiaVideos
from stages.rerankers.wti import WtiHead, WtiTokens
from stages.rerankers.xclip import XClipHead, XClipVideos

_SIDES: dict[type[nn.Module], type[Any]] = {
    Clip4ClipHead: Tensor,
    Clip4ClipTightHead: Frames,
    Ts2NetHead: Frames,
    UcofiaHead: UcofiaVideos,
    WtiHead: WtiTokens,
    XClipHead: XClipVideos,
}
"""Head -> what its ``videos`` gives: a tensor, or a dataclass of tensors, whose first axis is the video."""

_ONLY_FIELD = "videos"
"""Name of a video side that is one tensor."""


@dataclass(frozen=True, slots=True, eq=False)
class VideoSideOf:
    """The video side of a reranker's method: how it is written, read and told apart from others."""

    head: nn.Module
    """Whose ``videos`` it is."""
    kind: type[Any]

    def key(self, settings: StoreSettings, device: torch.device) -> PreparedKey:
        """What everything that changes a number of it comes down to.

        That is the features (the store's settings), the method with its weights and options, and the kind of device,
        since last bits on a GPU are others.
        """
        digest = hashlib.sha256()
        name = str(getattr(self.head, "name", ""))
        options = {
            "format": FORMAT,
            "fingerprint": settings.fingerprint,
            "method": name,
            "device": device.type,
            "modules": [(path, type(part).__qualname__, _options(part)) for path, part in self.head.named_modules()],
        }
        digest.update(json.dumps(options, sort_keys=True).encode())
        for path, tensor in sorted(self.head.state_dict().items()):
            kept = tensor.detach().cpu().contiguous()
            digest.update(f"{path} {kept.dtype} {list(kept.shape)}".encode())
            digest.update(kept.view(-1).view(torch.uint8).numpy())
        return PreparedKey(name, digest.hexdigest())

    def take_apart(self, videos: Any) -> tuple[dict[str, Array], dict[str, str]]:
        """The fields [c, ...] of c videos, copied nowhere, and which fields are the same as another one."""
        if isinstance(videos, Tensor):
            return {_ONLY_FIELD: videos.cpu().numpy()}, {}
        found: dict[str, Array] = {}
        same: dict[str, str] = {}
        for field in fields(self.kind):
            tensor = getattr(videos, field.name)
            twin = next((name for name in found if getattr(videos, name) is tensor), None)
            if twin is None:
                found[field.name] = tensor.cpu().numpy()
            else:
                same[field.name] = twin
        return found, same

    def put_together(self, arrays: Mapping[str, Array], same: Mapping[str, str]) -> Any:
        """What ``take_apart`` took apart."""
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return self._made(tensors | {name: tensors[twin] for name, twin in same.items()})

    def move(self, videos: Any, device: torch.device) -> Any:
        """The same on a device; fields that are the same stay so."""
        if isinstance(videos, Tensor):
            return videos.to(device)
        moved: dict[int, Tensor] = {}
        tensors = {field.name: getattr(videos, field.name) for field in fields(self.kind)}
        for tensor in tensors.values():
            if id(tensor) not in moved:
                moved[id(tensor)] = tensor.to(device)
        return self._made({name: moved[id(tensor)] for name, tensor in tensors.items()})

    def _made(self, tensors: Mapping[str, Tensor]) -> Any:
        return tensors[_ONLY_FIELD] if self.kind is Tensor else self.kind(**tensors)


def video_side_of(reranker: Reranker) -> VideoSideOf | None:
    """The video side of a reranker's method; None where keeping it would save nothing.

    A reranker by one of a method's similarities has the video side of the whole method.
    """
    if not isinstance(reranker, PairwiseReranker):
        return None
    head = getattr(reranker.scorer.videos, "__self__", None)
    kind = next((kind for head_type, kind in _SIDES.items() if isinstance(head, head_type)), None)
    return None if kind is None or not isinstance(head, nn.Module) else VideoSideOf(head, kind)


def require_video_side(reranker: Reranker) -> VideoSideOf:
    """``video_side_of``. Raises UsageError, with the reason, where there is none."""
    found = video_side_of(reranker)
    if found is not None:
        return found
    if isinstance(reranker, PairwiseReranker):
        why = "compares texts with every token: what could be kept is the tokens themselves, twice as large"
    else:
        why = "computes nothing from a video alone"
    raise UsageError(f"preparing saves nothing for {reranker.name}, which {why}; rerank with it as it is")


def _options(part: nn.Module) -> dict[str, Any]:
    """The plain values that a module was made with."""
    plain = (bool, int, float, str, tuple)
    return {name: value for name, value in sorted(vars(part).items()) if name[0] != "_" and isinstance(value, plain)}
