from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fusetune.evaluation.batching import token_batches

lengths = st.lists(st.integers(1, 600), min_size=1, max_size=200)


@given(lengths=lengths, budget=st.integers(8, 5000))
def test_every_row_once_and_the_budget_is_kept(lengths: list[int], budget: int) -> None:
    array = np.array(lengths)
    batches = token_batches(array, budget)
    assert sorted(int(i) for b in batches for i in b) == list(range(len(lengths)))
    for batch in batches:
        padded = -(-int(array[batch].max()) // 8) * 8
        assert len(batch) == 1 or padded * len(batch) <= budget


def test_equal_lengths_fill_whole_batches() -> None:
    sizes = [len(batch) for batch in token_batches(np.full(100, 16), 16 * 30)]
    assert sizes == [30, 30, 30, 10]


def test_sorting_wastes_little() -> None:
    array = np.random.default_rng(0).integers(1, 129, size=1000)
    padded = sum(-(-int(array[b].max()) // 8) * 8 * len(b) for b in token_batches(array, 4096))
    unsorted = sum(int(array[i : i + 32].max()) * 32 for i in range(0, 1000, 32))
    assert padded / array.sum() < 1.15
    assert unsorted / array.sum() > 1.8
