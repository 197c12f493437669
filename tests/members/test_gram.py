from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fusetune.errors import MemberError
from fusetune.members.gram import gram
from fusetune.members.pool import MemberPool

Raw = Callable[[Sequence[dict[str, Tensor]]], Path]


def flat(pool: MemberPool) -> np.ndarray:
    """Every member as one row of float64."""
    names = [n for n, t in pool.members[0].tensors.items() if t.dtype.is_floating_point]
    return np.array(
        [
            np.concatenate([pool.load_tensor(i, n).double().reshape(-1).numpy() for n in names])
            for i in range(len(pool))
        ]
    )


@pytest.mark.parametrize("tile", [16, 48, 1 << 18])
@pytest.mark.parametrize("centre", [False, True])
def test_inner_products_of_the_flattened_members(
    bert_members: Path, tile: int, centre: bool
) -> None:
    pool = MemberPool.open(bert_members)
    rows = flat(pool)
    rows = rows - rows.mean(axis=0) if centre else rows
    found = gram(pool, centre=centre, tile=tile)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, rows @ rows.T, rtol=1e-12, atol=1e-12 * len(rows[0]))
    assert (found == found.T).all()


def test_the_centred_rows_sum_to_zero(bert_members: Path) -> None:
    found = gram(MemberPool.open(bert_members), centre=True)
    np.testing.assert_allclose(found.sum(axis=1), 0.0, atol=1e-12 * np.trace(found))


def test_centring_keeps_small_differences_between_large_weights(raw_members: Raw) -> None:
    """Members a hair apart at the edge of float32: 1,000 and the next numbers above."""
    step = 2.0**-14  # the spacing of float32 just under 1,000
    values = [999.0, 999.0 + step, 999.0 + 3 * step]
    folder = raw_members([{"a": torch.full((5000,), v)} for v in values])
    found = gram(MemberPool.open(folder), centre=True)
    deviations = np.array(values) - np.mean(values)
    np.testing.assert_allclose(found, 5000 * np.outer(deviations, deviations), rtol=1e-9)


def test_integers_are_ignored_and_dtypes_are_added(raw_members: Raw) -> None:
    states = [
        {
            "count": torch.tensor([7 + i]),
            "half": torch.full((3,), 1.0 + i, dtype=torch.bfloat16),
            "single": torch.full((2, 2), 2.0 * i),
            "mask": torch.tensor([True]),
        }
        for i in range(3)
    ]
    found = gram(MemberPool.open(raw_members(states)))
    expected = [[3 * (1 + i) * (1 + j) + 4 * 4 * i * j for j in range(3)] for i in range(3)]
    np.testing.assert_array_equal(found, expected)


def test_a_nan_is_named(raw_members: Raw) -> None:
    states = [{"a": torch.tensor([1.0, float("nan") if i == 1 else 2.0])} for i in range(3)]
    folder = raw_members(states)
    with pytest.raises(MemberError, match="step-1"):
        gram(MemberPool.open(folder))
