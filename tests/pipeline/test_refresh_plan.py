"""What a refresh makes of files that move, change places, vanish and return; the files are no videos, none is read."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from index_store.errors import SafetyStopError
from index_store.records import VideoOutcome, VideoRecord
from index_store.store import Store
from pipeline.changes import find_changes
from pipeline.jobs.refresh import RefreshJob, RefreshResult, refresh
from pipeline.log import Log
from pipeline.refresh_plan import RefreshPlan, plan_refresh
from stages.scan import scan
from stages.sources import Sources
from tests.index_store.samples import SETTINGS, features

NAMES = ("a.mp4", "b.mp4", "c.mp4", "d.mp4", "below/e.mp4", "below/f.mp4")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    (folder / "below").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(b"content" * (number + 1))
    return folder


@pytest.fixture
def store(tmp_path: Path, source: Path) -> Store:
    """Knows all of them."""
    store = Store.create(tmp_path / "store", SETTINGS)
    with store.writer() as writer:
        writer.commit(
            [
                VideoOutcome(file, "ok", hashlib.sha256(file.path.read_bytes()).hexdigest(), features=features(number))
                for number, file in enumerate(scan([source]).files)
            ]
        )
    return store


def planned(store: Store, *sources: Path) -> RefreshPlan:
    with store.snapshot() as snapshot:
        opened = Sources(sources)
        return plan_refresh(snapshot, opened, find_changes(snapshot.files(), opened.batches(), opened.is_video))


def refreshed(store: Store, *sources: Path, allow_empty: bool = False) -> RefreshResult:
    """Only where nothing has to be decoded: there is no model."""
    job = RefreshJob(store=store.directory, sources=sources, allow_empty=allow_empty)
    return refresh(job, Log(quiet=True))


def records(store: Store) -> dict[str, VideoRecord]:
    with store.snapshot() as snapshot:
        return {record.key: record for record in snapshot.videos()}


def commit_number(store: Store) -> int:
    with store.snapshot() as snapshot:
        return snapshot.commit_number


def test_two_files_that_change_places_take_their_features_along(store: Store, source: Path) -> None:
    before = records(store)
    (source / "a.mp4").rename(source / "x")
    (source / "b.mp4").rename(source / "a.mp4")
    (source / "x").rename(source / "b.mp4")
    result = refreshed(store, source)
    assert [(move.origin, move.outcome.file.key) for move in result.plan.moves] == [
        ("b.mp4", "a.mp4"),
        ("a.mp4", "b.mp4"),
    ]
    after = records(store)
    for key, other in (("a.mp4", "b.mp4"), ("b.mp4", "a.mp4")):
        assert (after[key].id, after[key].row) == (before[key].id, before[other].row)
    assert refreshed(store, source).plan.is_empty


def test_files_that_are_numbered_anew_are_not_read(store: Store, source: Path) -> None:
    before = records(store)
    for old, new in (("d.mp4", "e.mp4"), ("c.mp4", "d.mp4"), ("b.mp4", "c.mp4"), ("a.mp4", "b.mp4")):
        (source / old).rename(source / new)
    result = refreshed(store, source)
    assert (len(result.plan.moves), result.plan.tasks, result.plan.removed) == (4, [], [])
    after = records(store)
    assert after["a.mp4"].status == "removed"
    assert [after[key].row for key in ("b.mp4", "c.mp4", "d.mp4", "e.mp4")] == [
        before[key].row for key in ("a.mp4", "b.mp4", "c.mp4", "d.mp4")
    ]


def test_a_source_under_another_name_changes_paths_only(store: Store, source: Path) -> None:
    number = commit_number(store)
    moved = source.rename(source.with_name("elsewhere"))
    result = refreshed(store, moved)
    assert (len(result.plan.touched), result.plan.num_outside) == (6, 6)
    assert commit_number(store) == number
    assert {record.path for record in records(store).values()} == {moved / name for name in NAMES}


def test_a_copied_disk_is_not_read(store: Store, source: Path) -> None:
    copied = Path(shutil.copytree(source, source.with_name("copied")))
    shutil.rmtree(source)
    plan = planned(store, copied)
    assert (len(plan.touched), plan.tasks) == (6, [])


def test_a_file_with_another_inode_is_read_although_size_and_time_are_as_they_were(store: Store, source: Path) -> None:
    status = (source / "a.mp4").stat()
    (source / "x").write_bytes(b"CONTENT")
    os.utime(source / "x", ns=(status.st_atime_ns, status.st_mtime_ns))
    (source / "x").replace(source / "a.mp4")
    assert planned(store, source).changed == ["a.mp4"]


def test_a_removed_video_returns_under_its_id(store: Store, source: Path) -> None:
    number = records(store)["a.mp4"].id
    (source / "a.mp4").rename(source.parent / "kept")
    assert [video.key for video in refreshed(store, source).plan.removed] == ["a.mp4"]
    gone = records(store)["a.mp4"]
    assert (gone.id, gone.status, gone.shard) == (number, "removed", None)
    (source / "b.mp4").rename(source / "a.mp4")
    refreshed(store, source)
    back = records(store)["a.mp4"]
    assert (back.id, back.status) == (number, "ok")


def test_moved_between_disks_is_hashed_before_the_old_one_goes(store: Store, source: Path) -> None:
    content = (source / "a.mp4").read_bytes()
    (source / "below" / "moved.mp4").write_bytes(content)
    (source / "a.mp4").unlink()
    plan = planned(store, source)
    ((file, hashes),) = plan.tasks
    assert (file.key, hashes) == ("below/moved.mp4", {hashlib.sha256(content).hexdigest()})
    assert [(video.key, video.size_bytes) for video in plan.removed] == [("a.mp4", file.size_bytes)]


def test_what_lies_elsewhere_and_what_cannot_be_seen_is_left_alone(store: Store, source: Path, tmp_path: Path) -> None:
    assert (planned(store, source / "below").num_outside, planned(store, source / "below").removed) == (4, [])
    (source / "below").rename(tmp_path / "disk")
    (source / "below").symlink_to(tmp_path / "disk")
    assert planned(store, source).is_empty
    (tmp_path / "disk").rename(tmp_path / "unplugged")
    plan = planned(store, source)
    assert (plan.num_kept, plan.is_empty) == (2, True)
    assert [problem.path for problem in plan.problems] == [source / "below"]


def test_a_link_to_a_file_that_is_gone_counts_as_lost(store: Store, source: Path) -> None:
    for name in NAMES[:4]:
        (source / name).unlink()
        (source / name).symlink_to("nowhere")
    plan = planned(store, source)
    assert (plan.lost, plan.num_deletes) == (list(NAMES[:4]), 4)
    with pytest.raises(SafetyStopError, match="4 of 6 videos would be removed"):
        refreshed(store, source)


def test_an_emptied_source_stops_and_may_be_allowed(store: Store, source: Path) -> None:
    for path in (source / "below").iterdir():
        path.unlink()
    with pytest.raises(SafetyStopError, match="holds none of its videos"):
        refreshed(store, source / "below")
    assert len(refreshed(store, source / "below", allow_empty=True).plan.removed) == 2


def test_sources_that_overlap_give_every_file_once(store: Store, source: Path) -> None:
    plan = planned(store, source, source / "below", source / "a.mp4")
    assert (plan.num_unchanged, plan.is_empty) == (6, True)


def test_without_a_store_everything_is_new(source: Path) -> None:
    opened = Sources([source])
    plan = plan_refresh(None, opened, find_changes(iter(()), opened.batches(), opened.is_video))
    assert plan.new == sorted(NAMES)


def test_a_manifest_says_what_belongs_to_it(store: Store, source: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text("path\n" + "".join(f"{source / name}\n" for name in NAMES[1:]))
    plan = planned(store, manifest)
    assert ([video.key for video in plan.removed], plan.num_unchanged) == (["a.mp4"], 5)
