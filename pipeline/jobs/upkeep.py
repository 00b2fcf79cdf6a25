"""``tbpipe index``, ``info`` and ``quarantine``: what keeps a store and tells about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from index_store.errors import InputError, UsageError
from index_store.prepared import FORMAT, PreparedAbout, PreparedInfo
from index_store.records import VideoRecord, VideoStatus
from index_store.settings import StoreSettings
from index_store.store import Store

if TYPE_CHECKING:
    from stages.index import IndexReport


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store holds, in numbers."""

    directory: Path
    settings: StoreSettings
    counts: dict[VideoStatus, int]
    num_shards: int
    bytes_by_part: dict[str, int]
    generations: tuple[tuple[int, int, str], ...]
    """(number, vectors, factory) of each index generation kept, newest last."""
    index_is_current: bool
    prepared: tuple[PreparedState, ...]


@dataclass(frozen=True, slots=True)
class PreparedState:
    """One set of prepared videos."""

    name: str
    """Of its directory under ``prepared/``."""
    method: str
    weights: str
    """Path of the weights file when it was made; empty without."""
    device: str
    num_prepared: int
    num_videos: int
    """Of the store; copies count once."""
    size_bytes: int
    is_stale: bool
    """Nothing of it will be used."""
    remarks: tuple[str, ...]
    """What is wrong with it, and what it was made for."""


def index(
    directory: Path,
    factory: str | None = None,
    parameters: str = "",
    lock_timeout: float = 0.0,
    rebuild: bool = False,
    memory: int | None = None,
) -> IndexReport:
    """Run ``tbpipe index``; with ``memory``, in bytes, the factory is the most exact one whose index fits into it.

    Raises UsageError for a factory and a memory together.
    """
    from index_store.vectors import EXACT_FACTORY
    from stages.index import build_index, choose_factory

    store = Store.open(directory)
    if memory is None:
        factory = factory or EXACT_FACTORY
    elif factory is not None:
        raise UsageError(f"--memory chooses a factory, and --factory {factory} is one; give one of the two")
    else:
        with store.snapshot() as snapshot:
            factory = choose_factory(snapshot.num_searchable, snapshot.settings.embed_dim, memory)
    return build_index(store, factory, parameters, lock_timeout, rebuild=rebuild)


def info(directory: Path) -> StoreInfo:
    """Run ``tbpipe info``."""
    store = Store.open(directory)
    with store.snapshot() as snapshot:
        size = snapshot.size_bytes()
        generations = snapshot.generations()
        return StoreInfo(
            directory=store.directory,
            settings=store.settings,
            counts=snapshot.counts(),
            num_shards=len(snapshot.shards()),
            bytes_by_part={"shards": size.shards, "index": size.index, "catalog": size.catalog},
            generations=tuple((entry.id, entry.num_vectors, entry.factory) for entry in generations),
            index_is_current=bool(generations) and generations[-1].commit_number == snapshot.commit_number,
            prepared=tuple(_prepared_state(entry, store) for entry in snapshot.prepared_sets()),
        )


def _prepared_state(found: PreparedInfo, store: Store) -> PreparedState:
    about = found.about
    reasons = _staleness(about, store)
    if not reasons and found.num_prepared == 0:
        reasons = ["made of other videos"]
    remarks = [f"stale, {reasons[0]}: remove it"] if reasons else []
    if about is not None:
        remarks.append(f"for {about.weights}" if about.weights else "without weights")
        remarks += ["which is gone"] if about.weights and not Path(about.weights).is_file() else []
        remarks += [f"on {about.device}"] if about.device != "cpu" else []
    if not reasons and found.num_prepared < found.num_distinct:
        remarks.append("the others are computed each time: run 'tbpipe prepare'")
    return PreparedState(
        name=found.name,
        method=about.method if about else "",
        weights=about.weights if about else "",
        device=about.device if about else "",
        num_prepared=found.num_prepared,
        num_videos=found.num_distinct,
        size_bytes=found.size_bytes,
        is_stale=bool(reasons),
        remarks=tuple(remarks),
    )


def _staleness(about: PreparedAbout | None, store: Store) -> list[str]:
    """Why nothing of a set will be used, as far as can be told."""
    if about is None:
        return ["its about.json is missing or broken"]
    reasons = []
    if about.format != FORMAT:
        reasons.append(f"made by another version ({about.format}, now {FORMAT})")
    if about.fingerprint != store.fingerprint:
        reasons.append(f"made for a store with fingerprint {about.fingerprint[:16]}")
    if about.weights and Path(about.weights).is_file():
        from stages.models.weights import file_sha256

        if file_sha256(Path(about.weights)) != about.weights_sha256:
            reasons.append("made for other weights, the file has changed")
    return reasons


def quarantined(directory: Path, keys: Sequence[str] = ()) -> list[VideoRecord]:
    """Run ``tbpipe quarantine``: the records in quarantine, all or those with the given keys.

    Raises InputError for a key that is not in quarantine.
    """
    with Store.open(directory).snapshot() as snapshot:
        records = list(snapshot.videos(["quarantined"]))
    _require_keys(keys, records)
    return [record for record in records if not keys or record.key in keys]


def requeue(directory: Path, keys: Sequence[str], lock_timeout: float) -> int:
    """Run ``tbpipe quarantine --retry``; gives the number of videos that the next extract tries again."""
    store = Store.open(directory)
    with store.writer(lock_timeout) as writer:
        with store.snapshot() as snapshot:
            _require_keys(keys, list(snapshot.videos(["quarantined"])))
        return writer.requeue(keys or None)


def _require_keys(keys: Sequence[str], records: Sequence[VideoRecord]) -> None:
    known = {record.key for record in records}
    for key in keys:
        if key not in known:
            raise InputError(f"no quarantined video has the key {key!r}; 'tbpipe quarantine' lists them")
