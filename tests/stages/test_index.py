from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index_store.errors import InputError, StoreLockedError, UsageError
from index_store.index_files import INDEX_FILE
from index_store.store import Store
from stages.index import RECALL_TARGET, build_index, choose_factory
from stages.search import open_index
from tests.stages.corpus import SETTINGS, WIDTH, file, make_store, outcome


def test_the_exact_index_holds_every_pooled_embedding(tmp_path: Path) -> None:
    store = make_store(tmp_path, 20)
    report = build_index(store)
    assert (report.num_vectors, report.dim, report.factory, report.recall) == (20, WIDTH, "Flat", None)
    assert not report.was_up_to_date
    with store.snapshot() as snapshot:
        index = open_index(snapshot)
        ((ids, pooled),) = snapshot.read_pooled()
    np.testing.assert_array_equal(index.search(pooled, 1).ids[:, 0], ids)
    assert report.size_bytes == sum(
        path.stat().st_size for path in (tmp_path / "index" / report.generation).iterdir() if path.suffix != ".json"
    )


def test_nothing_is_done_twice(tmp_path: Path) -> None:
    store = make_store(tmp_path, 20)
    first = build_index(store)
    again = build_index(store)
    assert again.was_up_to_date
    assert again.generation == first.generation
    assert not build_index(store, "SQfp16").was_up_to_date
    assert not build_index(store).was_up_to_date


def test_a_new_commit_or_a_damaged_index_is_built_again(tmp_path: Path) -> None:
    store = make_store(tmp_path, 20)
    build_index(store)
    with store.writer() as writer:
        writer.commit([outcome(20)])
    report = build_index(store)
    assert (report.num_vectors, report.was_up_to_date) == (21, False)
    path = tmp_path / "index" / report.generation / INDEX_FILE
    path.write_bytes(b"\x00" + path.read_bytes()[1:])
    assert not build_index(store).was_up_to_date
    assert build_index(store).was_up_to_date


@pytest.mark.slow
def test_the_recall_of_an_approximate_index_is_measured_and_tuned_for(tmp_path: Path) -> None:
    store = make_store(tmp_path, 300)
    tuned = build_index(store, "IVF16,Flat")
    assert tuned.recall is not None
    assert tuned.recall >= RECALL_TARGET
    assert (tuned.recall_k, tuned.num_recall_queries) == (50, 200)
    assert tuned.search_parameters.startswith("nprobe=")
    narrow = build_index(store, "IVF16,Flat", "nprobe=1")
    assert narrow.recall is not None
    assert narrow.recall < tuned.recall
    assert narrow.search_parameters == "nprobe=1"
    assert not narrow.was_up_to_date
    assert build_index(store, "IVF16,Flat", "nprobe=1").was_up_to_date


def test_visiting_every_list_is_exact_and_its_recall_is_1(tmp_path: Path) -> None:
    assert build_index(make_store(tmp_path, 100), "IVF4,Flat", "nprobe=4").recall == 1.0


def test_a_store_without_features_cannot_be_indexed(tmp_path: Path) -> None:
    store = Store.create(tmp_path, SETTINGS)
    with pytest.raises(InputError, match="tbpipe extract"):
        build_index(store)


def test_a_factory_that_fails_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    store = make_store(tmp_path, 20)
    before = build_index(store)
    with pytest.raises(UsageError, match="IVF64"):
        build_index(store, "IVF64,Flat")
    assert build_index(store).was_up_to_date
    assert [path.name for path in (tmp_path / "index").iterdir()] == [before.generation]


def test_another_writer_is_named(tmp_path: Path) -> None:
    store = make_store(tmp_path, 5)
    with store.writer(), pytest.raises(StoreLockedError):
        build_index(store)


def test_copies_and_replaced_videos_are_indexed_under_their_own_id(tmp_path: Path) -> None:
    from index_store.records import VideoOutcome

    store = make_store(tmp_path, 5)
    with store.writer() as writer:
        writer.commit([VideoOutcome(file(9), "ok", same_content_as=f"{2:064x}"), outcome(5)])
        writer.commit([VideoOutcome(file(1), "quarantined", reason_code="damaged")])
    assert build_index(store).num_vectors == 6
    with store.snapshot() as snapshot:
        np.testing.assert_array_equal(open_index(snapshot).ids, [1, 3, 4, 5, 6, 7])


@pytest.mark.parametrize(
    ("num_vectors", "memory_bytes", "factory"),
    [
        (1000, 1000 * 512 * 4, "Flat"),
        (1000, 1000 * 512 * 4 - 1, "SQfp16"),
        (10**6, 10**6 * 600, "IVF2048,SQ8"),
        (10**8, 10**10, "IVF32768,PQ64"),
    ],
)
def test_the_most_exact_factory_that_fits_is_chosen(num_vectors: int, memory_bytes: int, factory: str) -> None:
    assert choose_factory(num_vectors, 512, memory_bytes) == factory
