from __future__ import annotations

import functools

import pytest
import torch

from stages.rerankers.fixed_shape import mixed, products, total


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


@pytest.mark.parametrize("depth", [2, 5, 12])
@torch.inference_mode()
def test_a_small_matrix_gives_a_column_the_same_bits_among_any_others(depth: int) -> None:
    drawn = torch.Generator().manual_seed(0)
    matrix, x = torch.randn(depth + 1, depth, generator=drawn), torch.randn(3, depth, 500, generator=drawn)
    whole = mixed(matrix, x, 1)
    torch.testing.assert_close(whole, torch.einsum("en,bnm->bem", matrix, x))
    for first, number in ((0, 1), (499, 1), (13, 64), (100, 191), (100, 192), (7, 400)):
        part = slice(first, first + number)
        assert torch.equal(mixed(matrix, x[1:, :, part], 1), whole[1:, :, part])
    assert torch.equal(mixed(matrix, x.view(1, 3, depth, 20, 25), 2), whole.view(1, 3, depth + 1, 20, 25))


@torch.inference_mode()
def test_a_sum_goes_one_entry_after_the_other() -> None:
    x = torch.randn(3, 19, 70, generator=torch.Generator().manual_seed(0))
    expected = functools.reduce(torch.add, x.unbind(1))
    assert torch.equal(total(x, 1), expected)
    assert torch.equal(total(torch.cat([x, torch.zeros(3, 5, 70)], 1), 1), expected)
    assert torch.equal(total(x[:, :1], 1), x[:, 0])
