from __future__ import annotations

import pytest
import torch

from stages.rerankers.fixed_shape import products


@pytest.mark.parametrize("depth", [16, 512])
@torch.inference_mode()
def test_a_product_has_the_same_bits_among_any_others(depth: int) -> None:
    """These numbers of rows and columns are cut into products of every shape."""
    drawn = torch.Generator().manual_seed(0)
    rows, columns = torch.randn(330, depth, generator=drawn), torch.randn(1000, depth, generator=drawn)
    whole = products(rows, columns)
    torch.testing.assert_close(whole, rows @ columns.T, atol=1e-3, rtol=1e-4)
    for num_rows, num_columns in ((1, 1), (1, 50), (15, 768), (17, 193), (40, 960), (64, 192), (65, 400), (330, 5)):
        top, left = 330 - num_rows, 1000 - num_columns
        assert torch.equal(products(rows[top:], columns[left:]), whole[top:, left:])
        assert torch.equal(products(rows[:num_rows], columns[:num_columns]), whole[:num_rows, :num_columns])


@torch.inference_mode()
def test_no_rows_or_columns_give_an_empty_product() -> None:
    assert products(torch.ones(0, 8), torch.ones(3, 8)).shape == (0, 3)
    assert products(torch.ones(3, 8), torch.ones(0, 8)).shape == (3, 0)
