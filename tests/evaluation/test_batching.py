from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusetune.evaluation.batching import token_batches, trimmed

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


def padded(lengths: list[int], width: int, *, left: bool = False) -> dict[str, torch.Tensor]:
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, n in enumerate(lengths):
        mask[row, slice(width - n, width) if left else slice(0, n)] = 1
    labels = torch.arange(len(lengths))
    return {"input_ids": mask * 7, "attention_mask": mask, "labels": labels}


def test_columns_that_are_padding_in_every_row_are_cut() -> None:
    cut = trimmed(padded([3, 5, 2], 8))
    assert cut["input_ids"].shape == cut["attention_mask"].shape == (3, 5)
    assert cut["attention_mask"].sum(dim=1).tolist() == [3, 5, 2]
    assert cut["labels"].shape == (3,)


def test_padding_on_the_left_and_full_batches_stay() -> None:
    left = padded([3, 5], 8, left=True)
    assert trimmed(left) is left
    full = padded([8, 5], 8)
    assert trimmed(full) is full
    bare = {"input_ids": torch.zeros(2, 3)}
    assert trimmed(bare) is bare
