"""An index made from the generation before is the index of the store, and only what changed is read for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from index_store.errors import DamageError
from index_store.index_files import IDS_FILE, INDEX_FILE, MANIFEST_FILE, read_manifest
from index_store.records import VideoOutcome
from index_store.store import Store
from index_store.vectors import VectorIndex
from stages.index import IndexReport, build_index, update_index
from stages.index_update import MAX_DRIFT
from stages.search import BroadView, open_index
from tests.stages.corpus import WIDTH, file, make_store, outcome

NUM_VIDEOS = 40


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Videos v0 to v39 have ids 1 to 40, in two shards."""
    return make_store(tmp_path / "store", NUM_VIDEOS)


def commit(store: Store, *outcomes: VideoOutcome) -> None:
    with store.writer() as writer:
        writer.commit(outcomes)


def gone(number: int) -> VideoOutcome:
    return VideoOutcome(file(number), "removed")


def shown(number: int, words: str) -> VideoOutcome:
    """Video ``number`` with other content."""
    return outcome(number, words=words, content=f"{words.encode().hex():0>64}")


def files(store: Store, report: IndexReport) -> dict[str, bytes]:
    folder = store.directory / "index" / report.generation
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def counts(report: IndexReport) -> tuple[bool, int, int, int]:
    return report.was_updated, report.num_added, report.num_replaced, report.num_removed


def found(store: Store, top_k: int) -> list[list[int]]:
    """Ids for each video's own embedding and for some random ones, through the broad view."""
    with store.snapshot() as snapshot:
        view = BroadView(snapshot, open_index(snapshot))
        pooled = np.concatenate([vectors for _, vectors in snapshot.read_pooled()])
        others = np.random.default_rng(0).standard_normal((20, WIDTH)).astype(np.float32)
        return [row.tolist() for row in view.candidates(np.concatenate([pooled, others]), top_k).ids]


def test_an_updated_exact_index_has_the_bytes_of_one_built_anew(store: Store) -> None:
    build_index(store)
    steps = [
        ((outcome(40), outcome(41)), (2, 0, 0)),
        ((gone(0), gone(17), gone(41)), (0, 0, 3)),
        ((shown(3, "new"), shown(4, "newer"), outcome(43), gone(5)), (1, 2, 1)),
        ((outcome(0), VideoOutcome(file(44), "ok", same_content_as=f"{7:064x}")), (2, 0, 0)),
        ((VideoOutcome(file(50), "quarantined", reason_code="damaged"), gone(44), outcome(44)), (0, 1, 0)),
        ((*map(gone, range(20, 40)), *map(outcome, range(60, 90))), (30, 0, 20)),
    ]
    for outcomes, changes in steps:
        commit(store, *outcomes)
        report = build_index(store)
        assert counts(report) == (True, *changes)
        anew = build_index(store, rebuild=True)
        assert counts(anew) == (False, 0, 0, 0)
        assert files(store, report) == files(store, anew)


@pytest.mark.slow
def test_many_random_changes_give_the_bytes_of_an_index_built_anew(store: Store) -> None:
    rng = np.random.default_rng(5)
    build_index(store)
    for _ in range(12):
        numbers = rng.permutation(60)[: rng.integers(1, 30)].tolist()
        commit(store, *(gone(number) if rng.random() < 0.4 else shown(number, f"{rng.random()}") for number in numbers))
        assert files(store, build_index(store)) == files(store, build_index(store, rebuild=True))


def test_only_what_changed_is_read(store: Store) -> None:
    build_index(store)
    commit(store, outcome(40), gone(3))
    expected = files(store, build_index(store, rebuild=True))
    other = make_store(store.directory.parent / "other", NUM_VIDEOS)
    build_index(other)
    commit(other, outcome(40), gone(3))
    for shard in ("00000001.h5", "00000002.h5"):
        (other.directory / "shards" / shard).unlink()
    assert files(other, build_index(other)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("can_link", [True, False])
@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat"])
def test_commits_that_change_no_feature_cost_no_copy(
    store: Store, monkeypatch: pytest.MonkeyPatch, factory: str, can_link: bool
) -> None:
    def refuse(*paths: Path) -> None:
        raise PermissionError("not on this file system")

    if not can_link:
        monkeypatch.setattr("os.link", refuse)
    folder = store.directory / "index"
    before = build_index(store, factory)
    commit(store, VideoOutcome(file(99), "quarantined", reason_code="damaged"))
    report = build_index(store, factory)
    assert counts(report) == (True, 0, 0, 0)
    assert not report.was_up_to_date
    for name in (INDEX_FILE, IDS_FILE):
        old, new = folder / before.generation / name, folder / report.generation / name
        assert old.read_bytes() == new.read_bytes()
        assert old.samefile(new) == can_link
    assert read_manifest(folder / report.generation).commit_number == 3
    assert build_index(store, factory).was_up_to_date
    if factory == "Flat":
        assert files(store, report) == files(store, build_index(store, rebuild=True))
    commit(store, gone(3))
    assert len(found(store, 50)[0]) == NUM_VIDEOS - 1
    assert build_index(store, factory).num_removed == 1


@pytest.mark.slow
@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "SQfp16", "HNSW16"])
def test_an_index_may_lose_all_videos_and_get_others(store: Store, factory: str) -> None:
    build_index(store, factory)
    commit(store, *map(gone, range(NUM_VIDEOS)))
    assert build_index(store, factory).num_vectors == 0
    with store.snapshot() as snapshot:
        assert open_index(snapshot).search(np.ones((3, WIDTH), np.float32), 5).ids.shape == (3, 0)
    commit(store, *map(outcome, range(100, 120)))
    assert build_index(store, factory).num_vectors == 20
    assert [row[0] for row in found(store, 1)[:20]] == list(range(41, 61))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factory", "parameters"), [("IVF4,Flat", "nprobe=4"), ("SQfp16", ""), ("HNSW16", "efSearch=200")]
)
def test_an_updated_approximate_index_finds_what_one_built_anew_finds(
    store: Store, factory: str, parameters: str
) -> None:
    first = build_index(store, factory, parameters)
    for outcomes in ([outcome(40), gone(7)], [shown(3, "new"), gone(40)], [outcome(7)]):
        commit(store, *outcomes)
        report = build_index(store, factory)
        assert report.was_updated
        assert (report.recall, report.search_parameters) == (first.recall, first.search_parameters)
    manifest = read_manifest(store.directory / "index" / report.generation)
    assert (manifest.num_vectors, manifest.num_built) == (NUM_VIDEOS, NUM_VIDEOS)
    approximate = {top_k: found(store, top_k) for top_k in (1, 10, NUM_VIDEOS, 1000)}
    with store.snapshot() as snapshot:
        index = open_index(snapshot)
    assert index.ids.tolist() == list(range(1, NUM_VIDEOS + 1))
    assert not build_index(store, factory, parameters, rebuild=True).was_updated
    assert approximate == {top_k: found(store, top_k) for top_k in approximate}


@pytest.mark.slow
def test_training_is_kept_until_a_fifth_has_changed(store: Store) -> None:
    build_index(store, "IVF4,Flat")
    trained = []
    for number in range(int(MAX_DRIFT * NUM_VIDEOS) + 1):
        commit(store, shown(number // 2, f"word{number}") if number % 2 else outcome(100 + number))
        trained.append(build_index(store, "IVF4,Flat").was_updated)
    assert trained == [True] * 5 + [False] + [True] * 3  # one row an addition, two a replacement: 1, 3, 4, 6, 7, 9


def test_a_newer_snapshot_of_videos_than_of_the_index_finds_no_dead_rows(store: Store) -> None:
    build_index(store, "IVF4,Flat", "nprobe=4")
    commit(store, gone(1), outcome(40))
    build_index(store, "IVF4,Flat")
    commit(store, gone(5), gone(40))
    rows = found(store, NUM_VIDEOS)
    assert {len(row) for row in rows} == {NUM_VIDEOS - 2}
    assert not {2, 6, 41} & set(rows[0])


@pytest.mark.parametrize("name", [INDEX_FILE, IDS_FILE, MANIFEST_FILE])
def test_a_damaged_generation_is_not_built_upon(store: Store, name: str) -> None:
    path = store.directory / "index" / build_index(store).generation / name
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    commit(store, outcome(40))
    report = build_index(store)
    assert not report.was_updated
    assert str(path) in report.remark
    assert files(store, report) == files(store, build_index(store, rebuild=True))


def test_a_quick_look_trusts_lengths_and_an_update_does_not(store: Store) -> None:
    path = store.directory / "index" / build_index(store).generation / INDEX_FILE
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with store.writer() as writer:
        assert update_index(store, writer, every_byte=False).was_up_to_date
    assert "is not what was written" in build_index(store).remark
    path = store.directory / "index" / build_index(store).generation / INDEX_FILE
    path.write_bytes(content[:-1])
    with store.writer() as writer:
        report = update_index(store, writer, every_byte=False)
    assert "bytes" in report.remark
    assert files(store, report)[INDEX_FILE] == content


def test_another_generation_in_its_place_is_noticed(store: Store) -> None:
    first = store.directory / "index" / build_index(store).generation
    commit(store, outcome(40))
    second = store.directory / "index" / build_index(store).generation
    for path in first.iterdir():
        (second / path.name).write_bytes(path.read_bytes())
    with store.snapshot() as snapshot, pytest.raises(DamageError, match="commit 2, the catalog says 3"):
        open_index(snapshot)
    assert "not the index that was published" in build_index(store).remark
    with store.snapshot() as snapshot:
        assert len(open_index(snapshot)) == NUM_VIDEOS + 1


def test_without_a_factory_the_newest_one_goes_on(store: Store) -> None:
    build_index(store, "SQfp16")
    commit(store, outcome(40))
    report = build_index(store, None)
    assert (report.factory, report.was_updated) == ("SQfp16", True)


def test_a_manifest_from_before_indexes_were_updated_is_read(store: Store) -> None:
    folder = store.directory / "index" / build_index(store, "IVF4,Flat").generation
    fields = json.loads((folder / MANIFEST_FILE).read_text())
    del fields["num_built"], fields["checksum"]
    (folder / MANIFEST_FILE).write_text(json.dumps(fields))
    commit(store, outcome(40))
    assert build_index(store, "IVF4,Flat").was_updated


def test_a_video_cannot_be_in_an_index_twice(store: Store) -> None:
    folder = store.directory / "index" / build_index(store, "SQfp16").generation
    index = VectorIndex.open(folder, store.fingerprint)
    vectors = np.ones((1, WIDTH), np.float32)
    with pytest.raises(ValueError, match="that the index holds"):
        index.update(np.array([], np.int64), [(np.array([5]), vectors)], 9)
