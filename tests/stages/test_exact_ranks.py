from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index_store.errors import StoreError
from stages import exact_ranks as exact_ranks_module
from stages.exact_ranks import exact_ranks
from stages.search import unit_length

SIZES = ("_QUERIES_PER_PRODUCT", "_VECTORS_PER_PRODUCT", "_PAIRS_PER_PART")


@pytest.mark.slow
@given(st.integers(0, 10_000), st.integers(1, 7), st.integers(1, 40), st.integers(1, 9), st.sampled_from([0, 1e-6, 1]))
@settings(deadline=None)
def test_exact_ranks_in_blocks_equal_the_sorted_order(
    seed: int, num_queries: int, num_vectors: int, per_block: int, spread: float
) -> None:
    """Vectors are copies, nearly copies, or have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    few = rng.standard_normal((3, 16))[rng.integers(0, 3, num_vectors)]
    vectors = unit_length((few + spread * rng.standard_normal((num_vectors, 16))).astype(np.float32))
    ids = np.cumsum(rng.integers(1, 5, num_vectors))
    queries = unit_length(rng.standard_normal((num_queries, 16)).astype(np.float32))
    right = [rng.choice(num_vectors, rng.integers(1, min(3, num_vectors) + 1), replace=False) for _ in queries]
    cuts = [slice(start, start + per_block) for start in range(0, num_vectors, per_block)]
    with pytest.MonkeyPatch.context() as patched:
        for name, size in zip(SIZES, rng.integers(1, 10, len(SIZES)).tolist(), strict=True):
            patched.setattr(exact_ranks_module, name, size)
        found = exact_ranks(
            queries,
            [ids[rows].tolist() for rows in right],
            [(ids[rows], vectors[rows]) for rows in right],
            [(ids[part], vectors[part]) for part in cuts],
        )
    scores = (queries[:, None].astype(np.float64) * vectors).sum(axis=2).astype(np.float32)
    for row, columns in enumerate(right):
        order = np.lexsort((ids, -scores[row])).tolist()
        assert found[row] == 1 + min(order.index(column) for column in columns.tolist())


def test_a_damaged_right_answer_has_no_rank() -> None:
    vectors = np.eye(3, 4, dtype=np.float32)
    vectors[1] = np.nan
    ids = np.arange(3)
    with pytest.raises(StoreError, match="id 1"):
        exact_ranks(np.eye(1, 4, dtype=np.float32), [[1]], [(ids[1:2], vectors[1:2])], [(ids, vectors)])
