"""Captions with their videos -> how well both views find them, from text to video and from video to text.

The broad rank is exact over the whole corpus, whatever index recalls the candidates. The focused view re-orders the K
candidates only: a right answer that is not among them keeps its broad rank (and comes after all K in any case), so
focused R@k for k <= K cannot be above the share of queries with a right candidate, the ceiling.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from index_store.errors import InputError, StoreError
from index_store.records import Query, Ranking
from index_store.snapshot import Snapshot
from index_store.vectors import SearchResult, VectorBlock, VectorIndex
from stages.exact_ranks import exact_ranks
from stages.metrics import Metrics, metrics
from stages.normalised import Normalisation, bank_parts, fit, normalised
from stages.rerank import DEFAULT_TOP_K, rerank
from stages.rerankers.base import QueryBatch, Reranker
from stages.search import TextEncoder, unit_length
from stages.text_cache import TextCache
from stages.token_batches import DEFAULT_MEMORY_BYTES, ahead
from stages.video_source import LoadedVideos, open_source

Advance = Callable[[int], object]
"""Told how many more queries are done."""


@dataclass(frozen=True, slots=True)
class CaptionedText:
    """One caption and the videos that it describes."""

    id: str
    text: str
    video_ids: tuple[int, ...]
    """Searchable videos of the store, one at least; several where judgements say so."""


@dataclass(frozen=True, slots=True)
class DirectionResult:
    """How well one direction works."""

    broad: Metrics
    focused: Metrics
    ceiling: float
    """Percent of the queries with a right answer among the candidates: no focused view can have a higher R@K."""
    top_k: int
    """K, candidates that the focused view re-ordered."""
    num_answers: int
    """What was searched: N videos from text to video, T texts (or groups of them) from video to text."""


@dataclass(frozen=True, slots=True, eq=False)
class _Videos:
    """Some videos with their K best texts."""

    ids: NDArray[np.int64]
    broad_ranks: NDArray[np.int64]
    """int64 [V], of the best of a video's own texts among all."""
    found: SearchResult
    """scores float32 [V, K], ids int64 [V, K] = numbers of texts."""
    queries: QueryBatch
    """The distinct texts among them."""
    index: NDArray[np.int64]
    """int64 [V, K], rows of ``queries``."""
    loaded: LoadedVideos


@dataclass(frozen=True, slots=True, eq=False)
class _ScoredVideos:
    """Some videos with the focused scores of their K best texts."""

    ids: NDArray[np.int64]
    broad_ranks: NDArray[np.int64]
    """int64 [V]."""
    texts: NDArray[np.int64]
    """int64 [V, K], numbers of texts."""
    scores: NDArray[np.floating]
    """[V, K]."""


class Evaluation:
    """Both directions over one snapshot of a store."""

    def __init__(
        self,
        snapshot: Snapshot,
        index: VectorIndex,
        encoder: TextEncoder,
        texts: Sequence[CaptionedText],
        reranker: Reranker,
        *,
        top_k: int = DEFAULT_TOP_K,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        device: torch.device | str = "cpu",
        corpus: Sequence[int] | None = None,
        is_grouped: bool = False,
        normalisation: Normalisation | None = None,
    ) -> None:
        """``memory_bytes`` bounds the tokens in memory and, once more, the features of texts; no rank depends on it.

        Beside them, a sentence embedding a text and a pooled embedding a captioned video are held. ``corpus``: ids of
        the videos that are searched, in place of all in the store; ``index`` is then left alone. ``is_grouped``: from
        video to text the answers are the captioned videos' groups of texts, each by its best one. ``normalisation``: of
        the focused scores; from video to text its bank is the captioned videos. Raises InputError for no text.
        """
        if not texts:
            raise InputError("there is no caption of a video of this store; give captions of its videos")
        self._snapshot, self._reranker, self._texts = snapshot, reranker, texts
        self._corpus = None if corpus is None else sorted(corpus)
        self._index = index if self._corpus is None else _index_of(snapshot, self._corpus)
        self._cache = TextCache(encoder, memory_bytes)
        self._top_k, self._memory_bytes, self._device = top_k, memory_bytes, torch.device(device)
        self._normalisation = normalisation
        self._text_numbers: dict[int, list[int]] = {}
        for number, text in enumerate(texts):
            for video_id in text.video_ids:
                self._text_numbers.setdefault(video_id, []).append(number)
        groups = {video_id: group for group, video_id in enumerate(self._text_numbers)}
        self._groups = np.array([groups[text.video_ids[0]] for text in texts]) if is_grouped else None
        """int64 [T], number of the group of each text."""

    @property
    def num_captioned(self) -> int:
        """Videos with a text: the queries from video to text."""
        return len(self._text_numbers)

    # -- text to video ------------------------------------------------------------------------------------------------

    def text_to_video(self, advance: Advance = lambda count: None) -> DirectionResult:
        """Each text is a query; every searchable video of the store is an answer, captioned or not."""
        places = np.zeros(len(self._texts), np.int64)
        widths = np.zeros(len(self._texts), np.int64)
        for number, ranking in enumerate(self._rankings()):
            right = set(self._texts[number].video_ids)
            places[number] = _place([hit.video_id in right for hit in ranking.hits])
            widths[number] = len(ranking.hits)
            advance(1)
        sentences = unit_length(self._cache.sentences([text.text for text in self._texts]))
        broad = exact_ranks(
            sentences,
            [text.video_ids for text in self._texts],
            self._snapshot.read_pooled([video_id for text in self._texts for video_id in text.video_ids]),
            self._snapshot.read_pooled(self._corpus),
        )
        num_answers = self._snapshot.num_searchable if self._corpus is None else len(self._corpus)
        return _result(broad, places, widths, min(self._top_k, len(self._index)), num_answers)

    def _rankings(self) -> Iterator[Ranking]:
        """Of the texts, in their order."""
        queries = [Query(text.id, text.text) for text in self._texts]
        if self._normalisation is None:
            return self._rank(queries, self._reranker)
        return normalised(self._normalisation, self._rank, self._reranker, queries, self._index.ids)

    def _rank(self, queries: Iterable[Query], reranker: Reranker) -> Iterator[Ranking]:
        return rerank(
            self._snapshot,
            self._index,
            self._cache,
            queries,
            reranker,
            top_k=self._top_k,
            memory_bytes=self._memory_bytes,
            device=self._device,
        )

    # -- video to text ------------------------------------------------------------------------------------------------

    def video_to_text(self, advance: Advance = lambda count: None) -> DirectionResult:
        """Each captioned video is a query; every text is an answer, and a video's best-ranked own text counts."""
        top_k = min(self._top_k, len(self._texts))
        broad, places, widths = [], [], []
        for videos in self._scored_videos(top_k):
            broad.append(videos.broad_ranks)
            order = np.lexsort((videos.texts, -videos.scores), axis=1)
            for video_id, ranked in zip(
                videos.ids.tolist(), np.take_along_axis(videos.texts, order, axis=1).tolist(), strict=True
            ):
                answers, own = ranked, set(self._text_numbers[video_id])
                if self._groups is not None:
                    answers = list(dict.fromkeys(self._groups[ranked].tolist()))
                    own = set(self._groups[list(own)].tolist())
                places.append(_place([answer in own for answer in answers]))
                widths.append(len(answers))
            advance(len(videos.ids))
        num_answers = len(self._texts) if self._groups is None else len(self._text_numbers)
        return _result(np.concatenate(broad), np.array(places), np.array(widths), top_k, num_answers)

    def _scored_videos(self, top_k: int) -> Iterator[_ScoredVideos]:
        """The captioned videos by id, some at a time; where scores are normalised, all at once and held."""
        if self._normalisation is None:
            for videos in ahead(self._video_batches(top_k)):
                yield _ScoredVideos(
                    videos.ids, videos.broad_ranks, videos.found.ids, self._score(videos, self._reranker)
                )
            return
        rerankers = {id(part): part for part in (self._reranker, *bank_parts(self._normalisation, self._reranker))}
        found: dict[int, list[_ScoredVideos]] = {key: [] for key in rerankers}
        for videos in ahead(self._video_batches(top_k)):
            for key, reranker in rerankers.items():
                scores = self._score(videos, reranker)
                found[key].append(_ScoredVideos(videos.ids, videos.broad_ranks, videos.found.ids, scores))
        normaliser = fit(
            self._normalisation,
            self._reranker,
            lambda part: [(videos.scores, videos.texts) for videos in found[id(part)]],
            len(self._texts),
        )
        for scored in found[id(self._reranker)]:
            yield replace(scored, scores=normaliser(scored.scores, scored.texts))

    def _video_batches(self, top_k: int) -> Iterator[_Videos]:
        """The captioned videos by id, as many at a time as their tokens and their candidates' features allow."""
        source = open_source(self._snapshot, self._reranker, 1, self._memory_bytes, self._device)
        sentences = unit_length(self._cache.sentences([text.text for text in self._texts]))
        numbers = np.arange(len(sentences))
        index = VectorIndex.build(lambda: [(numbers, sentences)], len(sentences), sentences.shape[1])
        at_once = min(source.capacity, max(1, self._memory_bytes // (top_k * self._cache.max_text_bytes)))
        video_ids = sorted(self._text_numbers)
        for start in range(0, len(video_ids), at_once):
            ids = video_ids[start : start + at_once]
            pooled = np.concatenate([vectors for _, vectors in self._snapshot.read_pooled(ids)])
            right = [self._text_numbers[video_id] for video_id in ids]
            broad = exact_ranks(pooled, right, _rows(sentences, right), [(numbers, sentences)], self._groups)
            found = index.search(pooled, top_k)
            distinct, rows = np.unique(found.ids, return_inverse=True)
            features = self._cache.encode_texts([self._texts[number].text for number in distinct.tolist()])
            yield _Videos(
                np.array(ids),
                broad,
                found,
                QueryBatch.of(features),
                rows.reshape(found.ids.shape),
                source.read(ids),
            )

    def _score(self, videos: _Videos, reranker: Reranker) -> NDArray[np.float32]:
        """What the reranker says, float32 [V, K]. Raises StoreError for a score that is not a number."""
        ranked = videos.loaded.rank_texts(reranker, videos.queries, videos.index, videos.found.scores)
        scores: NDArray[np.float32] = ranked.cpu().numpy()
        if not np.isfinite(scores).all():
            row, column = np.argwhere(~np.isfinite(scores))[0]
            (record,) = self._snapshot.by_ids([int(videos.ids[row])])
            text = self._texts[int(videos.found.ids[row, column])]
            raise StoreError(
                f"{reranker.name} gives video {record.key!r} and text {text.id!r} the score "
                f"{scores[row, column]}; their features may be damaged: extract them into a new store"
            )
        return scores


def _index_of(snapshot: Snapshot, ids: Sequence[int]) -> VectorIndex:
    """An exact index of these videos alone, by ascending id."""
    dim, commit = snapshot.settings.embed_dim, snapshot.commit_number
    return VectorIndex.build(lambda: snapshot.read_pooled(ids), len(ids), dim, commit_number=commit)


def _rows(vectors: NDArray[np.float32], right: Sequence[Collection[int]]) -> Iterator[VectorBlock]:
    """The vectors of each query's right answers, a query at a time."""
    for numbers in right:
        ids = np.array(list(numbers), np.int64)
        yield ids, vectors[ids]


def _place(is_right: Sequence[bool]) -> int:
    """From 1, the first right answer; 0 where there is none."""
    return is_right.index(True) + 1 if True in is_right else 0


def _result(
    broad: NDArray[np.int64], places: NDArray[np.int64], widths: NDArray[np.int64], top_k: int, num_answers: int
) -> DirectionResult:
    """From broad ranks, places among the re-ordered candidates (0 = not there) and numbers of candidates, int64 [Q]."""
    focused = np.where(places > 0, places, np.maximum(broad, widths + 1))
    ceiling = 100 * int((places > 0).sum()) / len(places)
    return DirectionResult(metrics(broad), metrics(focused), ceiling, top_k, num_answers)
