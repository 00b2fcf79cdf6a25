from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.corpus import random_store, settings
from benchmarks.near_duplicates import MODEL
from benchmarks.sizes.report import holds, rows_of, to_markdown, write
from benchmarks.sizes.run import Result, derive, shipped_reranker
from index_store.settings import TokenSettings
from stages.models import load_model


def result(dtype: str, right: str, seed: int = 1, keep: str = "all") -> Result:
    return Result("eercf", dtype, keep, seed, 4, 1000 if dtype == "float16" else 500, right, "0001")


def test_a_derived_store_has_the_same_videos_with_other_tokens(tmp_path: Path) -> None:
    source = random_store(tmp_path / "source", 3, settings(frames=2, tokens=5, width=16))
    small = derive(source, TokenSettings("int8", "2"), tmp_path / "small")
    assert small.settings.bytes_per_video < source.settings.bytes_per_video
    with source.snapshot() as before, small.snapshot() as after:
        ids = [record.id for record in before.videos()]
        assert [record.key for record in after.videos()] == [record.key for record in before.videos()]
        found, expected = after.read_tokens(ids), before.read_tokens(ids)
        assert found.scales is not None
        assert found.tokens.shape == (3, 2, 1 + 2, 16)
        frame = found.tokens[:, :, 0] * found.scales[:, :, :1]
        np.testing.assert_allclose(frame, expected.tokens[:, :, 0].astype(np.float32), atol=found.scales.max())
        assert after.generation() is not None


def test_the_shipped_weights_take_fewer_tokens_with_a_mean_place_for_every_patch() -> None:
    model = load_model(MODEL, device="cpu", towers="text")
    every = replace(settings(), model=model.settings())
    few = replace(every, tokens=TokenSettings("int8", "4"))
    blocks = [shipped_reranker(of, model).network.blocks[0] for of in (every, few)]
    of_all, of_few = (block.state_dict()["place"] for block in blocks)
    assert len(of_all) == every.token_shape[1]
    assert torch.equal(of_few[0], of_all[0])
    assert torch.allclose(of_few[1:], of_all[1:].mean(dim=0).expand(4, -1))


def test_what_int8_loses_is_counted_query_by_query() -> None:
    results = [result("float16", "1100"), result("float16", "1010", seed=2)]
    results += [result("int8", "1000"), result("int8", "1011", seed=2)]
    wide, small = rows_of(results)
    assert (wide.at_1, wide.broad_at_1, wide.num_queries, wide.lost) == (50.0, 25.0, 8, None)
    assert small.lost == 0.0  # one lost, one won
    assert small.lost_error == pytest.approx(100 * np.std([0, 1, 0, 0, 0, 0, 0, -1], ddof=1) / np.sqrt(8))
    assert holds([wide, small])
    assert not holds(rows_of([result("float16", "1100"), result("int8", "1000")]))
    assert holds(rows_of([result("float16", "1100", keep="4"), result("int8", "1000", keep="4")]))


@pytest.mark.slow
def test_the_table_is_written_in_every_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = [result("float16", "1100"), result("int8", "1000")]
    rows = write(results, tmp_path)
    assert "| eercf | all | int8 | 0.5 | 25.0 | +25.00 ± 25.00 |" in capsys.readouterr().out
    assert (tmp_path / "sizes.md").read_text() == to_markdown(rows, results)
    assert [row["at_1"] for row in json.loads((tmp_path / "sizes.json").read_text())["rows"]] == [50.0, 25.0]
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG")
