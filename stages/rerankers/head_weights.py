"""The weights file of a published method's head: what ``import-weights`` and ``train`` write and reranking reads.

One safetensors file: the head's tensors under their official names (``logit_scale`` among them), those of the text
tower under ``text.`` where it was trained along, and, as metadata, the method, its sizes and the kind of features that
it was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from index_store.atomic import replacing
from index_store.errors import InputError, UsageError
from index_store.settings import StoreSettings
from stages.rerankers.base import Reranker
from stages.rerankers.clip4clip import Clip4ClipHead, Clip4ClipReranker, Clip4ClipTightHead
from stages.rerankers.eercf import EercfHead, EercfReranker
from stages.rerankers.token_binder import FeatureKind, part_of
from stages.rerankers.ts2net import Ts2NetHead, Ts2NetReranker
from stages.rerankers.ucofia import UcofiaHead, UcofiaReranker
from stages.rerankers.xclip import XClipHead, XClipReranker

if TYPE_CHECKING:
    from stages.models.clip import ClipModel

FORMAT = "tbpipe-head-1"
"""Value of ``format`` in the description of a weights file."""

_DESCRIPTION = "head"
"""Metadata key of the description, a JSON object."""

_TOKEN_BINDER_DESCRIPTION = "token_binder"
"""That of the files of ``tbpipe train``."""

_TEXT = "text."
"""Before the names of the text tower's tensors."""

State = Mapping[str, Tensor]

HEADS: dict[str, tuple[Callable[[State, int | None], torch.nn.Module], Callable[[Any], Reranker]]] = {
    "clip4clip": (Clip4ClipHead.of_state, Clip4ClipReranker),
    "clip4clip-tight": (Clip4ClipTightHead.of_state, Clip4ClipReranker),
    "eercf": (EercfHead.of_state, EercfReranker),
    "ts2-net": (Ts2NetHead.of_state, Ts2NetReranker),
    "ucofia": (UcofiaHead.of_state, UcofiaReranker),
    "x-clip": (XClipHead.of_state, XClipReranker),
}
"""Method -> what makes its head from tensors by their official names, and the reranker with that head."""


@dataclass(frozen=True, slots=True, eq=False)
class HeadWeights:
    """A trained head, and the features that it belongs to."""

    method: str
    """A key of HEADS."""
    kind: FeatureKind
    sizes: Mapping[str, int]
    """Width, words, frames, layers, ...: what the shapes say, for people; and ``heads``, which they do not."""
    tensors: State
    """float32, by their official names without ``clip.``."""
    text: State = field(default_factory=dict)
    """State of the text tower; empty where it is that of the features' model."""

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        from safetensors.torch import save_file

        tensors = {**self.tensors, **{_TEXT + name: value for name, value in self.text.items()}}
        kept = {name: value.detach().float().cpu().contiguous().clone() for name, value in sorted(tensors.items())}
        described = {"format": FORMAT, "method": self.method, "kind": asdict(self.kind), "sizes": dict(self.sizes)}
        with replacing(path) as temporary:  # one entry: the order of several is not always the same
            save_file(kept, temporary, metadata={_DESCRIPTION: json.dumps(described, sort_keys=True)})

    @staticmethod
    def load(path: Path) -> HeadWeights:
        """Read what ``save`` wrote. Raises InputError for any other file."""
        metadata, tensors = _read(path, with_tensors=True)
        try:
            described: dict[str, Any] = json.loads(metadata.get(_DESCRIPTION, "{}"))
            found = described.get("format", "no format name")
            if found != FORMAT:
                raise InputError(f"{path} has {found} in its metadata, expected {FORMAT}: a file of import-weights")
            kind, sizes = FeatureKind(**described["kind"]), dict(described["sizes"])
            head = {name: value for name, value in tensors.items() if not name.startswith(_TEXT)}
            return HeadWeights(str(described["method"]), kind, sizes, head, part_of(tensors, _TEXT))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path} says {FORMAT} but its description is broken: {error}") from error

    def head(self, path: Path) -> torch.nn.Module:
        """The head with these tensors, read from ``path``, ready to learn on. Raises InputError when they make none."""
        if self.method not in HEADS:
            raise InputError(f"{path} has weights of {self.method}; known are {', '.join(HEADS)}")
        of_state, _ = HEADS[self.method]
        try:
            return of_state(self.tensors, self.sizes.get("heads"))
        except (RuntimeError, KeyError, IndexError, ValueError) as error:
            last = (str(error).splitlines() or [type(error).__name__])[-1].strip()
            raise InputError(f"{path} does not hold a head of {self.method}: {last}") from error

    def reranker(self, path: Path, device: torch.device) -> Reranker:
        """The method with this head on ``device``. Raises InputError when the tensors do not make one."""
        head = self.head(path)
        _, with_head = HEADS[self.method]
        return with_head(head.eval().requires_grad_(requires_grad=False).to(device))


def method_of(path: Path) -> str:
    """The method whose weights a file holds. Raises InputError for a file that is none of tbpipe's."""
    metadata, _ = _read(path, with_tensors=False)
    if _TOKEN_BINDER_DESCRIPTION in metadata:
        return "token-binder"
    try:
        return str(json.loads(metadata[_DESCRIPTION])["method"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} holds no weights for reranking; expected a file of 'tbpipe train', or the .head.safetensors of "
            "'tbpipe import-weights'"
        ) from error


def open_reranker(path: Path, method: str, settings: StoreSettings, model: ClipModel) -> Reranker:
    """The reranker ``method`` with the weights at ``path``, for a store with these settings.

    Where the text tower was trained along, ``model`` takes it over. Errors as of ``open_head``.
    """
    weights = open_head(path, method, settings)
    if weights.text:
        model.adopt_text_tower(weights.text, path)
    return weights.reranker(path, model.device)


def open_head(path: Path, method: str, settings: StoreSettings) -> HeadWeights:
    """The weights of ``method`` at ``path``, for a store with these settings.

    Raises UsageError for the weights of another method, FingerprintError for those of other features, InputError for a
    broken file.
    """
    weights = HeadWeights.load(path)
    if weights.method != method:
        raise UsageError(f"{path} has weights of {weights.method}, --method is {method}; leave --method out")
    weights.kind.require(settings, path)
    return weights


def _read(path: Path, *, with_tensors: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata, and tensors if they are wanted. Raises InputError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = file.keys() if with_tensors else ()
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as the weights of a reranker: {error}") from error
