"""Standing queries: a file of queries whose run is kept as ``tbpipe rerank`` would write it now."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from index_store.errors import InputError, StoreMissingError
from index_store.index_files import read_manifest
from index_store.records import Query, Ranking
from index_store.refresh_settings import StandingQueries
from index_store.runs import output_format, read_queries, write_ranking
from index_store.snapshot import Snapshot
from index_store.standing_state import FileStamp, StandingAnswers, StandingRun, StandingState
from index_store.store import Store
from pipeline import __version__

if TYPE_CHECKING:
    from index_store.vectors import VectorIndex

_LIBRARIES = ("torch", "faiss-gpu", "faiss-cpu", "numpy", "open_clip_torch")
"""Another version of them may give another last bit of a score."""
_TEXT_CACHE_BYTES = 64 << 20
_SAVE_SECONDS = 60.0
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingJob:
    """What to answer, and how."""

    store: Path
    asked: StandingQueries
    pretrained: str | None = None
    device: str = "auto"
    memory: int = 512 << 20

    @property
    def method(self) -> str | None:
        """As ``AnsweringOptions`` has it."""
        return self.asked.method

    @property
    def weights(self) -> Path | None:
        """As ``AnsweringOptions`` has it."""
        return self.asked.weights

    @property
    def official(self) -> bool:
        """Never: the sums of released code are for comparison."""
        return False


@dataclass(frozen=True, slots=True)
class StandingReport:
    """What was done for one file of queries."""

    output: Path
    outcome: Literal["unchanged", "written", "interrupted"]
    """unchanged: the file was right; interrupted: it is as it was, and the next run goes on."""
    method: str
    num_queries: int
    num_ranked: int
    """Different texts that were ranked now."""
    num_kept: int
    """Different texts whose answers cannot have changed."""
    warnings: tuple[str, ...] = ()


def answer_standing(
    job: StandingJob, should_stop: Callable[[], bool] = lambda: False, on_ranked: Callable[[], None] = lambda: None
) -> StandingReport:
    """Bring the file ``job.asked.output`` up to date; its bytes are those that ``tbpipe rerank`` would write.

    Whoever calls holds the writer lock, so that nobody does the same. ``should_stop`` is asked every few texts, and
    killed, it loses what was ranked in the last minute. Raises what ``tbpipe rerank`` raises.
    """
    store = Store.open(job.store)
    output_format(job.asked.output)
    with store.snapshot() as snapshot:
        return _Standing(store, snapshot, job).bring_up_to_date(should_stop, on_ranked)


class _Standing:
    """One file of queries over one snapshot."""

    def __init__(self, store: Store, snapshot: Snapshot, job: StandingJob) -> None:
        self._store, self._snapshot, self._job = store, snapshot, job
        self._state = StandingState(store.directory, job.asked.output)
        queries_sha256 = _file_sha256(job.asked.queries)
        self._queries = read_queries(job.asked.queries)
        self._texts = list(dict.fromkeys(query.text for query in self._queries))
        self._now = StandingRun(
            made_with=_made_with(store, job),
            commit_number=snapshot.commit_number,
            index_sha256=_index_sha256(store, snapshot),
            queries_sha256=queries_sha256,
        )
        self._warnings: tuple[str, ...] = ()

    def bring_up_to_date(self, should_stop: Callable[[], bool], on_ranked: Callable[[], None]) -> StandingReport:
        before = self._state.run()
        if before is not None and before.made_with != self._now.made_with:
            before = None
        is_written = before is not None and self._is_written(before)
        if before is not None and is_written and self._has_same_videos(before):
            return self._report("unchanged", before, 0, len(self._texts))
        from stages.standing import no_answers, rankings

        answers = no_answers(self._store.settings.embed_dim) if before is None else self._still_right(before)
        run = replace(self._now, device=before.device, method=before.method) if before is not None else self._now
        num_kept = len(answers)
        if num_kept < len(self._texts):
            if should_stop():
                return self._report("interrupted", run, 0, num_kept)
            answers, run, num_kept = self._ranked(answers, run, should_stop, on_ranked)
        num_ranked = len(answers) - num_kept
        if len(answers) < len(self._texts):
            self._state.write(run, answers)
            return self._report("interrupted", run, num_ranked, num_kept)
        is_right = is_written and not num_ranked
        if not is_right:
            write_ranking(self._job.asked.output, rankings(self._snapshot, self._queries, answers), run.method)
        self._state.write(replace(run, output=FileStamp.of(self._job.asked.output)), answers)
        return self._report("unchanged" if is_right else "written", run, num_ranked, num_kept)

    def _is_written(self, before: StandingRun) -> bool:
        """Whether the output has the answers of ``before``, to the queries that there are now."""
        is_whole = before.output is not None and before.output == FileStamp.of(self._job.asked.output)
        return is_whole and before.queries_sha256 == self._now.queries_sha256

    def _has_same_videos(self, before: StandingRun) -> bool:
        return (before.commit_number, before.index_sha256) == (self._now.commit_number, self._now.index_sha256)

    def _has_same_features(self, before: StandingRun) -> bool:
        """Whether no commit since has given a video features, changed them or taken them."""
        generation = self._snapshot.generation()
        is_current = generation is not None and generation.commit_number == self._now.commit_number
        if before.index_sha256 != self._now.index_sha256 or not is_current:
            return False
        return not any(has_features for _, has_features in self._snapshot.changed_since(before.commit_number))

    def _still_right(self, before: StandingRun) -> StandingAnswers:
        """What is kept of the answers of ``before``, for texts that are asked now."""
        from stages.standing import no_answers, of_texts, still_right

        answers = self._state.answers()
        if answers is None or before.commit_number > self._now.commit_number:  # the store is an older copy
            return no_answers(self._store.settings.embed_dim)
        answers = of_texts(answers, self._texts)
        if self._has_same_videos(before) or self._has_same_features(before):
            return answers
        return still_right(self._snapshot, self._index, answers, before.commit_number, self._job.asked.top_k)

    @cached_property
    def _index(self) -> VectorIndex:
        from stages.search import open_index

        return open_index(self._snapshot)

    def _ranked(
        self,
        kept: StandingAnswers,
        run: StandingRun,
        should_stop: Callable[[], bool],
        on_ranked: Callable[[], None],
    ) -> tuple[StandingAnswers, StandingRun, int]:
        """All answers, or those that there are when it is stopped; with what, and how many were kept."""
        from pipeline.jobs.answering import open_answering
        from stages.rerank import rerank
        from stages.standing import answer, no_answers
        from stages.text_cache import TextCache

        opened = open_answering(self._store, self._snapshot, self._job, self._index)
        device = opened.model.device
        if run.device not in ("", device.type):
            kept = no_answers(self._index.dim)  # the last bits of a GPU's scores are others
        encoder = TextCache(opened.model, _TEXT_CACHE_BYTES)
        self._warnings = opened.warnings

        def rank(queries: Sequence[Query]) -> Iterator[Ranking]:
            rankings = rerank(
                self._snapshot,
                self._index,
                encoder,
                queries,
                opened.reranker,
                top_k=self._job.asked.top_k,
                memory_bytes=self._job.memory,
                device=device,
            )
            for ranking in rankings:
                on_ranked()
                yield ranking

        run = replace(run, device=device.type, method=opened.reranker.name)
        answers, saved = kept, time.monotonic()
        for answers in answer(self._texts, kept, rank, encoder.sentences):
            if should_stop():
                break
            if time.monotonic() - saved > _SAVE_SECONDS:
                self._state.write(run, answers)
                saved = time.monotonic()
        return answers, run, len(kept)

    def _report(
        self,
        outcome: Literal["unchanged", "written", "interrupted"],
        run: StandingRun,
        num_ranked: int,
        num_kept: int,
    ) -> StandingReport:
        return StandingReport(
            self._job.asked.output, outcome, run.method, len(self._queries), num_ranked, num_kept, self._warnings
        )


def _made_with(store: Store, job: StandingJob) -> str:
    """Digest of everything but the videos and the queries that may change a bit of an answer."""
    weights = job.asked.weights
    parts = {
        "tbpipe": __version__,
        "libraries": [_version(name) for name in _LIBRARIES],
        "processor": _processor(),
        "fingerprint": store.fingerprint,
        "method": job.asked.method,
        "weights": None if weights is None else _file_sha256(weights),
        "top_k": job.asked.top_k,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _processor(description: Path = Path("/proc/cpuinfo")) -> str:
    """Vendor and vector instructions, which choose the order of a sum; the architecture where nothing more is told."""
    try:
        text = description.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.machine()
    vendor = re.search(r"^vendor_id\s*:\s*(\S+)", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    wide = sorted(set(re.findall(r"\b(?:avx|amx|fma|sve|asimd)\w*", flags[1]))) if flags else []
    return " ".join([platform.machine(), vendor[1] if vendor else "", *wide])


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _index_sha256(store: Store, snapshot: Snapshot) -> str:
    """Digest of the newest index, as its manifest has it. Raises StoreMissingError where there is none."""
    generation = snapshot.generation()
    if generation is None:
        raise StoreMissingError(f"{store.directory} has no index yet; run 'tbpipe index --store {store.directory}'")
    manifest = read_manifest(generation.path)
    parts = (manifest.index.sha256, manifest.ids.sha256, manifest.search_parameters)
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as handle:
            while content := handle.read(_READ_BYTES):
                digest.update(content)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); name a file that can") from error
    return digest.hexdigest()
