"""``tbpipe refresh``: scan, plan, move, remove, extract, index, answer; what is cut off, the next run goes on with.

There is no progress file: what is left to do is the difference between the sources and the catalog.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from index_store.errors import InputError, InterruptedRunError, SafetyStopError, StoreMissingError
from index_store.layout import Layout
from index_store.records import VideoOutcome, VideoStatus
from index_store.refresh_settings import DeleteLimit, read_refresh_settings, remember_sources
from index_store.snapshot import Snapshot
from index_store.store import Store
from index_store.writer import StoreWriter
from pipeline.changes import find_changes
from pipeline.jobs.extract import ExtractJob, is_store, model_and_settings, run_extract
from pipeline.log import Log
from pipeline.refresh_plan import GoneVideo, RefreshPlan, batches, plan_refresh
from pipeline.stop import stop_on_signals
from stages.sources import Sources

if TYPE_CHECKING:
    from index_store.settings import StoreSettings
    from pipeline.refresh_queries import AnsweredQueries
    from stages.extract import ExtractReport
    from stages.models.clip import ClipModel

_MOVES_PER_COMMIT = 10_000
_SHOWN_NAMES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshJob:
    """Everything that ``tbpipe refresh`` was told; None means: as ``tbpipe.toml`` has it."""

    store: Path
    sources: tuple[Path, ...] = ()
    model: str | None = None
    pretrained: str | None = None
    device: str = "auto"
    workers: int | None = None
    commit_bytes: int = 128 << 20
    max_deletes: DeleteLimit | None = None
    allow_empty: bool = False
    max_minutes: float | None = None
    metrics_file: Path | None = None
    dry_run: bool = False
    lock_timeout: float = 0.0
    quiet: bool = False

    def extract_job(self) -> ExtractJob:
        """The same, as extract needs it."""
        return ExtractJob(
            sources=(),
            store=self.store,
            model=self.model,
            pretrained=self.pretrained,
            device=self.device,
            workers=self.workers,
            commit_bytes=self.commit_bytes,
            lock_timeout=self.lock_timeout,
            quiet=self.quiet,
        )


@dataclass(slots=True)
class RefreshResult:
    """What a run did; of a dry run, what it would do."""

    store: Path
    plan: RefreshPlan
    dry_run: bool = False
    videos: dict[VideoStatus, int] = field(default_factory=dict)
    """In every state, at the end."""
    extracted: ExtractReport | None = None
    num_left: int = 0
    """Files that --max-minutes or a signal left for the next run."""
    generation: str = ""
    """The newest index generation; empty without one."""
    index_was_updated: bool = False
    answered: AnsweredQueries | None = None
    """None without standing queries, or where the run ended before them."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each step."""
    stopped_by: InterruptedRunError | SafetyStopError | None = None
    """Why it ended early, with everything finished committed; of a dry run, why the run would not begin."""

    @property
    def exit_code(self) -> int:
        """0; 3 where somebody should look at an input; that of what stopped it, or of queries that failed."""
        if self.stopped_by is not None:
            return self.stopped_by.exit_code
        if self.answered is not None and self.answered.failures:
            return self.answered.failures[0].exit_code
        quarantined = self.extracted.quarantined if self.extracted is not None else 0
        return 3 if quarantined or self.plan.problems else 0


def refresh(job: RefreshJob, log: Log) -> RefreshResult:
    """Run ``tbpipe refresh``: bring the store to what the sources hold.

    Raises StoreLockedError before anything is changed; SafetyStopError where more would be removed than is allowed;
    InputError for a source that does not exist. A signal is no error here: ``stopped_by`` says so.
    """
    run = _Run(job, log)
    if job.dry_run or not is_store(job.store):
        result = run.look()
        if job.dry_run:
            return result
    return run.refresh()


class _Run:
    """One refresh, step by step."""

    def __init__(self, job: RefreshJob, log: Log) -> None:
        self._job, self._log = job, log
        self._settings_path = Layout(job.store.absolute()).settings_path
        self._settings = read_refresh_settings(self._settings_path)
        self._deadline = None if job.max_minutes is None else time.monotonic() + 60 * job.max_minutes
        self._loaded: tuple[ClipModel, StoreSettings] | None = None
        if not (job.sources or self._settings.sources):
            self._raise_no_sources()

    def look(self) -> RefreshResult:
        """What would be done, with nothing written; the first look at the sources of a store that is not there yet."""
        if is_store(self._job.store):
            with Store.open(self._job.store).snapshot() as snapshot:
                result = self._planned(snapshot)
                result.videos = snapshot.counts()
                try:
                    self._check_safety(snapshot, result.plan)
                except SafetyStopError as error:
                    result.stopped_by = error
                return result
        result = self._planned(None)
        if not result.plan.tasks:
            sources = ", ".join(map(str, self._sources))
            raise InputError(f"no video in {sources}; give folders with videos, videos, or manifests")
        return result

    def refresh(self) -> RefreshResult:
        """Do everything."""
        job, log = self._job, self._log
        if is_store(job.store):
            store = Store.open(job.store)
        else:  # its writer lock is free again for a moment, and whoever takes it finds a whole, empty store
            store = Store.create(job.store, self._model()[1])
            log.info("created", f"made a store in {store.directory}", store=store.directory)
        with store.writer(job.lock_timeout) as writer:
            if job.sources and remember_sources(self._settings_path, tuple(path.absolute() for path in job.sources)):
                log.info("remembered", f"{self._settings_path.name} has the sources now, for runs without --source")
            with store.snapshot() as snapshot:
                result = self._planned(snapshot)
                self._check_safety(snapshot, result.plan)
            if not result.plan.is_empty:
                self._write(result, writer)
            if result.stopped_by is None:
                self._timed(result, "index", lambda: self._index(store, writer, result))
            if result.stopped_by is None and result.generation and self._settings.queries:
                self._timed(result, "queries", lambda: self._answer(store, result))
        with store.snapshot() as snapshot:
            result.videos = snapshot.counts()
        return result

    @property
    def _sources(self) -> tuple[Path, ...]:
        return self._job.sources or self._settings.sources

    def _planned(self, snapshot: Snapshot | None) -> RefreshResult:
        result = RefreshResult(self._job.store, RefreshPlan(), self._job.dry_run)
        self._timed(result, "scan", lambda: self._plan(result, snapshot))
        plan = result.plan
        for problem in plan.problems:
            self._log.warning("unreadable", f"could not look at {problem.path}: {problem.reason}", path=problem.path)
        self._log.info(
            "planned",
            f"{plan.num_unchanged} unchanged, {len(plan.new)} new, {len(plan.changed)} changed, "
            f"{len(plan.moves) + len(plan.touched)} moved, {len(plan.removed)} gone",
            unchanged=plan.num_unchanged,
            new=len(plan.new),
            changed=len(plan.changed),
            moved=len(plan.moves) + len(plan.touched),
            gone=len(plan.removed),
            outside=plan.num_outside,
            kept=plan.num_kept,
        )
        return result

    def _plan(self, result: RefreshResult, snapshot: Snapshot | None) -> None:
        sources = Sources(self._sources)
        rows = snapshot.files() if snapshot is not None else iter(())
        changes = find_changes(rows, sources.batches(), sources.is_video)
        result.plan = plan_refresh(snapshot, sources, changes)
        missing = [source for source in sources.sources if source.kind == "missing"]
        if any(source.path not in result.plan.emptied for source in missing):
            sources.require_all()

    def _check_safety(self, snapshot: Snapshot, plan: RefreshPlan) -> None:
        """Raise SafetyStopError before a mount that is gone, or a mistake, costs more than is allowed."""
        there = [path for path in plan.emptied if Path(path).exists()] if self._job.allow_empty else []
        empty = [path for path in plan.emptied if path not in there]
        if empty:
            raise SafetyStopError(
                f"{empty[0]} holds none of its videos any more ({plan.num_deletes} of the store would go); mount it or "
                "take it out of the sources. If it is meant to be empty, run again with --allow-empty"
            )
        if plan.num_deletes == 0:
            return
        total = snapshot.num_searchable
        limit = self._job.max_deletes or self._settings.max_deletes
        if plan.num_deletes > limit.allowed(total):
            keys = [video.key for video in plan.removed if video.has_features] + plan.lost
            raise SafetyStopError(
                f"{plan.num_deletes} of {total} videos would be removed, such as {', '.join(keys[:_SHOWN_NAMES])}; "
                f"--max-deletes {limit} allows {limit.allowed(total)}. If they are meant to go, run again with "
                f"--max-deletes {plan.num_deletes}"
            )

    def _write(self, result: RefreshResult, writer: StoreWriter) -> None:
        plan, job = result.plan, self._job.extract_job()
        model = self._model() if plan.tasks else None  # what is wrong with it is found before any change
        wanted = {file.size_bytes for file, _ in plan.tasks}
        at_once = [video for video in plan.removed if video.size_bytes not in wanted]
        at_last = [video for video in plan.removed if video.size_bytes in wanted]
        self._timed(result, "move", lambda: self._move(plan, writer))
        self._timed(result, "remove", lambda: self._remove(at_once, writer))
        if model is None:
            return
        from stages.decode_pool import DecodeTask

        tasks = [(file, DecodeTask(file.path, hashes)) for file, hashes in plan.tasks]
        with stop_on_signals() as stop:

            def should_stop() -> bool:
                return stop() or self._is_late()

            def extract() -> None:
                result.extracted = run_extract(job, tasks, *model, writer, should_stop, self._on_video)

            self._timed(result, "extract", extract)
        assert result.extracted is not None
        result.num_left = len(plan.tasks) - result.extracted.finished
        done = f"{result.extracted.finished} videos are committed and {result.num_left} left"
        self._log.info("extracted", done, **_counts(result.extracted), left=result.num_left)
        if result.num_left == 0:  # until then, a file to be read may have the content of one that is gone
            self._remove(at_last, writer)
        if stop():
            result.stopped_by = stop.error(f"stopped by a signal; {done}: the next refresh goes on")

    def _model(self) -> tuple[ClipModel, StoreSettings]:
        """The model, loaded once, and the settings that the store has or will have."""
        if self._loaded is None:
            self._loaded = model_and_settings(self._job.extract_job())
        return self._loaded

    def _move(self, plan: RefreshPlan, writer: StoreWriter) -> None:
        if plan.touched:
            writer.touch(plan.touched)
        for batch in batches(plan.moves, _MOVES_PER_COMMIT):
            removed = [move.removed for move in batch if move.removed is not None]
            writer.commit([move.outcome for move in batch], removed)
        for move in plan.moves:
            key = move.outcome.file.key
            self._log.info("moved", f"{move.origin} is {key} now", key=key, origin=move.origin)

    def _remove(self, videos: Sequence[GoneVideo], writer: StoreWriter) -> None:
        if videos:
            writer.remove([video.id for video in videos])
        for video in videos:
            self._log.info("removed", f"{video.key} is gone: removed", key=video.key)

    def _on_video(self, outcome: VideoOutcome) -> None:
        if outcome.status == "quarantined":
            key, reason, detail = outcome.file.key, outcome.reason_code, outcome.reason_detail
            self._log.warning("quarantined", f"{key}: {reason}: {detail}", key=key, reason=reason, detail=detail)

    def _index(self, store: Store, writer: StoreWriter, result: RefreshResult) -> None:
        """Publish an index of the videos that there are now, if the newest is not that."""
        with store.snapshot() as snapshot:
            if snapshot.generation() is None and snapshot.num_searchable == 0:
                return
        from stages.index import update_index

        report = update_index(store, writer, self._settings.factory, every_byte=False)
        result.generation, result.index_was_updated = report.generation, not report.was_up_to_date
        if report.remark:
            self._log.warning("index_damaged", report.remark)
        if result.index_was_updated:
            self._log.info(
                "indexed",
                f"index generation {report.generation} has {report.num_vectors} videos",
                generation=report.generation,
                videos=report.num_vectors,
            )

    def _answer(self, store: Store, result: RefreshResult) -> None:
        """Bring the outputs of all standing queries up to date."""
        from pipeline.refresh_queries import answer_queries

        with stop_on_signals() as stop:
            result.answered = answer_queries(
                store,
                self._settings.queries,
                self._log,
                lambda: stop() or self._is_late(),
                self._job.pretrained,
                self._job.device,
            )
        if stop():
            left = f"{result.answered.num_left} files of queries are left"
            result.stopped_by = stop.error(f"stopped by a signal; all videos are done, {left} for the next refresh")

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _timed(self, result: RefreshResult, step: str, action: Callable[[], None]) -> None:
        before = time.monotonic()
        action()
        result.seconds[step] = round(time.monotonic() - before, 3)

    def _raise_no_sources(self) -> None:
        if not is_store(self._job.store):
            raise StoreMissingError(
                f"no store in {self._job.store}; 'tbpipe refresh --store {self._job.store} --source FOLDER' makes one"
            )
        raise InputError(
            f"{self._settings_path} has no sources; give --source FOLDER, which is then remembered there, or "
            'write sources = ["FOLDER"] into its section [refresh]'
        )


def _counts(report: ExtractReport) -> dict[str, int]:
    names = ("ok", "partial", "shared", "quarantined")
    return {name: getattr(report, name) for name in names}
