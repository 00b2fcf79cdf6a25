"""``tbpipe rerank`` and ``tbpipe search``: open everything that answers queries, then answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from index_store.errors import InputError
from index_store.records import Query, Ranking
from index_store.runs import output_format, read_queries, write_ranking
from index_store.store import Store
from pipeline.jobs.answering import normalisation, open_answering, read_bank

if TYPE_CHECKING:
    from stages.normalise import Method
    from stages.rerankers.base import Reranker


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankJob:
    """Everything that ``tbpipe rerank`` was told."""

    store: Path
    queries: Path
    output: Path
    method: str | None = None
    weights: Path | None = None
    official: bool = False
    top_k: int = 50
    memory: int = 512 << 20
    device: str = "auto"
    pretrained: str | None = None
    normalise: Method | None = None
    bank: Path | None = None
    tag: str | None = None
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class RerankResult:
    """What a run of rerank wrote."""

    num_queries: int
    top_k: int
    """Candidates of each query: what was asked for, or all videos where there are fewer."""
    method: str
    output: Path
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchJob:
    """Everything that ``tbpipe search`` was told."""

    text: str
    store: Path
    num: int = 10
    method: str | None = None
    weights: Path | None = None
    official: bool = False
    top_k: int = 50
    memory: int = 512 << 20
    device: str = "auto"
    pretrained: str | None = None


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The answer to one text."""

    text: str
    ranking: Ranking
    warnings: tuple[str, ...]


def rerank(job: RerankJob, on_ranking: Callable[[Ranking], None] = lambda ranking: None) -> RerankResult:
    """Run ``tbpipe rerank``: read the queries, answer them one batch after the other, write the run as a whole."""
    store = Store.open(job.store)
    output_format(job.output)
    queries = read_queries(job.queries)
    bank = read_bank(job.normalise, job.bank)
    from pipeline.progress import progress_bar

    with (
        _answering(store, job, job.normalise, bank) as answers,
        progress_bar("rerank", len(queries), "queries", job.quiet) as advance,
    ):
        rankings = _told(answers.rank(queries), on_ranking, lambda ranking: advance(1))
        num_queries = write_ranking(job.output, rankings, job.tag or answers.method)
        return RerankResult(num_queries, answers.top_k, answers.method, job.output, answers.warnings)


def search(job: SearchJob) -> SearchResult:
    """Run ``tbpipe search``: one query, its best ``job.num`` videos."""
    if not job.text.strip():
        raise InputError('the text is empty; say what the video shows, such as "a dog catches a frisbee"')
    with _answering(Store.open(job.store), replace(job, top_k=max(job.top_k, job.num))) as answers:
        (ranking,) = answers.rank([Query("search", job.text)])
        return SearchResult(job.text, Ranking(ranking.query_id, ranking.hits[: job.num]), answers.warnings)


@dataclass(frozen=True, slots=True)
class _Answering:
    """Everything that answers queries over one snapshot of a store."""

    rank: Callable[[Sequence[Query]], Iterator[Ranking]]
    method: str
    top_k: int
    warnings: tuple[str, ...]


@contextmanager
def _answering(
    store: Store, job: RerankJob | SearchJob, normalise: Method | None = None, bank: tuple[str, ...] = ()
) -> Iterator[_Answering]:
    """Open index and text tower and make the reranker; what is wrong with one of them is raised before any work."""
    with store.snapshot() as snapshot:
        opened = open_answering(store, snapshot, job)
        from stages.normalised import normalised
        from stages.rerank import rerank as focused_view

        def rank_with(queries: Iterable[Query], reranker: Reranker) -> Iterator[Ranking]:
            return focused_view(
                snapshot,
                opened.index,
                opened.model,
                queries,
                reranker,
                top_k=job.top_k,
                memory_bytes=job.memory,
                device=opened.model.device,
            )

        asked = normalisation(normalise, bank, opened.model)

        def rank(queries: Sequence[Query]) -> Iterator[Ranking]:
            if asked is None:
                return rank_with(queries, opened.reranker)
            return normalised(asked, rank_with, opened.reranker, queries, opened.index.ids)

        yield _Answering(
            rank=rank,
            method=opened.method + (f"+{normalise}" if normalise else ""),
            top_k=min(job.top_k, len(opened.index)),
            warnings=opened.warnings,
        )


def _told(rankings: Iterator[Ranking], *listeners: Callable[[Ranking], object]) -> Iterator[Ranking]:
    """The same rankings, each shown to the listeners first."""
    for ranking in rankings:
        for listener in listeners:
            listener(ranking)
        yield ranking
