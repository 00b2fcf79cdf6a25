"""Standing queries: answered again after the videos have changed, and only where the answer can differ.

The broad view asks for all of them. A text whose candidates and their broad scores are as they were, and of whose
candidates none has changed, would be ranked as it was: its answer is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_store.records import Hit, Query, Ranking
from index_store.snapshot import Snapshot
from index_store.standing_state import StandingAnswers
from index_store.vectors import VectorIndex
from stages.search import QUERIES_PER_BATCH, BroadView

TEXTS_AT_ONCE = 32
"""Seconds of work for the slowest method: a run that is to stop does so between two parts."""

Rank = Callable[[Sequence[Query]], Iterator[Ranking]]
"""Ranks queries as ``tbpipe rerank`` does, in their order."""


def still_right(
    snapshot: Snapshot, index: VectorIndex, answers: StandingAnswers, commit_number: int, top_k: int
) -> StandingAnswers:
    """Those of the answers, given at ``commit_number``, that would be given again with ``top_k`` candidates."""
    view = BroadView(snapshot, index)
    changed = np.fromiter((video_id for video_id, _ in snapshot.changed_since(commit_number)), np.int64)
    is_right = np.zeros(len(answers), np.bool_)
    for start in range(0, len(answers), QUERIES_PER_BATCH):
        rows = slice(start, start + QUERIES_PER_BATCH)
        found = view.candidates(answers.sentences[rows], top_k)
        ids, scores = _by_broad_score(answers.ids[rows], answers.broad[rows])
        width = max(ids.shape[1], found.ids.shape[1])
        same = (_wide(ids, width, -1) == _wide(found.ids, width, -1)).all(axis=1)
        same &= (_wide(scores, width, -np.inf) == _wide(found.scores, width, -np.inf)).all(axis=1)
        is_right[rows] = same & ~np.isin(answers.ids[rows], changed).any(axis=1)
    return answers.some(np.flatnonzero(is_right))


def of_texts(answers: StandingAnswers, texts: Sequence[str]) -> StandingAnswers:
    """The answers to those of these texts that have one."""
    asked = set(texts)
    return answers.some(np.array([row for row, text in enumerate(answers.texts) if text in asked], np.intp))


def answer(
    texts: Sequence[str],
    kept: StandingAnswers,
    rank: Rank,
    sentences: Callable[[Sequence[str]], NDArray[np.float32]],
) -> Iterator[StandingAnswers]:
    """Ranks those of these different texts that are not among ``kept``, some at a time.

    Yields all answers that there are after each time; the last ones are the answers to all texts. ``kept`` has no other
    texts than those; ``sentences``: float32 [T, D] of texts that were ranked.
    """
    known = set(kept.texts)
    missing = [text for text in texts if text not in known]
    for start in range(0, len(missing), TEXTS_AT_ONCE):
        part = missing[start : start + TEXTS_AT_ONCE]
        rows = [_row(ranking) for ranking in rank([Query(str(number), text) for number, text in enumerate(part)])]
        kept = _joined(kept, _stacked(part, sentences(part), rows))
        yield kept


def rankings(snapshot: Snapshot, queries: Iterable[Query], answers: StandingAnswers) -> Iterator[Ranking]:
    """What ``tbpipe rerank`` gives for these queries, whose texts are all answered."""
    row_of = {text: row for row, text in enumerate(answers.texts)}
    for query in queries:
        row = row_of[query.text]
        ids = answers.ids[row][answers.ids[row] >= 0].tolist()
        columns = (answers.broad[row], answers.focused[row], answers.moments[row])
        keys = [record.key for record in snapshot.by_ids(ids)]
        yield Ranking(query.id, tuple(map(Hit, ids, keys, *(column[: len(ids)].tolist() for column in columns))))


def no_answers(width: int) -> StandingAnswers:
    """None yet; ``width`` is D."""
    return _stacked([], np.empty((0, width), np.float32), [])


_Row = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]
"""ids, broad scores, focused scores and moments of one ranking."""


def _row(ranking: Ranking) -> _Row:
    hits = ranking.hits
    return (
        np.array([hit.video_id for hit in hits], np.int64),
        np.array([hit.broad_score for hit in hits], np.float32),
        np.array([hit.score for hit in hits], np.float32),
        np.array([hit.moment_seconds for hit in hits], np.float64),
    )


def _stacked(texts: Sequence[str], sentences: NDArray[np.float32], rows: Sequence[_Row]) -> StandingAnswers:
    width = max((len(row[0]) for row in rows), default=0)
    shape = len(rows), width
    ids = np.full(shape, -1, np.int64)
    broad, focused, moments = np.full(shape, -np.inf, "f4"), np.full(shape, -np.inf, "f4"), np.zeros(shape)
    for place, row in enumerate(rows):
        num_hits = len(row[0])
        ids[place, :num_hits], broad[place, :num_hits], focused[place, :num_hits], moments[place, :num_hits] = row
    return StandingAnswers(tuple(texts), sentences, ids, broad, focused, moments)


def _joined(first: StandingAnswers, second: StandingAnswers) -> StandingAnswers:
    width = max(first.ids.shape[1], second.ids.shape[1])

    def both(name: str, nothing: float) -> NDArray[Any]:
        return np.concatenate([_wide(getattr(part, name), width, nothing) for part in (first, second)])

    return StandingAnswers(
        first.texts + second.texts,
        np.concatenate([first.sentences, second.sentences]),
        both("ids", -1),
        both("broad", -np.inf),
        both("focused", -np.inf),
        both("moments", 0.0),
    )


def _by_broad_score(
    ids: NDArray[np.int64], scores: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """As the broad view gives them: best first, equal scores by id."""
    order = np.lexsort((ids, -scores), axis=-1)
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _wide(array: NDArray[Any], width: int, nothing: float) -> NDArray[Any]:
    return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=nothing)
