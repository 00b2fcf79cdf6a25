"""``stages.bench``: limits are added up as they should, and what is counted is what is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from index_store.errors import UsageError
from stages.bench.count import operations
from stages.bench.data import DrawnTexts, drawn_store, first_videos, store_settings
from stages.bench.growth import exponent
from stages.bench.machine import ScratchFile, matmul
from stages.bench.measure import Need, Stage, Watch, Yardstick, measure_stage
from stages.bench.methods import COUNTS, Reranking, Sizes, choose_methods, reranker_to_measure
from stages.bench.models import model_to_measure
from stages.bench.recall import RAW_CACHED, RAW_COLD, Reading, built
from stages.rerankers import RERANKERS, TOKEN_BINDER

CPU = torch.device("cpu")


class Known(Watch):
    """A watch that reads what the test says, in seconds a run by name."""

    def __init__(self, **seconds: float) -> None:
        object.__setattr__(self, "table", seconds)

    def seconds(self, action: Stage | Yardstick, runs: int) -> float:
        action.run()
        return self.table[action.name] * runs


def test_a_limit_is_the_sum_of_what_comes_one_after_the_other() -> None:
    done: list[str] = []
    yardsticks = {
        name: Yardstick(name, "GB", 10.0, lambda name=name: done.append(name))
        for name in ("disk", "memory", "products")
    }
    needs = ((Need("disk", 5.0),), (Need("memory", 2.0), Need("products", 1.0)))
    stage = Stage("work", "videos", 4.0, lambda: done.append("work"), needs)
    row = measure_stage(stage, yardsticks, 2, Known(work=8.0, disk=1.0, memory=2.0, products=8.0))
    assert done == ["work", "disk", "memory", "products"] * 2, "they take turns"
    assert row.rate == 4 / 8
    # one video: 5 GB at 10 GB/s, then 1 GB of products at 10/8, while 2 GB of memory at 10/2 hide behind them
    assert row.limit == pytest.approx(1 / (0.5 + 0.8))
    assert [part.is_hidden for part in row.parts] == [False, True, False]
    assert row.bound == "products"
    assert row.ratio == pytest.approx(0.5 * 1.3)


def test_a_short_run_is_repeated_until_it_can_be_measured() -> None:
    runs: list[int] = []
    stage = Stage("work", "videos", 1.0, lambda: runs.append(1), ((Need("work too", 1.0),),))
    other = Yardstick("work too", "GB", 1.0, lambda: None)
    row = measure_stage(stage, {"work too": other}, 1, Known(**{"work": 0.001, "work too": 0.001}))
    assert row.ratio == pytest.approx(1.0)
    assert row.rate == pytest.approx(1000)


def test_the_exponent_of_a_power_is_found() -> None:
    sizes = [10.0, 100.0, 1000.0]
    assert exponent(sizes, [3 * size**0.7 for size in sizes]) == pytest.approx(0.7)
    assert exponent(sizes, [2.0, 2.0, 2.0]) == pytest.approx(0)


def test_operations_of_a_tower_are_those_of_the_formula() -> None:
    """A layer of width w: 4 w^2 for attention's matrices, 8 w^2 for the MLP, 2 n w for its products, each twice."""
    model = model_to_measure("tbpipe-small", "cpu")
    pixels = torch.zeros(2, 3, 48, 48, dtype=torch.uint8)
    w, n, patch = 128, 37, 8
    blocks = 4 * n * (24 * w * w + 4 * n * w)
    assert operations(lambda: model.encode_frames(pixels)) / 2 == blocks + 2 * 36 * 3 * patch**2 * w + 2 * n * w * w
    n = 16
    assert operations(lambda: model.encode_texts(["a"] * 8)) / 8 == 3 * n * (24 * w * w + 4 * n * w) + 2 * n * w * w


def test_operations_of_single_products() -> None:
    a, b = torch.ones(5, 2, 3), torch.ones(5, 3, 4)
    assert operations(lambda: a @ b) == operations(lambda: torch.bmm(a, b)) == 2 * 5 * 2 * 3 * 4
    assert operations(lambda: torch.baddbmm(torch.ones(5, 2, 4), a, b)) == 2 * 5 * 2 * 3 * 4
    assert operations(lambda: torch.einsum("bij,bjk->bk", a, b)) == 2 * 5 * 2 * 3 * 4
    assert operations(lambda: torch.nn.functional.linear(a, torch.ones(7, 3))) == 2 * 5 * 2 * 3 * 7
    assert operations(lambda: torch.nn.functional.scaled_dot_product_attention(a, a, a)) == 2 * 2 * 5 * 2 * 2 * 3
    assert operations(lambda: a + 1) == 0


@pytest.mark.slow
def test_any_architecture_is_measured_without_its_weights() -> None:
    model = model_to_measure("ViT-S-32-alt", "cpu")
    assert model.encode_frames(torch.zeros(1, 3, 224, 224, dtype=torch.uint8)).isfinite().all()
    assert model.encode_texts(["a dog"]).sentence.shape == (1, model.architecture.embed_dim)
    with pytest.raises(UsageError, match="ViT-B-32"):
        model_to_measure("ViT-B-33", "cpu")


def test_every_method_is_counted() -> None:
    assert set(COUNTS) == {*RERANKERS, TOKEN_BINDER}
    assert choose_methods(None) == tuple(COUNTS)
    assert choose_methods("ucofia, eercf,ucofia") == ("ucofia", "eercf")
    with pytest.raises(UsageError, match="did you mean 'eercf'"):
        choose_methods("eerfc")


@pytest.fixture(scope="module")
def reranking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reranking]:
    """Six queries over eight videos, every video a candidate."""
    store = drawn_store(tmp_path_factory.mktemp("bench") / "store", 8, store_settings(12, 50, 64))
    with store.snapshot() as snapshot:
        ids, pooled = first_videos(snapshot)
        index = built(pooled, ids, snapshot.commit_number)
        yield Reranking(snapshot, index, DrawnTexts(pooled, 6, CPU), 8, 64 << 20, CPU)


WITH_PRODUCTS = sorted(COUNTS.keys() - {"broad", "clip4clip"})


@pytest.mark.parametrize("method", WITH_PRODUCTS)
def test_what_a_method_needs_is_not_more_than_what_it_computes(method: str, reranking: Reranking) -> None:
    """Else it would not be a limit. Lengths of tokens are no products, so the count of videos is left out."""
    reranker = reranker_to_measure(method, reranking.snapshot.settings, CPU)
    computed = operations(lambda: reranking.run(reranker))
    needed = 6 * 8 * COUNTS[method].pair(Sizes(12, 50, 64, reranking.texts.mean_words))
    assert 0 < needed <= 1.01 * computed
    products = next(part for part in reranking.stage(method).needs[1] if part.yardstick == matmul(torch.float32))
    assert products.amount >= needed / 6 / 1e9


@pytest.mark.parametrize("is_cold", [False, True])
def test_both_ways_of_reading_give_the_same_bytes(is_cold: bool, tmp_path: Path) -> None:
    store = drawn_store(tmp_path / "store", 5, store_settings(4, 3, 16))
    with store.snapshot() as snapshot:
        ids, _ = first_videos(snapshot)
        with closing(Reading(store, snapshot, ids, 4)) as reading:
            stage = reading.cold() if is_cold else reading.cached()
            raw = {yardstick.name: yardstick for yardstick in reading.yardsticks()}[RAW_COLD if is_cold else RAW_CACHED]
            for action in (stage, raw):
                action.before()
                action.run()
            ours = sorted(bytes(row) for row in reading.ours)
            theirs = sorted(bytes(row) for row in reading.raw)
    assert ours == theirs
    assert len(set(ours)) == 4


def test_a_scratch_file_is_written_and_read_whole(tmp_path: Path) -> None:
    with closing(ScratchFile(tmp_path / "scratch", 1 << 20, 1 << 18)) as scratch:
        for yardstick in scratch.yardsticks():
            scratch.buffer[:] = 0
            yardstick.before()
            yardstick.run()
            if yardstick.name != "writing":
                np.testing.assert_array_equal(scratch.buffer.ravel(), np.fromfile(scratch.path, np.uint8))
            assert yardstick.amount == pytest.approx((1 << 20) / 1e9)
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]
