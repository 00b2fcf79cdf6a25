"""``tbpipe demo``: the main job on videos that it renders and encodes itself, with the model that ships with tbpipe."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from index_store.errors import InputError
from index_store.records import Ranking
from pipeline.jobs.extract import ExtractJob, extract
from pipeline.jobs.rerank import RerankJob, rerank
from pipeline.jobs.upkeep import index
from pipeline.progress import progress_bar
from stages.render import DEMO_SEED, CaptionedVideo, JudgedQuery, render_corpus, render_demo

MODEL = "tbpipe-small"
TOP_K = 20
CUTOFFS = (1, 5)


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One query of the demo and what came out on top."""

    query: str
    found: str
    """The caption of the video that the focused view put first."""
    score: float
    moment_seconds: float
    is_right: bool


@dataclass(frozen=True, slots=True)
class DemoResult:
    """How the demo went."""

    rows: tuple[DemoRow, ...]
    broad: dict[str, float]
    """R@1 and R@5 of the broad view, percent."""
    focused: dict[str, float]
    num_videos: int
    num_queries: int
    seed: int
    directory: Path | None
    """Where videos and store were kept; None when they are gone."""


def run_demo(seed: int | None, videos: int | None, directory: Path | None, device: str, quiet: bool) -> DemoResult:
    """Render, extract, index and rerank. With ``videos``, the caption of each is a query; else a dozen chosen ones are.

    Raises InputError when ``directory`` holds something already.
    """
    seed = DEMO_SEED if seed is None else seed
    with _working_directory(directory) as folder:
        corpus, queries = _render(folder, seed, videos, quiet)
        store = folder / "store"
        extract(ExtractJob(sources=(folder / "videos",), store=store, model=MODEL, device=device, quiet=quiet))
        index(store)
        job = RerankJob(store=store, queries=folder / "queries.jsonl", output=folder / "run.jsonl", quiet=quiet)
        rankings: list[Ranking] = []
        rerank(replace(job, top_k=TOP_K, device=device), rankings.append)
    return DemoResult(
        rows=tuple(_rows(queries, rankings, {video.key: video.caption for video in corpus})),
        broad=_recall(queries, rankings, by_broad=True),
        focused=_recall(queries, rankings, by_broad=False),
        num_videos=len(corpus),
        num_queries=len(queries),
        seed=seed,
        directory=directory,
    )


@contextmanager
def _working_directory(directory: Path | None) -> Iterator[Path]:
    if directory is None:
        with tempfile.TemporaryDirectory(prefix="tbpipe-demo-") as folder:
            yield Path(folder)
        return
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"{directory} is not empty; name a new directory for the demo")
    directory.mkdir(parents=True, exist_ok=True)
    yield directory


def _render(
    folder: Path, seed: int, num_videos: int | None, quiet: bool
) -> tuple[list[CaptionedVideo], list[JudgedQuery]]:
    with progress_bar("render", None, "videos", quiet):
        if num_videos is None:
            return render_demo(folder, seed)
        corpus = render_corpus(folder, seed, num_videos)
    return corpus, [
        JudgedQuery(f"q{place:05d}", video.caption, (video.key,), False) for place, video in enumerate(corpus)
    ]


def _rows(queries: Sequence[JudgedQuery], rankings: Sequence[Ranking], captions: dict[str, str]) -> Iterator[DemoRow]:
    for query, ranking in zip(queries, rankings, strict=True):
        best = ranking.hits[0]
        yield DemoRow(
            query.text, captions[best.key], best.score, best.moment_seconds or 0.0, best.key in query.relevant_keys
        )


def _recall(queries: Sequence[JudgedQuery], rankings: Sequence[Ranking], by_broad: bool) -> dict[str, float]:
    """R@k in percent: queries with a right video among the first k."""
    places = []
    for query, ranking in zip(queries, rankings, strict=True):
        hits = sorted(ranking.hits, key=lambda hit: (-hit.broad_score, hit.video_id)) if by_broad else ranking.hits
        right = [place for place, hit in enumerate(hits) if hit.key in query.relevant_keys]
        places.append(right[0] if right else len(hits))
    return {f"R@{cut}": 100 * sum(place < cut for place in places) / len(places) for cut in CUTOFFS}
