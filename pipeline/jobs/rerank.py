"""``tbpipe rerank`` and ``tbpipe search``: open everything that answers queries, then answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from index_store.errors import InputError
from index_store.records import Query, Ranking
from index_store.runs import output_format, read_queries, write_ranking
from index_store.store import Store
from pipeline.jobs.answering import open_answering
from pipeline.progress import progress_bar


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankJob:
    """Everything that ``tbpipe rerank`` was told."""

    store: Path
    queries: Path
    output: Path
    method: str | None = None
    weights: Path | None = None
    top_k: int = 50
    memory: int = 512 << 20
    device: str = "auto"
    pretrained: str | None = None
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
    with (
        _answering(store, job) as answers,
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
def _answering(store: Store, job: RerankJob | SearchJob) -> Iterator[_Answering]:
    """Open index and text tower and make the reranker; what is wrong with one of them is raised before any work."""
    with store.snapshot() as snapshot:
        opened = open_answering(store, snapshot, job)
        from stages.rerank import rerank as focused_view

        yield _Answering(
            rank=lambda queries: focused_view(
                snapshot,
                opened.index,
                opened.model,
                queries,
                opened.reranker,
                top_k=job.top_k,
                memory_bytes=job.memory,
                device=opened.model.device,
            ),
            method=opened.reranker.name,
            top_k=min(job.top_k, len(opened.index)),
            warnings=opened.warnings,
        )


def _told(rankings: Iterator[Ranking], *listeners: Callable[[Ranking], object]) -> Iterator[Ranking]:
    """The same rankings, each shown to the listeners first."""
    for ranking in rankings:
        for listener in listeners:
            listener(ranking)
        yield ranking
