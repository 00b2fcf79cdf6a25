"""``tbpipe evaluate``: captions, judged queries or a benchmark, and a store -> how well both views find the videos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from index_store.captions import Caption, match_captions, read_captions
from index_store.errors import InputError, UsageError
from index_store.records import SEARCHABLE
from index_store.runs import read_qrels, read_queries
from index_store.snapshot import Snapshot
from index_store.store import Store
from pipeline.jobs.answering import Choice, normalisation, open_answering, read_bank
from pipeline.jobs.benchmark import match_split
from pipeline.progress import progress_bar
from stages.datasets import find_dataset
from stages.datasets.base import MatchedSplit, Split

if TYPE_CHECKING:
    from stages.evaluate import CaptionedText, DirectionResult
    from stages.models.clip import ClipModel
    from stages.normalise import Method

Direction = Literal["both", "t2v", "v2t"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateJob:
    """Everything that ``tbpipe evaluate`` was told."""

    store: Path
    captions: Path | None = None
    split: str = ""
    queries: Path | None = None
    qrels: Path | None = None
    dataset: str | None = None
    annotations: Path | None = None
    direction: Direction = "both"
    method: str | None = None
    weights: Path | None = None
    official: bool = False
    normalise: Method | None = None
    bank: Path | None = None
    top_k: int = 50
    memory: int = 512 << 20
    device: str = "auto"
    pretrained: str | None = None
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """How well the two directions work; None for one that was not asked for."""

    text_to_video: DirectionResult | None
    video_to_text: DirectionResult | None
    method: str
    weights: Path | None
    """What it was told to answer with."""
    num_videos: int
    """Searchable videos of the store."""
    num_captioned: int
    """Those that a text describes."""
    num_left_out: int
    """Texts that describe no video of the store."""
    split: MatchedSplit | None
    """The benchmark's split, where one was asked for: then its videos alone are searched."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Texts:
    """What was read, and what of it the store knows."""

    texts: list[CaptionedText]
    num_left_out: int
    warnings: tuple[str, ...]
    corpus: tuple[int, ...] | None = None
    """Videos that are searched; None: all of the store."""
    split: MatchedSplit | None = None


def evaluate(job: EvaluateJob) -> EvaluateResult:
    """Run ``tbpipe evaluate`` with one method. What is wrong with the input is raised before the model is loaded."""
    (result,) = compare(job, [(job.method, job.weights)])
    return result


def compare(job: EvaluateJob, choices: Sequence[Choice]) -> list[EvaluateResult]:
    """Run ``tbpipe evaluate`` with each of some methods, on the same texts; ``job`` says everything else."""
    read = _reader(job)
    bank, remark = _bank(job)
    store = Store.open(job.store)
    with store.snapshot() as snapshot:
        known = read({record.key: record.id for record in snapshot.videos(SEARCHABLE)})
        known = replace(known, warnings=(*known.warnings, *remark))
        jobs = [replace(job, method=method, weights=weights) for method, weights in choices]
        return [_evaluate(one, store, snapshot, known, bank) for one in jobs]


def _bank(job: EvaluateJob) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts to normalise with, and what is to be said about them.

    Of a benchmark they are, unless told otherwise, captions that it is trained on: the first one of each video. Errors
    as of ``read_bank``, InputError where the annotation files have no training captions.
    """
    needs_bank = job.normalise in ("sinkhorn", "qb-norm") and job.direction != "v2t"
    if job.bank is not None or not needs_bank or job.dataset is None or job.annotations is None:
        return read_bank(job.normalise, job.bank, needs_bank=needs_bank), ()
    dataset = find_dataset(job.dataset)
    try:
        split = dataset.read(job.annotations, dataset.train)
    except InputError as error:
        raise InputError(f"--normalise {job.normalise} needs training captions, or --bank FILE: {error}") from error
    bank = tuple(video.captions[0] for video in split.videos)
    return bank, (f"--normalise {job.normalise}: the bank is the first captions of the {len(bank)} videos of {split}",)


def _evaluate(
    job: EvaluateJob, store: Store, snapshot: Snapshot, known: _Texts, bank: tuple[str, ...]
) -> EvaluateResult:
    """One method."""
    answering = open_answering(store, snapshot, job)
    from stages.evaluate import Evaluation

    evaluation = Evaluation(
        snapshot,
        answering.index,
        answering.model,
        known.texts,
        answering.reranker,
        top_k=job.top_k,
        memory_bytes=job.memory,
        device=answering.model.device,
        corpus=known.corpus,
        is_grouped=known.split is not None and known.split.split.protocol == "all captions",
        normalisation=normalisation(job.normalise, bank, answering.model),
    )
    asks_texts, asks_videos = job.direction != "v2t", job.direction != "t2v"
    total = asks_texts * len(known.texts) + asks_videos * evaluation.num_captioned
    with progress_bar("evaluate", total, "queries", job.quiet) as advance:
        return EvaluateResult(
            text_to_video=evaluation.text_to_video(advance) if asks_texts else None,
            video_to_text=evaluation.video_to_text(advance) if asks_videos else None,
            method=answering.method + (f"+{job.normalise}" if job.normalise else ""),
            weights=job.weights,
            num_videos=snapshot.num_searchable,
            num_captioned=evaluation.num_captioned,
            num_left_out=known.num_left_out,
            split=known.split,
            warnings=(*known.warnings, *answering.warnings, *_cut(answering.model, known.texts)),
        )


def _cut(model: ClipModel, texts: Sequence[CaptionedText]) -> tuple[str, ...]:
    """A sentence about the texts that fill the text tower, which reads no further; none where there are none."""
    from stages.models.text import word_mask

    _, tokenizer = model.query_side()
    room = tokenizer.context_length - 2  # beside start and end; a token is a byte at least
    long = [text.text for text in texts if len(text.text.encode()) >= room]
    full = int(word_mask(tokenizer(long), tokenizer.end_id).all(dim=1).sum()) if long else 0
    if not full:
        return ()
    places = f"all {tokenizer.context_length} positions of the text tower"
    return (f"{full} of {len(texts)} texts fill {places}; what comes after was not read",)


def _reader(job: EvaluateJob) -> Callable[[Mapping[str, int]], _Texts]:
    """What reads the texts, given key -> id of the videos. Raises UsageError unless one kind of input is asked for."""
    kinds = ("captions", "queries", "qrels", "dataset", "annotations")
    given = [f"--{name}" for name in kinds if getattr(job, name) is not None]
    if job.dataset is not None and job.annotations is not None and len(given) == 2:
        split = find_dataset(job.dataset).read(job.annotations, job.split)
        return lambda ids: _benchmark(split, job, ids)
    if job.captions is not None and len(given) == 1:
        captions = job.captions
        return lambda ids: _captions(captions, job, ids)
    if job.queries is not None and job.qrels is not None and len(given) == 2:
        if job.split:
            raise UsageError("--split belongs to --captions and --dataset; leave it out with --queries and --qrels")
        queries, qrels = job.queries, job.qrels
        return lambda ids: _judged_queries(queries, qrels, job.store, ids)
    raise UsageError(
        f"found {' and '.join(given) or 'no texts'}; give --captions FILE, or --queries FILE and --qrels FILE, or "
        "--dataset NAME and --annotations DIR"
    )


def _benchmark(split: Split, job: EvaluateJob, ids: Mapping[str, int]) -> _Texts:
    """Every caption of the split's videos, which alone are searched."""
    matched = match_split(split, job.store, ids)
    from stages.evaluate import CaptionedText

    texts = [
        CaptionedText(f"{video.names[0]}#{number}", caption, (ids[key],))
        for video, key in matched.found
        for number, caption in enumerate(video.captions, start=1)
    ]
    num_left_out = sum(len(video.captions) for video in split.videos) - len(texts)
    corpus = tuple(ids[key] for _, key in matched.found)
    said = (*split.remarks, *matched.left_out(), matched.comparison())
    return _Texts(texts, num_left_out, tuple(filter(None, said)), corpus, matched)


def _captions(path: Path, job: EvaluateJob, ids: Mapping[str, int]) -> _Texts:
    """Every caption is a text about one video."""
    captions = read_captions(path, job.split)
    matched = match_captions(captions, ids)
    if not matched.found:
        raise _none_matches(f"{len(captions)} captions in {path}", captions[0].key, job.store, ids)
    from stages.evaluate import CaptionedText

    texts = [CaptionedText(caption.id, caption.text, (ids[key],)) for caption, key in matched.found]
    return _Texts(texts, len(captions) - len(texts), matched.left_out())


def _judged_queries(queries_path: Path, qrels_path: Path, store: Path, ids: Mapping[str, int]) -> _Texts:
    """Every query that has a relevant video in the store is a text about all of those."""
    queries = read_queries(queries_path)
    asked = {query.id: query.text for query in queries}
    judged = [
        Caption(key=judgement.key, text=asked[judgement.query_id], id=judgement.query_id)
        for judgement in read_qrels(qrels_path)
        if judgement.relevance > 0 and judgement.query_id in asked
    ]
    if not judged:
        raise InputError(
            f"none of the {len(queries)} queries in {queries_path} has a relevant video in {qrels_path}; the query "
            "ids of both must agree"
        )
    matched = match_captions(judged, ids)
    if not matched.found:
        raise _none_matches(f"{len(judged)} judgements in {qrels_path}", judged[0].key, store, ids)
    right: dict[str, set[int]] = {}
    for caption, key in matched.found:
        right.setdefault(caption.id, set()).add(ids[key])
    from stages.evaluate import CaptionedText

    texts = [
        CaptionedText(query.id, query.text, tuple(sorted(right[query.id]))) for query in queries if query.id in right
    ]
    warnings = matched.left_out("judgements")
    if len(texts) < len(queries):
        number = f"{len(queries) - len(texts)} of {len(queries)} queries"
        warnings += (f"{number} have no relevant video in the store and were left out",)
    return _Texts(texts, len(queries) - len(texts), warnings)


def _none_matches(texts: str, key: str, store: Path, ids: Mapping[str, int]) -> InputError:
    example = f" (such as {min(ids)!r})" if ids else ""
    return InputError(
        f"none of the {texts} is about one of the {len(ids)} videos in {store}{example}; they are about videos such as "
        f"{key!r}: give those of this store's videos"
    )
