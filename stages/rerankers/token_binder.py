"""TokenBinder (Zhang et al., WACV 2025): one query's indicators look at the tokens of all its candidates at once.

    S'_j = I_1 . f_CLS,j        broad view, cosines
    S_j  = S'_j + Delta_j       focused view; Delta from stages.rerankers.fusion, divided by the logit scale

``TokenBinderWeights`` is what training writes and reranking reads: text tower, indicators, fusion network, in one
safetensors file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index_store.atomic import replacing
from index_store.errors import DamageError, FingerprintError, InputError, UsageError
from index_store.settings import StoreSettings
from stages.models import MODELS
from stages.rerankers.base import CandidateBatch, QueryBatch
from stages.rerankers.fusion import FusionConfig, FusionNetwork
from stages.rerankers.sweep import StoredTokens, list_bytes, score_lists

if TYPE_CHECKING:
    from stages.models.clip import ClipModel

FORMAT = "tbpipe-token-binder-1"
"""Value of ``format`` in the description of a weights file."""

_DESCRIPTION = "token_binder"
"""Metadata key of the description, a JSON object."""

_SHIPPED = "token_binder.safetensors"
"""Beside the weights of a model that ships with tbpipe."""

_WORKING_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
"""For lists that are scored at once, beside tokens: those of a batch share what was read, so the more the better."""


ANY_TOKENS = "any"
"""Value of ``keep_tokens`` for weights that look at the frame embeddings only, which every store has."""


@dataclass(frozen=True, slots=True)
class FeatureKind:
    """Which features the weights were trained on; those of another model or of other tokens mean nothing to them."""

    model: str
    weights_sha256: str
    tokens_per_frame: int
    keep_tokens: str

    @staticmethod
    def of(settings: StoreSettings) -> FeatureKind:
        """The kind of features in a store. Sampling, frames and the way tokens are rounded may differ."""
        model = settings.model
        return FeatureKind(model.name, model.weights_sha256, model.tokens_per_frame, settings.tokens.keep)

    def require(self, settings: StoreSettings, path: Path) -> None:
        """Raise FingerprintError unless a store with these settings holds such features."""
        found = FeatureKind.of(settings)
        wrong = [name for name, value in asdict(self).items() if value not in (ANY_TOKENS, asdict(found)[name])]
        if wrong:
            stored = ", ".join(f"{name} {asdict(found)[name]}" for name in wrong)
            trained = ", ".join(f"{name} {asdict(self)[name]}" for name in wrong)
            raise FingerprintError(
                f"{path} was trained on features of {trained}, the store holds {stored}; train on this store "
                "('tbpipe train') or give the weights that belong to it"
            )


@dataclass(frozen=True, slots=True, eq=False)
class TokenBinderWeights:
    """Everything that was trained, and on what."""

    kind: FeatureKind
    config: FusionConfig
    logit_scale: float
    """Factor of cosines before the softmax."""
    indicators: Tensor
    """float32 [M, width of the text tower]."""
    text: Mapping[str, Tensor]
    """State of the text tower; empty where it was not trained."""
    fusion: Mapping[str, Tensor]
    """State of the fusion network."""

    @property
    def knows_places(self) -> bool:
        """Whether a place was learned for each token of a frame."""
        return self.config.num_places > 1

    def require(self, settings: StoreSettings, path: Path) -> None:
        """Raise FingerprintError unless they fit a store with these settings.

        Weights that know places fit every store that does: one that keeps all tokens, or some and which these are.
        Others fit stores that keep as many tokens as those they were trained on.
        """
        tokens = settings.tokens
        if self.knows_places and tokens.keeps_some and not tokens.places:
            raise FingerprintError(
                f"{path} knows what to look for in each place of a frame, the store holds {tokens.keep} patches of a "
                "frame and not which: extract into a new store, which says it, or train on this one ('tbpipe train')"
            )
        is_placed = self.knows_places and tokens.knows_places
        (replace(self.kind, keep_tokens=ANY_TOKENS) if is_placed else self.kind).require(settings, path)

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        from safetensors.torch import save_file

        tensors = {"indicators": self.indicators, "logit_scale": torch.tensor(self.logit_scale)}
        tensors |= {f"text.{name}": tensor for name, tensor in self.text.items()}
        tensors |= {f"fusion.{name}": tensor for name, tensor in self.fusion.items()}
        kept = {name: tensor.detach().float().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}
        description = {"format": FORMAT, "kind": asdict(self.kind), "config": asdict(self.config)}
        with replacing(path) as temporary:  # one entry: the order of several is not always the same
            save_file(kept, temporary, metadata={_DESCRIPTION: json.dumps(description, sort_keys=True)})

    @staticmethod
    def load(path: Path) -> TokenBinderWeights:
        """Read what ``save`` wrote. Raises InputError for any other file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                metadata: dict[str, str] = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} cannot be read as TokenBinder weights: {error}") from error
        try:
            described: dict[str, Any] = json.loads(metadata.get(_DESCRIPTION, "{}"))
            found = described.get("format", "no format name")
            if found != FORMAT:
                raise InputError(f"{path} has {found} in its metadata, expected {FORMAT}: a file of 'tbpipe train'")
            kind, config = FeatureKind(**described["kind"]), FusionConfig(**described["config"])
            scale, indicators = float(tensors["logit_scale"]), tensors["indicators"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path} says {FORMAT} but its description is broken: {error}") from error
        return TokenBinderWeights(
            kind, config, scale, indicators, part_of(tensors, "text."), part_of(tensors, "fusion.")
        )

    def network(self, path: Path) -> FusionNetwork:
        """The fusion network with these weights, ready to use. Raises InputError when tensors are missing."""
        network = FusionNetwork(self.config)
        try:
            network.load_state_dict(dict(self.fusion))
        except RuntimeError as error:
            raise InputError(
                f"{path} does not fit its own description: {str(error).splitlines()[-1].strip()}"
            ) from error
        return network.eval().requires_grad_(requires_grad=False)


def shipped_weights(settings: StoreSettings) -> Path | None:
    """The weights that ship with tbpipe for features such as this store's; None where there are none."""
    folder = MODELS.get(settings.model.name)
    if folder is None:
        return None
    path = folder / _SHIPPED
    try:
        TokenBinderWeights.load(path).require(settings, path)
    except FingerprintError:
        return None
    return path


class TokenBinderReranker:
    """Scores the candidates of each query together."""

    name = "token-binder"

    def __init__(self, network: FusionNetwork, logit_scale: float, device: torch.device | str = "cpu") -> None:
        self.network = network.to(device).eval()
        self.logit_scale = logit_scale

    @staticmethod
    def open(path: Path, settings: StoreSettings, model: ClipModel) -> TokenBinderReranker:
        """The reranker with the weights at ``path``, whose query side ``model`` takes over.

        Raises FingerprintError for weights that do not fit the store's settings, InputError for a broken file.
        """
        weights = TokenBinderWeights.load(path)
        weights.require(settings, path)
        model.adopt_query_side(weights.indicators, weights.text, path)
        return TokenBinderReranker(weights.network(path), weights.logit_scale, model.device)

    @torch.inference_mode()
    def rank(self, queries: QueryBatch, candidates: CandidateBatch) -> Tensor:
        """S float32 [B, K] on the scale of cosines, -inf where there is no candidate."""
        own = np.arange(len(queries))[:, None]
        return self._scores(queries, candidates, own, candidates.index.numpy())

    @torch.inference_mode()
    def rank_texts(
        self, queries: QueryBatch, candidates: CandidateBatch, videos: NDArray[np.int64] | None = None
    ) -> Tensor:
        """Roles turned: S float32 [V, K] of the K candidate texts ``index`` [V, K] of each of V videos.

        ``videos`` int64 [V]: which of the tokens are theirs; by default all, in order.
        """
        own = np.arange(len(candidates.index)) if videos is None else videos
        return self._scores(queries, candidates, candidates.index.numpy(), own[:, None])

    def _scores(
        self, queries: QueryBatch, candidates: CandidateBatch, texts: NDArray[np.int64], videos: NDArray[np.int64]
    ) -> Tensor:
        """S of lists that texts and videos make, as ``score_lists`` takes them, some lists at a time."""
        asked = _indicators(queries)[:, 1:]
        num_tokens, num_places = candidates.tokens.shape[2], self.network.config.num_places
        if candidates.places is not None and num_places > 1:
            _require_within(candidates.places[torch.from_numpy(np.unique(videos[videos >= 0]))], num_places)
            num_tokens = num_places
        tokens = StoredTokens(candidates.tokens, candidates.frame_mask, candidates.places)
        broad = candidates.broad.masked_fill(~candidates.is_candidate, 0.0)
        scores = torch.empty_like(broad)
        each = list_bytes(self.network, texts.shape[1], videos.shape[1], num_tokens)
        at_once = max(1, _WORKING_BYTES[broad.device.type] // each)
        for start in range(0, len(broad), at_once):
            rows = slice(start, start + at_once)
            delta = score_lists(self.network, asked, tokens, texts[rows], videos[rows], self.logit_scale * broad[rows])
            scores[rows] = broad[rows] + delta / self.logit_scale
        return scores.masked_fill_(~candidates.is_candidate, -torch.inf)


def _require_within(places: Tensor, num_places: int) -> None:
    """Raise DamageError for places that no token of a frame has."""
    if not places.numel():
        return
    lowest, highest = (int(value) for value in places.aminmax())
    if lowest < 0 or highest >= num_places:
        raise DamageError(
            f"the places of some stored tokens are {lowest} to {highest}, expected 0 to {num_places - 1}: features are "
            "damaged; 'tbpipe verify --read-data' names them"
        )


def _indicators(queries: QueryBatch) -> Tensor:
    """[B, M, D]. Raises UsageError where texts were encoded without."""
    if queries.indicators is None:
        raise UsageError("these queries were encoded without query indicators; encode them with the weights' text side")
    return queries.indicators


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, the prefix taken off."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
