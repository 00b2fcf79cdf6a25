"""The ways to keep tokens, a store for each, and which queries find their video first."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import lines
from benchmarks.near_duplicates import MODEL, Corpus
from index_store.captions import read_captions
from index_store.records import SEARCHABLE, Query, VideoFile, VideoOutcome
from index_store.settings import StoreSettings, TokenSettings
from index_store.snapshot import Snapshot
from index_store.store import Store
from pipeline.demo import TOP_K
from stages.index import build_index
from stages.models import load_model
from stages.models.clip import ClipModel
from stages.rerank import rerank
from stages.rerankers import TOKEN_BINDER, make_reranker
from stages.rerankers.base import Reranker
from stages.rerankers.fusion import Gathering
from stages.rerankers.token_binder import TokenBinderReranker, TokenBinderWeights, shipped_weights
from stages.search import open_index
from stages.tokens import pack_features

NAME = "sizes.jsonl"
METHODS = ("eercf", "late-interaction", TOKEN_BINDER)
_KEPT = ("all", "24", "12", "4", "1", "cls", "distinct:24", "distinct:12", "distinct:4", "distinct:1")
SETTINGS = tuple(
    TokenSettings.new(dtype, keep)  # type: ignore[arg-type]
    for dtype, keep in itertools.product(("float16", "int8"), _KEPT)
    if dtype == "float16" or keep == "distinct:12" or not keep.startswith("distinct")
)
_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Result:
    """One method on one store."""

    method: str
    dtype: str
    keep: str
    seed: int
    num_videos: int
    bytes_per_video: int
    right: str
    """A digit a query: 1 where its video came first."""
    broad_right: str
    """The same of the broad view, which is one for all stores of a seed."""
    places: bool = False
    """Whether a store that keeps some patches said which."""

    @property
    def key(self) -> tuple[str, str, str, bool, int, int]:
        """What tells results apart."""
        return self.method, self.dtype, self.keep, self.places, self.seed, self.num_videos


def read_results(work: Path) -> dict[tuple[str, str, str, bool, int, int], Result]:
    """Those of earlier runs; later lines replace earlier ones."""
    path = work / NAME
    found = [Result(**fields) for _, fields in lines.read(path)] if path.exists() else []
    return {result.key: result for result in found}


def measure(corpus: Corpus, work: Path, methods: Sequence[str], settings: Sequence[TokenSettings]) -> Iterator[Result]:
    """Results that are not there yet, as they are written down."""
    done = read_results(work)
    for tokens in settings:
        about = (tokens.dtype, tokens.keep, bool(tokens.places), corpus.seed, corpus.num_videos)
        left = [name for name in methods if (name, *about) not in done]
        if not left:
            continue
        directory = work / "derived"
        shutil.rmtree(directory, ignore_errors=True)
        store = derive(Store.open(corpus.store), tokens, directory)
        for name in left:
            result = _result(name, tokens, corpus, store)
            lines.append(work / NAME, asdict(result))
            yield result
        shutil.rmtree(directory)


def derive(source: Store, tokens: TokenSettings, directory: Path) -> Store:
    """A store with the same videos and other tokens, made of the float16 tokens of ``source``, which keeps all.

    The same that extract would have kept, but for what float16 took from the numbers before.
    """
    settings = replace(source.settings, tokens=tokens)
    store = Store.create(directory, settings)
    with source.snapshot() as snapshot, store.writer() as writer:
        records = [record for record in snapshot.videos() if record.status in SEARCHABLE]
        for start in range(0, len(records), _AT_ONCE):
            writer.commit(list(_outcomes(snapshot, records[start : start + _AT_ONCE], settings)))
    build_index(store)
    return store


def _outcomes(snapshot: Snapshot, records: Sequence[Any], settings: StoreSettings) -> Iterator[VideoOutcome]:
    batch = snapshot.read_tokens([record.id for record in records])
    for place, record in enumerate(records):
        mask = batch.frame_mask[place]
        rows = torch.from_numpy(batch.tokens[place][mask]).float()
        features = pack_features(rows, batch.timestamps_seconds[place][mask], settings)
        assert features is not None
        file = VideoFile(record.key, record.path, record.size_bytes, record.mtime_ns, record.inode)
        yield VideoOutcome(file, "ok", record.content_hash, record.duration_seconds, record.decoder, features=features)


def _result(method: str, tokens: TokenSettings, corpus: Corpus, store: Store) -> Result:
    captions = list(read_captions(corpus.captions))
    keys = [caption.key for caption in captions]
    queries = [Query(str(place), caption.text) for place, caption in enumerate(captions)]
    model, reranker = _opened(method, store.settings)
    with store.snapshot() as snapshot:
        index = open_index(snapshot)
        rankings = list(rerank(snapshot, index, model, queries, reranker, top_k=TOP_K))
    firsts = [ranking.hits[0].key for ranking in rankings]
    broad = [min(ranking.hits, key=lambda hit: (-hit.broad_score, hit.video_id)).key for ranking in rankings]
    return Result(
        method,
        tokens.dtype,
        tokens.keep,
        corpus.seed,
        corpus.num_videos,
        store.settings.bytes_per_video,
        _digits(firsts, keys),
        _digits(broad, keys),
        bool(tokens.places),
    )


def _opened(method: str, settings: StoreSettings) -> tuple[ClipModel, Reranker]:
    model = load_model(MODEL, device="cpu", towers="text")
    if method != TOKEN_BINDER:
        return model, make_reranker(method)
    return model, shipped_reranker(settings, model)


def shipped_reranker(settings: StoreSettings, model: ClipModel) -> Reranker:
    """TokenBinder with the weights that ship, whose text side ``model`` takes over, for any way to keep tokens.

    They know a place for each of all tokens. Where nobody knows which patch is which, as in stores of earlier versions,
    the frame embedding has its own place, and every patch the mean of all.
    """
    path = shipped_weights(replace(settings, tokens=TokenSettings("float16", "all")))
    assert path is not None
    if settings.tokens.knows_places:
        return TokenBinderReranker.open(path, settings, model)
    weights = TokenBinderWeights.load(path)
    model.adopt_query_side(weights.indicators, weights.text, path)
    network = weights.network(path)
    for block in network.blocks:
        assert isinstance(block, Gathering)
        frame, patches = block.place[:1], block.place[1:]
        mean = patches.mean(dim=0, keepdim=True).expand(settings.token_shape[1] - 1, -1)
        block.place = nn.Parameter(torch.cat([frame, mean]), requires_grad=False)
    return TokenBinderReranker(network, weights.logit_scale, model.device)


def _digits(found: Sequence[str], expected: Sequence[str]) -> str:
    return "".join(str(int(one == other)) for one, other in zip(found, expected, strict=True))
