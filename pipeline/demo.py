"""``tbpipe demo``: the main job on videos that it renders and encodes itself, with the model that ships with tbpipe."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from index_store.errors import InputError
from index_store.records import Ranking
from pipeline.jobs.extract import ExtractJob, extract
from pipeline.jobs.rerank import RerankJob, rerank
from pipeline.jobs.upkeep import index
from pipeline.progress import progress_bar
from stages.rerankers import TOKEN_BINDER
from stages.synthetic.families import FAMILIES, family_of
from stages.synthetic.render import DEMO_SEED, CaptionedVideo, JudgedQuery, render_demo, render_families

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
    families: dict[str, dict[str, float]]
    """Family of near-duplicates -> R@1 of both views; empty for the few chosen queries."""
    method: str
    top_k: int
    num_videos: int
    num_queries: int
    seed: int
    directory: Path | None
    """Where videos and store were kept; None when they are gone."""


def run_demo(seed: int | None, videos: int | None, directory: Path | None, device: str, quiet: bool) -> DemoResult:
    """Render, extract, index and rerank. With ``videos``, they are groups of near-duplicates with things that training
    never saw in that colour, and the caption of each is a query; else the queries are a dozen chosen ones.

    Raises InputError when ``directory`` holds something already.
    """
    seed = DEMO_SEED if seed is None else seed
    with _working_directory(directory) as folder:
        corpus, queries = _render(folder, seed, videos, quiet)
        store = folder / "store"
        extract(ExtractJob(sources=(folder / "videos",), store=store, model=MODEL, device=device, quiet=quiet))
        index(store)
        rankings: list[Ranking] = []
        job = RerankJob(
            store=store,
            queries=folder / "queries.jsonl",
            output=folder / "run.jsonl",
            method=None if videos is None else TOKEN_BINDER,
            top_k=TOP_K,
            device=device,
            quiet=quiet,
        )
        result = rerank(job, rankings.append)
    broad, focused = _found(queries, rankings, by_broad=True), _found(queries, rankings, by_broad=False)
    return DemoResult(
        rows=tuple(_rows(queries, rankings, {video.key: video.caption for video in corpus})),
        broad=_recall(broad),
        focused=_recall(focused),
        families={} if videos is None else _by_family(broad, focused),
        method=result.method,
        top_k=result.top_k,
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
    with progress_bar("render", num_videos, "videos", quiet) as advance:
        if num_videos is None:
            return render_demo(folder, seed)
        corpus = render_families(folder, seed, num_videos, combinations="unseen", on_video=advance)
    return corpus, [JudgedQuery(f"q{at:05d}", video.caption, (video.key,), True) for at, video in enumerate(corpus)]


def _rows(queries: Sequence[JudgedQuery], rankings: Sequence[Ranking], captions: dict[str, str]) -> Iterator[DemoRow]:
    for query, ranking in zip(queries, rankings, strict=True):
        best = ranking.hits[0]
        yield DemoRow(
            query.text, captions[best.key], best.score, best.moment_seconds or 0.0, best.key in query.relevant_keys
        )


def _found(queries: Sequence[JudgedQuery], rankings: Sequence[Ranking], by_broad: bool) -> list[int]:
    """Of each query how many candidates come before the first right one; all of them where none is right."""
    places = []
    for query, ranking in zip(queries, rankings, strict=True):
        hits = sorted(ranking.hits, key=lambda hit: (-hit.broad_score, hit.video_id)) if by_broad else ranking.hits
        right = [place for place, hit in enumerate(hits) if hit.key in query.relevant_keys]
        places.append(right[0] if right else max(CUTOFFS))
    return places


def _recall(places: Sequence[int]) -> dict[str, float]:
    """R@k in percent: queries with a right video among the first k."""
    return {f"R@{cut}": 100 * sum(place < cut for place in places) / len(places) for cut in CUTOFFS}


def _by_family(broad: Sequence[int], focused: Sequence[int]) -> dict[str, dict[str, float]]:
    """R@1 of both views for each family of near-duplicates."""
    members = {name: [at for at in range(len(broad)) if family_of(at) == name] for name in FAMILIES}
    return {
        name: {
            "broad": _recall([broad[at] for at in places])["R@1"],
            "focused": _recall([focused[at] for at in places])["R@1"],
        }
        for name, places in members.items()
        if places
    }
