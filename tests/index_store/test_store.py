from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from index_store.catalog import Catalog, IndexManifestFields
from index_store.errors import (
    DamageError,
    FingerprintError,
    InputError,
    StoreError,
    StoreLockedError,
    StoreMissingError,
)
from index_store.records import ShapeError, VideoOutcome
from index_store.settings import StoreSettings
from index_store.snapshot import Snapshot
from index_store.store import Store
from tests.index_store.samples import INT8_SETTINGS, SETTINGS, bad, content, copy_of, features, file, fill, ok, state


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", SETTINGS)


@pytest.fixture
def filled(store: Store) -> Store:
    """Ids 1 to 4 are a, b, c, d with features 1 to 4 in two shards; 5 is bad, 6 is a copy of b."""
    fill(store, ok("a", 1), ok("b", 2))
    fill(store, ok("c", 3), ok("d", 4), bad("e"), copy_of("f", 2))
    return store


@pytest.fixture
def snapshot(filled: Store) -> Iterator[Snapshot]:
    with filled.snapshot() as snapshot:
        yield snapshot


def names(directory: Path) -> list[str]:
    """Every file of a store but those that come and go beside an open catalog."""
    paths = (path for path in directory.rglob("*") if path.is_file())
    passing = ("-wal", "-shm", ".seal")
    return sorted(str(path.relative_to(directory)) for path in paths if not path.name.endswith(passing))


EMPTY = ["catalog.sqlite", "readers.lock", "tbpipe.toml", "writer.lock"]


class TestCreate:
    def test_a_new_store_is_empty_and_opens(self, tmp_path: Path) -> None:
        created = Store.create(tmp_path / "a" / "b", SETTINGS)
        opened = Store.open(tmp_path / "a" / "b")
        assert (opened.directory, opened.settings, opened.fingerprint) == (
            created.directory, SETTINGS, SETTINGS.fingerprint,
        )  # fmt: skip
        assert names(opened.directory) == EMPTY
        with opened.snapshot() as snapshot:
            assert snapshot.counts() == {"ok": 0, "partial": 0, "quarantined": 0, "removed": 0}
            assert (snapshot.num_searchable, snapshot.commit_number, snapshot.generation()) == (0, 0, None)
            assert snapshot.read_tokens([]).tokens.shape == (0, 3, 5, 8)
            assert list(snapshot.read_pooled()) == []

    def test_there_is_no_store_where_none_was_made(self, tmp_path: Path) -> None:
        for directory in (tmp_path, tmp_path / "none"):
            with pytest.raises(StoreMissingError, match="tbpipe extract"):
                Store.open(directory)

    def test_a_store_is_not_made_twice(self, store: Store) -> None:
        before = (store.directory / "tbpipe.toml").read_bytes()
        with pytest.raises(StoreError, match="is a store already"):
            Store.create(store.directory, INT8_SETTINGS)
        assert (store.directory / "tbpipe.toml").read_bytes() == before

    def test_a_folder_with_other_things_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "holiday.mp4").write_bytes(b"film")
        with pytest.raises(StoreError, match=r"is not empty \(holiday.mp4 is there\)"):
            Store.create(tmp_path, SETTINGS)
        assert names(tmp_path) == ["holiday.mp4"]

    def test_a_file_is_no_directory(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StoreError, match="cannot write"):
            Store.create(tmp_path / "file", SETTINGS)

    def test_data_without_its_settings_is_not_overwritten(self, filled: Store) -> None:
        (filled.directory / "tbpipe.toml").unlink()
        with pytest.raises(StoreError, match=r"has shards/ but no \[store\]"):
            Store.create(filled.directory, SETTINGS)
        assert "shards/00000001.h5" in names(filled.directory)

    def test_a_settings_file_for_refresh_may_be_there_first(self, tmp_path: Path) -> None:
        (tmp_path / "tbpipe.toml").write_text("[refresh]\n")
        Store.create(tmp_path, SETTINGS)
        assert Store.open(tmp_path).settings == SETTINGS

    def test_a_broken_settings_file_is_an_input_error(self, tmp_path: Path) -> None:
        (tmp_path / "tbpipe.toml").write_text("[[[")
        with pytest.raises(InputError, match="not TOML"):
            Store.create(tmp_path, SETTINGS)

    def test_a_store_moves_with_its_directory(self, filled: Store, tmp_path: Path) -> None:
        with filled.snapshot() as snapshot:
            before = state(snapshot)
        shutil.move(filled.directory, tmp_path / "elsewhere")
        with Store.open(tmp_path / "elsewhere").snapshot() as snapshot:
            assert state(snapshot) == before


class TestCommit:
    def test_rows_follow_the_given_order(self, snapshot: Snapshot) -> None:
        found = [(record.id, record.key, record.status, record.shard, record.row) for record in snapshot.videos()]
        assert found == [
            (1, "a", "ok", 1, 0),
            (2, "b", "ok", 1, 1),
            (3, "c", "ok", 2, 0),
            (4, "d", "ok", 2, 1),
            (5, "e", "quarantined", None, None),
            (6, "f", "ok", 1, 1),
        ]
        assert [shard.num_rows for shard in snapshot.shards()] == [2, 2]
        assert snapshot.counts() == {"ok": 5, "partial": 0, "quarantined": 1, "removed": 0}
        assert (snapshot.num_searchable, snapshot.commit_number) == (5, 2)

    def test_the_same_key_keeps_its_id_and_gets_the_new_features(self, filled: Store) -> None:
        fill(filled, ok("b", 9))
        with filled.snapshot() as snapshot:
            record = snapshot.by_key("b")
            assert record is not None
            assert (record.id, record.shard, record.row, record.content_hash) == (2, 3, 0, content(9))
            np.testing.assert_array_equal(snapshot.read_tokens([2]).tokens[0], features(9).tokens)
            np.testing.assert_array_equal(snapshot.read_tokens([6]).tokens[0], features(2).tokens)  # its copy is not it

    def test_a_video_may_lose_its_features(self, filled: Store) -> None:
        fill(filled, bad("a"), bad("b", "removed"))
        with filled.snapshot() as snapshot:
            assert snapshot.counts() == {"ok": 3, "partial": 0, "quarantined": 2, "removed": 1}
            with pytest.raises(StoreError, match=r"'b' .* it is removed"):
                snapshot.read_tokens([2])

    def test_a_copy_shares_features_and_findings(self, store: Store) -> None:
        original = replace(ok("a", 1), status="partial", reason_code="damaged", decoder_note="fell back")
        fill(store, original, copy_of("b", 1))
        fill(store, copy_of("c", 1))
        with store.snapshot() as snapshot:
            first, *copies = snapshot.videos()
            for copy in copies:
                assert replace(copy, id=first.id, key=first.key, path=first.path) == first
            assert len(snapshot.shards()) == 1

    def test_a_copy_outlives_its_original_in_the_same_commit(self, filled: Store) -> None:
        fill(filled, ok("a", 8), copy_of("g", 1))
        with filled.snapshot() as snapshot:
            np.testing.assert_array_equal(snapshot.read_tokens([7]).tokens[0], features(1).tokens)

    def test_int8_tokens_come_with_their_scales(self, tmp_path: Path) -> None:
        store = Store.create(tmp_path / "store", INT8_SETTINGS)
        fill(store, ok("a", 1, INT8_SETTINGS), ok("b", 2, INT8_SETTINGS))
        with store.snapshot() as snapshot:
            batch = snapshot.read_tokens([2, 1])
            assert batch.scales is not None
            for place, seed in enumerate((2, 1)):
                expected = features(seed, INT8_SETTINGS)
                assert expected.token_scales is not None
                np.testing.assert_array_equal(batch.tokens[place], expected.tokens)
                np.testing.assert_array_equal(batch.scales[place], expected.token_scales)
            assert len(state(snapshot)) == 2

    def test_nothing_to_commit_is_no_commit(self, filled: Store) -> None:
        fill(filled)
        with filled.snapshot() as snapshot:
            assert snapshot.commit_number == 2

    @pytest.mark.parametrize(
        ("outcome", "message"),
        [
            (VideoOutcome(file("x"), "ok", content(7)), "'x' is ok with 0 sources of features"),
            (replace(ok("x", 7), status="quarantined"), "'x' is quarantined with 1 sources"),
            (replace(ok("x", 7), same_content_as=content(1)), "'x' is ok with 2 sources"),
            (replace(ok("x", 7), content_hash=""), "no content hash"),
            (copy_of("x", 77), f"'x' shares content {content(77)}, which is not stored"),
            (bad("\udcff"), "is not text"),
        ],
    )
    def test_an_impossible_outcome_changes_nothing(self, filled: Store, outcome: VideoOutcome, message: str) -> None:
        before = names(filled.directory)
        with pytest.raises(StoreError, match=message):
            fill(filled, ok("good", 20), outcome)
        assert names(filled.directory) == before
        with filled.snapshot() as snapshot:
            assert (snapshot.by_key("good"), snapshot.commit_number) == (None, 2)

    def test_features_of_another_model_change_nothing(self, filled: Store) -> None:
        before = names(filled.directory)
        with pytest.raises(ShapeError):
            fill(filled, ok("good", 20), ok("x", 1, INT8_SETTINGS))
        assert names(filled.directory) == before

    def test_a_commit_that_fails_in_the_catalog_leaves_no_shard(
        self, filled: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(self: Any, *arguments: object) -> None:
            raise KeyboardInterrupt

        before = names(filled.directory)
        with filled.writer() as writer:
            with monkeypatch.context() as patch:
                patch.setattr("index_store.catalog.Catalog.put_video", interrupt)
                with pytest.raises(KeyboardInterrupt):
                    writer.commit([ok("x", 9)])
            assert names(filled.directory) == before
            writer.commit([ok("y", 10)])
        with filled.snapshot() as snapshot:
            assert (snapshot.by_key("x"), snapshot.commit_number) == (None, 3)
            assert set(state(snapshot)) == {"a", "b", "c", "d", "e", "f", "y"}


class TestWriter:
    def test_there_is_one_writer(self, filled: Store) -> None:
        with filled.writer(), pytest.raises(StoreLockedError), filled.writer():
            pass

    def test_what_was_never_committed_is_removed(self, filled: Store) -> None:
        before = names(filled.directory)
        for rest in ("shards/.tmp-00000009.h5", "shards/00000003.h5", "index/00000001/ids.npy", "index/.tmp-1/x"):
            path = filled.directory / rest
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"rest")
        (filled.directory / "shards" / "README").write_bytes(b"not ours")
        with filled.writer():
            assert names(filled.directory) == sorted([*before, "shards/README"])

    def test_requeued_videos_look_changed_and_keep_their_attempts(self, store: Store) -> None:
        fill(store, bad("a"), bad("b"), bad("c"), ok("d", 1))
        with store.writer() as writer:
            assert writer.requeue(["a", "d", "unknown", "a"]) == 1
            assert writer.requeue(None) == 3
            assert writer.requeue(["d"]) == 0
        with store.snapshot() as snapshot:
            for record in snapshot.videos(["quarantined"]):
                assert (record.size_bytes, record.mtime_ns, record.inode, record.content_hash) == (-1, -1, 0, "")
                assert (record.attempts, record.reason_code) == (1, "damaged")
            assert snapshot.commit_number == 1  # what can be found is the same, so an index stays current
            untouched = snapshot.by_key("d")
        assert untouched is not None
        assert untouched.size_bytes == file("d").size_bytes

    def test_touch_changes_the_file_and_nothing_else(self, filled: Store) -> None:
        with filled.snapshot() as snapshot:
            record, other = snapshot.by_ids([2, 3])
        moved = replace(record, path=Path("/new/b"), mtime_ns=99, size_bytes=1, inode=2)
        with filled.writer() as writer:
            writer.touch([moved])
        with filled.snapshot() as snapshot:
            assert snapshot.by_ids([2, 3]) == [moved, other]
            assert snapshot.by_path(Path("/new/b")) == moved
            assert snapshot.by_path(record.path) is None
            assert snapshot.commit_number == 2

    def test_touching_an_unknown_video_changes_nothing(self, filled: Store) -> None:
        with filled.snapshot() as snapshot:
            (record,) = snapshot.by_ids([2])
        with filled.writer() as writer, pytest.raises(StoreError, match="no video with id 99"):
            writer.touch([replace(record, mtime_ns=1), replace(record, id=99)])
        with filled.snapshot() as snapshot:
            assert snapshot.by_ids([2]) == [record]


class TestIndexGenerations:
    FIELDS = IndexManifestFields(5, "Flat", SETTINGS.fingerprint, 2)

    def publish(self, store: Store, text: str) -> int:
        def build(directory: Path) -> IndexManifestFields:
            assert list(directory.iterdir()) == []
            (directory / "ids.npy").write_text(text)
            return self.FIELDS

        with store.writer() as writer:
            return writer.publish_index(build)

    def test_the_newest_two_are_kept(self, filled: Store) -> None:
        assert [self.publish(filled, str(number)) for number in range(1, 5)] == [1, 2, 3, 4]
        with filled.snapshot() as snapshot:
            newest = snapshot.generation()
            assert newest is not None
            assert (newest.id, newest.num_vectors, newest.factory, newest.commit_number) == (4, 5, "Flat", 2)
            assert (newest.path / "ids.npy").read_text() == "4"
            assert [generation.id for generation in snapshot.generations()] == [3, 4]
            assert snapshot.commit_number == 2  # an index changes no video
        assert [name for name in names(filled.directory) if "index" in name] == [
            "index/00000003/ids.npy",
            "index/00000004/ids.npy",
        ]

    def test_a_builder_that_fails_publishes_nothing(self, filled: Store) -> None:
        def build(directory: Path) -> IndexManifestFields:
            (directory / "half").write_text("x")
            raise InputError("no")

        self.publish(filled, "1")
        before = names(filled.directory)
        with filled.writer() as writer, pytest.raises(InputError, match="no"):
            writer.publish_index(build)
        assert names(filled.directory) == before
        assert self.publish(filled, "2") == 2

    def test_an_index_of_other_features_is_refused(self, filled: Store) -> None:
        before = names(filled.directory)
        with filled.writer() as writer, pytest.raises(FingerprintError, match="build it from this store"):
            writer.publish_index(lambda directory: replace(self.FIELDS, fingerprint="0" * 64))
        assert names(filled.directory) == before

    def test_a_publication_that_fails_in_the_catalog_can_be_repeated(
        self, filled: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("index_store.catalog.Catalog.keep_generations", lambda self, count: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                self.publish(filled, "1")
        assert not any("index" in name for name in names(filled.directory))
        assert self.publish(filled, "1") == 1


class TestSnapshot:
    def test_later_commits_stay_invisible(self, filled: Store) -> None:
        with filled.snapshot() as snapshot:
            before = state(snapshot)
            fill(filled, ok("a", 50), ok("new", 51), bad("b", "removed"))
            assert state(snapshot) == before
            assert snapshot.commit_number == 2
            with filled.snapshot() as newer:
                assert newer.commit_number == 3
                assert newer.by_key("new") is not None

    def test_videos_can_be_chosen_by_status(self, snapshot: Snapshot) -> None:
        assert [record.key for record in snapshot.videos(["quarantined"])] == ["e"]
        assert [record.key for record in snapshot.videos(("ok", "partial"))] == ["a", "b", "c", "d", "f"]

    def test_videos_are_found_by_what_is_known_of_them(self, snapshot: Snapshot) -> None:
        for found in (snapshot.by_key("b"), snapshot.by_path(Path("/videos/b")), snapshot.by_content(content(2))):
            assert found is not None
            assert found.id == 2
        assert snapshot.by_key("z") is None
        assert snapshot.hashes_of_size(file("a").size_bytes) == sorted(map(content, (1, 2, 3, 4)))

    def test_tokens_come_in_the_order_of_the_ids(self, snapshot: Snapshot) -> None:
        batch = snapshot.read_tokens([4, 1, 6, 4, 2])
        assert batch.scales is None
        assert (batch.tokens.dtype.name, batch.tokens.shape) == ("float16", (5, 3, 5, 8))
        for place, seed in enumerate((4, 1, 2, 4, 2)):
            expected = features(seed)
            np.testing.assert_array_equal(batch.tokens[place], expected.tokens)
            np.testing.assert_array_equal(batch.frame_mask[place], expected.frame_mask)
            np.testing.assert_array_equal(batch.timestamps_seconds[place], expected.timestamps_seconds)
        embeddings, mask, timestamps = snapshot.read_frame_embeddings([3, 1])
        np.testing.assert_array_equal(
            embeddings, np.stack([features(3).frame_embeddings, features(1).frame_embeddings])
        )
        np.testing.assert_array_equal(mask, np.stack([features(3).frame_mask, features(1).frame_mask]))
        assert timestamps.dtype == np.float64

    def test_places_are_looked_up_once_and_forgotten_in_time(
        self, filled: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[list[int]] = []
        locations = Catalog.locations

        def recorded(self: Catalog, ids: list[int]) -> list[tuple[int, int]]:
            asked.append(ids)
            return locations(self, ids)

        monkeypatch.setattr(Catalog, "locations", recorded)
        monkeypatch.setattr("index_store.snapshot._MAX_LOCATED", 2)
        with filled.snapshot() as snapshot:
            for ids in ([1, 2], [2, 1, 3], [3]):
                expected = np.stack([features(seed).tokens for seed in ids])
                np.testing.assert_array_equal(snapshot.read_tokens(ids).tokens, expected)
        assert asked == [[1, 2], [3], [3]]

    def test_numpy_ids_are_ids(self, snapshot: Snapshot) -> None:
        ids: Any = np.array([3, 1])
        np.testing.assert_array_equal(snapshot.read_tokens(ids).tokens, snapshot.read_tokens([3, 1]).tokens)
        assert [record.id for record in snapshot.by_ids(ids)] == [3, 1]

    def test_tokens_go_straight_into_a_larger_array(self, snapshot: Snapshot) -> None:
        out = np.full((4, 3, 5, 8), 7, np.float16)
        batch = snapshot.read_tokens([2, 3], out)
        assert np.shares_memory(batch.tokens, out)
        np.testing.assert_array_equal(out[:2], snapshot.read_tokens([2, 3]).tokens)
        assert (out[2:] == 7).all()

    @pytest.mark.parametrize(
        "out",
        [
            np.empty((1, 3, 5, 8), np.float16),
            np.empty((2, 3, 5, 8), np.float32),
            np.empty((2, 3, 8, 5), np.float16).swapaxes(2, 3),
            np.empty((2, 15, 8), np.float16),
        ],
    )
    def test_an_array_that_does_not_fit_is_refused(self, snapshot: Snapshot, out: Any) -> None:
        with pytest.raises(ShapeError, match=r"expected writeable C-contiguous <f2\[>=2, 3, 5, 8\]"):
            snapshot.read_tokens([1, 2], out)

    @pytest.mark.parametrize("block_bytes", [1, 32, 70, 1 << 20])
    def test_pooled_vectors_come_in_blocks_by_id(self, snapshot: Snapshot, block_bytes: int) -> None:
        blocks = list(snapshot.read_pooled(block_bytes=block_bytes))
        assert all(pooled.nbytes <= max(block_bytes, 8 * 4) for _, pooled in blocks)
        ids = np.concatenate([block_ids for block_ids, _ in blocks])
        assert (ids.dtype.name, ids.tolist()) == ("int64", [1, 2, 3, 4, 6])
        expected = np.stack([features(seed).pooled for seed in (1, 2, 3, 4, 2)])
        np.testing.assert_array_equal(np.concatenate([pooled for _, pooled in blocks]), expected)

    def test_pooled_vectors_of_chosen_ids_keep_their_order(self, snapshot: Snapshot) -> None:
        blocks = list(snapshot.read_pooled([4, 6, 1], block_bytes=64))
        assert [ids.tolist() for ids, _ in blocks] == [[4, 6], [1]]
        np.testing.assert_array_equal(blocks[0][1], np.stack([features(4).pooled, features(2).pooled]))

    def test_reading_does_not_touch_hdf5(self, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise AssertionError("HDF5 was opened")

        monkeypatch.setattr(h5py, "File", fail)
        assert len(state(snapshot)) == 6

    def test_every_flipped_byte_of_a_record_is_found(self, filled: Store) -> None:
        with filled.snapshot() as snapshot:
            datasets = snapshot.shards()[0].datasets
        path = filled.directory / "shards" / "00000001.h5"
        for dataset in datasets:
            position = dataset.offset + dataset.row_bytes + dataset.row_bytes // 2  # in row 1: videos 2 and 6
            damaged = bytearray(path.read_bytes())
            damaged[position] ^= 4
            path.write_bytes(damaged)
            with filled.snapshot() as snapshot:
                snapshot.verify_record(1)
                with pytest.raises(DamageError, match=r"features of b \(id 2\) in shard 1, row 1 have checksum"):
                    snapshot.verify_record(2)
            damaged[position] ^= 4
            path.write_bytes(damaged)

    def test_size_is_counted_by_part(self, filled: Store, snapshot: Snapshot) -> None:
        size = snapshot.size_bytes()
        shards = sum(path.stat().st_size for path in (filled.directory / "shards").iterdir())
        assert (size.shards, size.index) == (shards, 0)
        assert size.catalog >= (filled.directory / "catalog.sqlite").stat().st_size
        assert size.total == size.shards + size.catalog


class StoreMachine(RuleBasedStateMachine):
    """A store beside a dict: whatever is committed, in whatever order, both hold the same videos."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.store = Store.create(Path(self.folder.name) / "store", SETTINGS)
        self.videos: dict[str, int | Literal["quarantined", "removed"]] = {}
        self.ids: dict[str, int] = {}

    KEYS = st.sampled_from("abcdef")

    @rule(chosen=st.lists(st.tuples(KEYS, st.sampled_from([1, 2, 3, 4, "quarantined", "removed"])), max_size=4))
    def commit(self, chosen: list[tuple[str, Any]]) -> None:
        fill(self.store, *[ok(key, what) if isinstance(what, int) else bad(key, what) for key, what in chosen])
        for key, what in chosen:
            self.ids.setdefault(key, len(self.ids) + 1)
            self.videos[key] = what

    @rule(key=KEYS, data=st.data())
    def copy(self, key: str, data: st.DataObject) -> None:
        stored = sorted({seed for seed in self.videos.values() if isinstance(seed, int)})
        if stored:
            seed = data.draw(st.sampled_from(stored))
            fill(self.store, copy_of(key, seed))
            self.ids.setdefault(key, len(self.ids) + 1)
            self.videos[key] = seed

    @invariant()
    def holds_the_same(self) -> None:
        with Store.open(self.store.directory).snapshot() as snapshot:
            records = list(snapshot.videos())
            assert {record.key: record.id for record in records} == self.ids
            seeds = {record.id: self.videos[record.key] for record in records if record.shard is not None}
            assert seeds == {self.ids[key]: what for key, what in self.videos.items() if isinstance(what, int)}
            tokens = snapshot.read_tokens(list(seeds)).tokens
            for place, seed in enumerate(seeds.values()):
                assert isinstance(seed, int)
                np.testing.assert_array_equal(tokens[place], features(seed).tokens)
            for video_id in seeds:
                snapshot.verify_record(video_id)

    def teardown(self) -> None:
        self.folder.cleanup()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = hypothesis_settings(max_examples=8, stateful_step_count=8, deadline=None, derandomize=True)


def test_settings_of_the_other_kind_are_refused(filled: Store) -> None:
    other: StoreSettings = INT8_SETTINGS
    with pytest.raises(FingerprintError, match=r"tokens.dtype: float16 here, int8 asked"):
        filled.settings.require_same(other, filled.directory)
