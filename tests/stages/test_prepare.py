"""What is prepared changes no bit of a score, is never used when it does not fit, and is whole or not there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from index_store.errors import InputError, StoreLockedError, UsageError
from index_store.lock import writer_lock
from index_store.prepared import FORMAT
from index_store.records import Ranking, VideoOutcome
from index_store.snapshot import Snapshot
from index_store.store import Store
from stages.evaluate import CaptionedText, Evaluation
from stages.index import build_index
from stages.normalised import Normalisation
from stages.prepare import prepare
from stages.rerank import rerank
from stages.rerankers import make_reranker
from stages.rerankers.base import Reranker
from stages.rerankers.clip4clip import Clip4ClipHead, Clip4ClipReranker, Clip4ClipTightHead
from stages.rerankers.pairwise import PairwiseReranker
from stages.rerankers.selection import PredictorB
from stages.rerankers.ts2net import Ts2NetHead, Ts2NetReranker
from stages.rerankers.ucofia import UcofiaHead, UcofiaReranker
from stages.rerankers.video_sides import video_side_of
from stages.rerankers.wti import WtiHead, WtiReranker
from stages.rerankers.xclip import XClipHead, XClipReranker
from stages.search import open_index
from stages.video_source import compute
from tests.forked import start_function
from tests.stages.corpus import WIDTH, DrawnTexts, file, make_store, outcome, queries, settings_with

NUM_VIDEOS = 40


def drawn(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """With random weights, ready to use."""
    generator = torch.manual_seed(seed)
    head = make()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return head.eval().requires_grad_(requires_grad=False)


def ucofia(seed: int = 0, *, official: bool = False) -> Reranker:
    sizes = {"num_words": 9, "num_frames": 4, "num_patches": 3}
    return UcofiaReranker(
        drawn(lambda: UcofiaHead(WIDTH, 1, predictor=PredictorB(WIDTH), official=official, **sizes), seed)  # type: ignore[arg-type]
    )


RERANKERS: dict[str, Callable[[], Reranker]] = {
    "x-clip": lambda: XClipReranker(drawn(lambda: XClipHead(WIDTH, 1, num_words=9, num_frames=4))),  # type: ignore[arg-type]
    "x-clip without weights": lambda: make_reranker("x-clip"),
    "ucofia": ucofia,
    "ucofia without weights": lambda: make_reranker("ucofia"),
    "ts2-net": lambda: Ts2NetReranker(drawn(lambda: Ts2NetHead(WIDTH, 1))),  # type: ignore[arg-type]
    "clip4clip": lambda: Clip4ClipReranker(drawn(lambda: Clip4ClipHead(WIDTH, 2))),  # type: ignore[arg-type]
    "clip4clip-lstm": lambda: Clip4ClipReranker(drawn(lambda: Clip4ClipHead(WIDTH, recurrent=True))),  # type: ignore[arg-type]
    "clip4clip-tight": lambda: Clip4ClipReranker(drawn(lambda: Clip4ClipTightHead(WIDTH, 1))),  # type: ignore[arg-type]
    "wti": lambda: WtiReranker(drawn(lambda: WtiHead(WIDTH, 1, weighted=True))),  # type: ignore[arg-type]
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """40 videos and 4 copies, nothing prepared."""
    made = make_store(tmp_path_factory.mktemp("plain") / "store", NUM_VIDEOS)
    with made.writer() as writer:
        writer.commit([VideoOutcome(file(100 + n), "ok", same_content_as=f"{n:064x}") for n in range(20, 24)])
    build_index(made)
    return made


@pytest.fixture
def store(plain: Store, tmp_path: Path) -> Store:
    shutil.copytree(plain.directory, tmp_path / "store")
    return Store.open(tmp_path / "store")


def ranked(store: Store, reranker: Reranker, **options: Any) -> list[Ranking]:
    with store.snapshot() as snapshot:
        return list(
            rerank(snapshot, open_index(snapshot), DrawnTexts(), queries(20), reranker, **{"top_k": 15, **options})
        )


@pytest.fixture
def tokens_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many videos' tokens were read, each time."""
    found: list[int] = []
    read = Snapshot.read_tokens

    def counted(self: Snapshot, ids: list[int], out: object = None) -> object:
        found.append(len(ids))
        return read(self, ids, out)  # type: ignore[arg-type]

    monkeypatch.setattr(Snapshot, "read_tokens", counted)
    return found


def path_of(store: Store, shard: int = 1) -> Path:
    """The one file of a shard."""
    (path,) = (store.directory / "prepared").glob(f"*/{shard:08d}.safetensors")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", RERANKERS)
def test_scores_are_the_same_and_no_tokens_are_read(store: Store, tokens_read: list[int], name: str) -> None:
    expected = ranked(store, RERANKERS[name]())
    report = prepare(store, RERANKERS[name]())
    assert (report.num_videos, report.num_computed) == (NUM_VIDEOS, NUM_VIDEOS)
    tokens_read.clear()
    assert ranked(store, RERANKERS[name]()) == expected
    assert ranked(store, RERANKERS[name](), memory_bytes=2 * 15 * report.bytes_per_video) == expected
    assert tokens_read == []


@pytest.mark.slow
@pytest.mark.parametrize("settings", [settings_with("int8"), settings_with(keep="2"), settings_with(keep="cls")])
@pytest.mark.parametrize("name", ["x-clip", "ucofia"])
def test_so_they_are_in_other_stores(tmp_path: Path, settings: object, name: str) -> None:
    store = make_store(tmp_path, NUM_VIDEOS, settings)  # type: ignore[arg-type]
    build_index(store)
    expected = ranked(store, RERANKERS[name]())
    prepare(store, RERANKERS[name]())
    assert ranked(store, RERANKERS[name]()) == expected


def test_the_file_is_what_the_format_says(store: Store) -> None:
    report = prepare(store, make_reranker("x-clip"))
    frames, _, width = store.settings.token_shape
    arrays = load_file(path_of(store))
    assert arrays["for_words"].shape == (NUM_VIDEOS // 3, frames + 1, width)
    assert sorted(arrays) == ["for_words", "frame_mask", "row_checksums"]  # for_sentence is the same as for_words
    assert report.bytes_per_video == 4 * (frames + 1) * width + frames
    with store.snapshot() as snapshot:
        first = snapshot.read_frame_embeddings([1])
    unit = torch.nn.functional.normalize(torch.from_numpy(first.embeddings).float(), dim=-1)
    np.testing.assert_array_equal(arrays["for_words"][0, :frames], unit[0].numpy())
    assert arrays["row_checksums"].any(1).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x-clip", "ucofia"])
def test_from_video_to_text_and_with_normalised_scores_too(store: Store, name: str) -> None:
    texts = [CaptionedText(f"c{n}", f"video{n} w{n % 3}", (n + 1,)) for n in range(NUM_VIDEOS)]

    def measured() -> list[object]:
        found: list[object] = []
        with store.snapshot() as snapshot:
            for normalisation in (None, Normalisation("sinkhorn", ("video1", "video2 w1"), 100.0)):
                evaluation = Evaluation(
                    snapshot,
                    open_index(snapshot),
                    DrawnTexts(),
                    texts,
                    RERANKERS[name](),
                    top_k=10,
                    normalisation=normalisation,
                )
                found += [evaluation.text_to_video(), evaluation.video_to_text()]
        return found

    expected = measured()
    prepare(store, RERANKERS[name]())
    assert measured() == expected


def test_a_second_run_does_only_what_is_new(store: Store, tokens_read: list[int]) -> None:
    prepare(store, ucofia())
    before = path_of(store).stat()
    assert prepare(store, ucofia()).num_computed == 0
    with store.writer() as writer:
        writer.commit([outcome(number) for number in range(200, 205)])
    build_index(store)
    tokens_read.clear()
    mixed = ranked(store, ucofia())
    assert sum(tokens_read) > 0  # the new ones, from their tokens
    report = prepare(store, ucofia())
    assert (report.num_computed, report.num_videos) == (5, NUM_VIDEOS + 5)
    assert path_of(store).stat().st_mtime_ns == before.st_mtime_ns
    tokens_read.clear()
    assert ranked(store, ucofia()) == mixed
    assert tokens_read == []


@pytest.mark.slow
def test_what_was_made_with_something_else_is_not_used(store: Store, tokens_read: list[int]) -> None:
    others = [ucofia(seed=1), ucofia(official=True), make_reranker("ucofia"), make_reranker("x-clip")]
    expected = [ranked(store, other) for other in others]
    prepare(store, ucofia())
    for other, wanted in zip(others, expected, strict=True):
        tokens_read.clear()
        assert ranked(store, other) == wanted
        assert sum(tokens_read) > 0
    assert len({prepare(store, other).name for other in (*others, ucofia())}) == 5


def test_every_option_and_every_weight_counts() -> None:
    settings = settings_with()
    made = [
        ucofia(),
        ucofia(seed=1),
        ucofia(official=True),
        XClipReranker(drawn(lambda: XClipHead(WIDTH, 1, num_heads=1))),  # type: ignore[arg-type]
        XClipReranker(drawn(lambda: XClipHead(WIDTH, 1, num_heads=2))),  # type: ignore[arg-type]
        UcofiaReranker(UcofiaHead(num_patches=2)),
        UcofiaReranker(UcofiaHead(num_patches=3)),
    ]
    keys = []
    for reranker in made:
        side = video_side_of(reranker)
        assert side is not None
        keys += [
            side.key(settings, torch.device("cpu")).digest,
            side.key(settings, torch.device("cuda")).digest,
            side.key(settings_with("int8"), torch.device("cpu")).digest,
        ]
        assert side.key(settings, torch.device("cpu")).digest == keys[-3]
    assert len(set(keys)) == 3 * len(made)
    whole = UcofiaReranker()
    assert {video_side_of(part).head for part in whole.parts} == {whole.scorer}  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("place", [0.5, 0.999, -1.0])
def test_a_flipped_byte_is_not_used_and_verify_mends_it(store: Store, tokens_read: list[int], place: float) -> None:
    expected = ranked(store, ucofia())
    prepare(store, ucofia())
    whole = {path: path.read_bytes() for path in (store.directory / "prepared").rglob("*.safetensors")}
    for path, content in whole.items():
        spoiled = bytearray(content)
        start = 8 + int.from_bytes(content[:8], "little")
        spoiled[int(start + place * (len(content) - start)) if place > 0 else 20] ^= 1
        path.write_bytes(bytes(spoiled))
    tokens_read.clear()
    assert ranked(store, ucofia()) == expected
    assert sum(tokens_read) > 0
    assert prepare(store, ucofia(), verify=True).num_computed == NUM_VIDEOS
    assert {path: path.read_bytes() for path in whole} == whole


@pytest.mark.slow
@pytest.mark.parametrize("length", [0, 4, 100, 5000, -1])
def test_a_short_file_is_done_again(store: Store, length: int) -> None:
    expected = ranked(store, ucofia())
    prepare(store, ucofia())
    whole = path_of(store).read_bytes()
    path_of(store).write_bytes(whole[:length])
    assert ranked(store, ucofia()) == expected
    assert prepare(store, ucofia()).num_computed == NUM_VIDEOS // 3
    assert path_of(store).read_bytes() == whole


def test_rows_of_another_shard_or_set_do_not_fit(store: Store) -> None:
    expected = ranked(store, ucofia())
    prepare(store, ucofia())
    prepare(store, ucofia(seed=1))
    first, second = sorted((store.directory / "prepared").glob("ucofia-*"))
    for name in ("00000001.safetensors", "00000002.safetensors"):
        shutil.copy(first / name, first / "x")
        shutil.copy(second / name, first / name)
        shutil.move(first / "x", second / name)
    assert ranked(store, ucofia()) == expected
    shutil.copy(first / "00000001.safetensors", first / "00000099.safetensors")
    reports = [prepare(store, ucofia()), prepare(store, ucofia(seed=1))]
    assert [report.num_computed for report in reports] == [NUM_VIDEOS] * 2
    assert sum(report.num_removed for report in reports) == 1


def test_nothing_is_written_where_it_saves_nothing(store: Store) -> None:
    for name, why in (("eercf", "every token"), ("late-interaction", "every token"), ("broad", "computes nothing")):
        with pytest.raises(UsageError, match=f"saves nothing for {name}, which .*{why}"):
            prepare(store, make_reranker(name))
    assert not (store.directory / "prepared").exists()


def test_an_empty_store_and_a_second_writer_are_errors(tmp_path: Path, store: Store) -> None:
    with pytest.raises(InputError, match="no video with features"):
        prepare(Store.create(tmp_path / "empty", store.settings), ucofia())
    prepare(store, ucofia())
    with writer_lock(store.directory / "prepared" / "writer.lock"), pytest.raises(StoreLockedError):
        prepare(store, ucofia())
    with store.writer():  # the store's own lock is another one: extract may run meanwhile
        prepare(store, ucofia())


@pytest.mark.gpu
@pytest.mark.parametrize("make", [ucofia, lambda: make_reranker("x-clip")])
def test_on_a_gpu_scores_are_the_same_up_to_rounding(store: Store, make: Callable[[], Reranker]) -> None:
    reranker = make()
    assert isinstance(reranker, PairwiseReranker)
    reranker.scorer.cuda()  # type: ignore[attr-defined]

    def scores() -> list[dict[int, float]]:
        return [{hit.video_id: hit.score for hit in ranking.hits} for ranking in ranked(store, reranker, device="cuda")]

    expected = scores()
    assert prepare(store, reranker, device="cuda").num_computed == NUM_VIDEOS
    assert prepare(store, make()).num_computed == NUM_VIDEOS  # those of a CPU are another set
    for found, wanted in zip(scores(), expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-3, abs=1e-3)


PINNED = {
    "x-clip": (0.113057, 5.422389),
    "x-clip without weights": (0.112923, 1.461640),
    "ucofia": (0.567560, 43.997899),
    "ucofia without weights": (0.094293, 4.079654),
    "ts2-net": (0.105839, 2.660326),
    "clip4clip": (0.142950, -0.669937),
    "clip4clip-lstm": (0.145461, 0.511447),
    "clip4clip-tight": (0.619823, 16.872835),
    "wti": (0.111047, 1.342110),
}
"""Mean size of the numbers that each method makes of videos 0 to 3, and their sum weighed by place."""


@pytest.mark.parametrize("name", RERANKERS)
def test_other_numbers_need_another_format(plain: Store, name: str) -> None:
    """If this fails on purpose, ``index_store.prepared.FORMAT`` must grow: what was prepared before is wrong now."""
    reranker = RERANKERS[name]()
    side = video_side_of(reranker)
    assert side is not None
    assert isinstance(reranker, PairwiseReranker)
    with plain.snapshot() as snapshot:
        ((_, fields, _),) = compute(side, reranker, snapshot.read_tokens([1, 2, 3, 4]), torch.device("cpu"))
    numbers = np.concatenate([field.ravel().astype(np.float64) for field in fields.values()])
    found = (np.abs(numbers).mean(), numbers @ np.cos(np.arange(len(numbers))))
    assert FORMAT == "tbpipe-prepared-2"
    np.testing.assert_allclose(found, PINNED[name], rtol=1e-4, atol=1e-4)


def prepare_ucofia(directory: Path) -> None:
    prepare(Store.open(directory), ucofia())


def num_prepared(store: Store) -> int:
    """How many videos the one set has."""
    with store.snapshot() as snapshot:
        sets = snapshot.prepared_sets()
    return sets[0].num_prepared if sets else 0


@pytest.mark.slow
def test_killed_at_any_moment_what_is_there_is_whole(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 600)
    with store.writer() as writer:
        for start in range(600, 1000, 100):
            writer.commit([outcome(number) for number in range(start, start + 100)])
    build_index(store)
    expected = ranked(store, ucofia())
    num_before = 0
    for attempt in range(4):
        process = start_function(prepare_ucofia, store.directory)
        while attempt and num_prepared(store) == num_before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.05)
        process.kill()
        num_now = num_prepared(store)
        assert num_now >= num_before
        num_before = num_now
        assert ranked(store, ucofia()) == expected
    assert num_before > 0
    prepare(store, ucofia())
    shutil.copytree(store.directory, tmp_path / "clean", ignore=shutil.ignore_patterns("prepared"))
    clean = Store.open(tmp_path / "clean")
    prepare(clean, ucofia())
    assert files(store) == files(clean)


def files(store: Store) -> dict[str, bytes]:
    """Everything that is prepared."""
    directory = store.directory / "prepared"
    found = {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if name != "writer.lock"}
