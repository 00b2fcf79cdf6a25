"""Everything that answers queries over one snapshot of a store, opened; what is wrong with it is raised first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from index_store.captions import read_captions
from index_store.errors import InputError, StoreMissingError, UsageError
from index_store.runs import read_queries
from index_store.snapshot import Snapshot
from index_store.store import Store

if TYPE_CHECKING:
    import torch

    from index_store.vectors import VectorIndex
    from stages.models import Towers
    from stages.models.clip import ClipModel
    from stages.normalise import Method
    from stages.normalised import Normalisation
    from stages.rerankers.base import Reranker


class AnsweringOptions(Protocol):
    """What a job was told about how to answer."""

    @property
    def method(self) -> str | None:
        """Name of a reranker; None: the one that the weights are for, eercf without."""
        ...

    @property
    def weights(self) -> Path | None:
        """What ``tbpipe train`` or ``import-weights`` wrote; None with token-binder: those that ship with tbpipe."""
        ...

    @property
    def pretrained(self) -> str | None:
        """The model's weight file, where it has moved."""
        ...

    @property
    def device(self) -> str:
        """auto, cpu or cuda."""
        ...

    @property
    def official(self) -> bool:
        """The sums of the authors' released code, padding and all."""
        ...


Choice = tuple[str | None, Path | None]
"""A method and its weights; None as in AnsweringOptions."""


@dataclass(frozen=True, slots=True, eq=False)
class Answering:
    """Index, text tower and reranker that belong together."""

    index: VectorIndex
    model: ClipModel
    reranker: Reranker
    method: str
    """For people: the reranker's name, and whether it follows released code."""
    warnings: tuple[str, ...]


def choose_methods(names: str | None, weights: Sequence[Path]) -> list[Choice]:
    """What ``--method a,b,c`` and any number of ``--weights`` ask for, in that order.

    A file goes to the method that it was made for. Without names, the files say the methods. Raises UsageError for a
    method that does not exist and for a file of none of those named, InputError for a file that holds no weights.
    """
    named = [name.strip() for name in names.split(",")] if names else []
    if max(len(named), len(weights)) <= 1:
        return [(names, weights[0] if weights else None)]
    from stages.rerankers import TOKEN_BINDER, make_reranker
    from stages.rerankers.head_weights import method_of

    made_for = [(method_of(path), path) for path in weights]
    astray = [(method, path) for method, path in made_for if named and method not in named]
    if astray:
        method, path = astray[0]
        raise UsageError(f"{path} has weights of {method}, which --method {names} does not name")
    chosen: list[Choice] = []
    for name in dict.fromkeys(named or [method for method, _ in made_for]):
        own = [path for method, path in made_for if method == name]
        if not own and name != TOKEN_BINDER:
            make_reranker(name)
        chosen += [(name, path) for path in own] or [(name, None)]
    return chosen


def open_answering(
    store: Store, snapshot: Snapshot, options: AnsweringOptions, index: VectorIndex | None = None
) -> Answering:
    """Open index (unless it is open already) and text tower and make the reranker.

    Raises StoreMissingError without an index, UsageError for a reranker that does not exist or lacks its weights,
    FingerprintError for weights of another model.
    """
    if snapshot.generation() is None:
        raise StoreMissingError(f"{store.directory} has no index yet; run 'tbpipe index --store {store.directory}'")
    from stages.models.clip import choose_devices
    from stages.rerankers import TOKEN_BINDER, make_reranker
    from stages.rerankers.head_weights import open_reranker
    from stages.search import BroadView, open_index

    weights = options.weights
    method = _method(options.method, weights)
    reranker = None if method == TOKEN_BINDER or weights is not None else make_reranker(method)
    index = open_index(snapshot) if index is None else index
    model = text_model(store, options.pretrained, options.device)
    if method == TOKEN_BINDER:
        reranker = _token_binder(store, model, weights)
    elif reranker is None:
        assert weights is not None
        reranker = open_reranker(weights, method, store.settings, model)
    warnings = [BroadView(snapshot, index).staleness]
    name = reranker.name
    if options.official:
        from stages.rerankers.released import words_read

        changes, warning = follow_released_code(store, reranker, options.pretrained, options.device)
        name += "+official" * changes
        warnings.append(warning)
        num_words = words_read(reranker)
        if num_words is not None:
            model.keep_padding(num_words)
    if model.device.type == "cuda":
        gpus = [device.index for device in choose_devices(options.device)]
        warnings.append(index.copy_to_gpus(gpus))
    return Answering(index, model, reranker, name, tuple(warning for warning in warnings if warning))


def follow_released_code(store: Store, reranker: Reranker, pretrained: str | None, device: str) -> tuple[bool, str]:
    """What ``--official`` asks for, on the side of the videos: whether anything changes, and what is to be said.

    Raises UsageError for a method without released code.
    """
    from stages.rerankers import released

    if not released.follow_released_code(reranker):
        return False, ""
    if not released.needs_padding_frame(reranker):
        return True, ""
    images = store_model(store, pretrained, device, store.settings.model.compute_dtype, "image")
    if images.sees_videos:
        return True, (
            f"--official: what {images.name} makes of missing frames depends on the video and is not stored; videos "
            f"with fewer than {store.settings.sampling.frames} frames are scored with zeros in their place"
        )
    released.set_padding_frame(reranker, images, store.settings.tokens.rule, images.device)
    return True, ""


def make_head(
    store: Store, method: str | None, weights: Path | None, device: torch.device, official: bool = False
) -> Reranker:
    """The reranker alone, without index and text tower: enough to prepare videos. Errors as of ``open_answering``."""
    from stages.rerankers import TOKEN_BINDER, make_reranker
    from stages.rerankers.head_weights import open_head

    method = _method(method, weights)
    if method == TOKEN_BINDER:
        raise UsageError(f"preparing saves nothing for {method}, which compares candidates with each other")
    reranker = (
        make_reranker(method)
        if weights is None
        else open_head(weights, method, store.settings).reranker(weights, device)
    )
    if official:
        follow_released_code(store, reranker, None, device.type)
    return reranker


def _method(method: str | None, weights: Path | None) -> str:
    """The method that is meant. Raises UsageError where it takes no weights, InputError for weights of nothing."""
    from stages.rerankers import TOKEN_BINDER
    from stages.rerankers.head_weights import HEADS, method_of

    method = method or ("eercf" if weights is None else method_of(weights))
    if weights is not None and method not in (TOKEN_BINDER, *HEADS):
        known = ", ".join((TOKEN_BINDER, *HEADS))
        raise UsageError(f"--method {method} takes no --weights; leave them out, or use one that does: {known}")
    return method


def read_bank(normalise: Method | None, bank: Path | None, needs_bank: bool = True) -> tuple[str, ...]:
    """The texts of the file ``--bank``; none for dual softmax without one: its bank is the queries themselves.

    Raises UsageError for a bank that nothing asks for and for one that is missing, InputError for a bad file.
    """
    if bank is None:
        if normalise in ("sinkhorn", "qb-norm") and needs_bank:
            raise UsageError(
                f"--normalise {normalise} needs texts that are not the queries: give --bank FILE of captions"
            )
        return ()
    if normalise is None:
        raise UsageError("--bank is what scores are normalised with; give --normalise too")
    if bank.suffix.lower() == ".txt":
        return tuple(query.text for query in read_queries(bank))
    try:
        return tuple(caption.text for caption in read_captions(bank))
    except InputError as error:
        try:
            return tuple(query.text for query in read_queries(bank))
        except InputError:
            raise error from None


def normalisation(normalise: Method | None, bank: tuple[str, ...], model: ClipModel) -> Normalisation | None:
    """What the options ask for."""
    from stages.normalised import Normalisation

    return None if normalise is None else Normalisation(normalise, bank, model.logit_scale)


def _token_binder(store: Store, model: ClipModel, weights: Path | None) -> Reranker:
    """With these weights, or those that ship with tbpipe for the store's model."""
    from stages.rerankers.token_binder import TokenBinderReranker, shipped_weights

    weights = weights or shipped_weights(store.settings)
    if weights is None:
        tokens = store.settings.tokens
        is_placeless = tokens.keeps_some and not tokens.places
        lost = f" ({tokens.keep} patches of a frame, and not which: a new store would say it)" if is_placeless else ""
        raise UsageError(
            f"none of the weights that ship with tbpipe are for the features of {store.directory}{lost}; train some "
            "with 'tbpipe train' and give them with --weights FILE"
        )
    return TokenBinderReranker.open(weights, store.settings, model)


def text_model(store: Store, pretrained: str | None, device: str) -> ClipModel:
    """The text tower of the model that made the store. Raises FingerprintError for other weights."""
    return store_model(store, pretrained, device, store.settings.model.compute_dtype, "text")


def store_model(store: Store, pretrained: str | None, device: str, dtype: str, towers: Towers) -> ClipModel:
    """The model that made the store, in a precision of choice. Raises FingerprintError for other weights."""
    from stages.models import load_model, load_text_side

    pinned = store.settings.model
    if towers == "text" and pretrained is None:
        model = load_text_side(pinned, device, dtype)
    else:
        model = load_model(pinned.name, pretrained or pinned.pretrained, device, dtype, towers)
    found = replace(model.settings(), compute_dtype=pinned.compute_dtype)
    store.settings.require_same(replace(store.settings, model=found), store.directory)
    return model
