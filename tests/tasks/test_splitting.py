from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from fusetune.errors import DataError
from fusetune.tasks.data import read
from fusetune.tasks.splitting import Splitting, rows_before, shared_texts


def rows(**sizes: int) -> dict[str, datasets.Dataset]:
    return {
        name: datasets.Dataset.from_dict({"id": [f"{name}-{i}" for i in range(n)]})
        for name, n in sizes.items()
    }


def ids(part: object) -> list[str]:
    return part.rows["id"][:]  # type: ignore[attr-defined]


def test_without_arguments_splits_stay() -> None:
    parts = Splitting().apply(rows(train=3, validation=2, test=2))
    assert {name: len(part.rows) for name, part in parts.items()} == {
        "train": 3,
        "validation": 2,
        "test": 2,
    }
    assert parts["test"].where(1) == "row 1 of test (counted from 0)"


def test_halving_sets_the_official_test_aside() -> None:
    parts = Splitting(halve="validation", seed=41).apply(rows(train=3, validation=7, test=9))
    assert [len(parts[name].rows) for name in ("train", "validation", "test")] == [3, 3, 4]
    both = ids(parts["validation"]) + ids(parts["test"])
    assert sorted(both) == sorted(f"validation-{i}" for i in range(7))
    assert both != sorted(both)  # shuffled
    assert [f"validation-{i}" for i in parts["test"].index] == ids(parts["test"])
    assert parts["test"].source == "validation"


def test_the_seed_alone_decides() -> None:
    data = rows(train=40, validation=40)
    first, again, other = (
        ids(Splitting(halve="validation", seed=seed).apply(data)["test"]) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_holding_out_makes_validation_the_test() -> None:
    parts = Splitting(hold_out=4).apply(rows(train=10, validation=5, test=6))
    assert ids(parts["test"]) == [f"validation-{i}" for i in range(5)]
    assert sorted(ids(parts["train"]) + ids(parts["validation"])) == sorted(
        f"train-{i}" for i in range(10)
    )
    assert len(ids(parts["validation"])) == 4
    assert list(parts["train"].index) == sorted(parts["train"].index)


def test_holding_out_without_a_validation_split_keeps_the_test() -> None:
    parts = Splitting(hold_out=1).apply(rows(train=3, test=2))
    assert ids(parts["test"]) == ["test-0", "test-1"]


def test_impossible_splittings() -> None:
    with pytest.raises(DataError, match="got halve: validation and hold_out: 3"):
        Splitting(halve="validation", hold_out=3)
    with pytest.raises(DataError, match="Only validation or test can be halved; got 'train'"):
        Splitting(halve="train")
    with pytest.raises(DataError, match="at least 1; got 0"):
        Splitting(hold_out=0)


@pytest.mark.parametrize(
    ("splitting", "sizes", "message"),
    [
        (Splitting(), {"train": 3, "validation": 2}, "no test split.*halve: validation"),
        (Splitting(), {"train": 3, "test": 2}, "no validation split.*halve: test"),
        (Splitting(hold_out=1), {"train": 3}, "no test split"),
        (Splitting(hold_out=3), {"train": 3, "validation": 1}, "got 3, and train has 3 rows"),
        (Splitting(halve="validation"), {"train": 3}, "no validation split to halve"),
        (Splitting(halve="test"), {"train": 3, "test": 1}, "at least 2 rows; it has 1"),
    ],
)
def test_requests_that_the_rows_cannot_fill(
    splitting: Splitting, sizes: dict[str, int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        splitting.apply(rows(**sizes))


def test_cola_is_halved_as_in_the_papers(shared: Path) -> None:
    parts = Splitting(halve="validation", seed=41).apply(read(str(shared / "data/cola")))
    assert [len(parts[name].rows) for name in ("train", "validation", "test")] == [
        8551,
        521,
        522,
    ]


def test_shared_texts_are_counted() -> None:
    a, b, c = ("a", "x"), ("b", "x"), ("a", "y")
    notes = shared_texts({"train": [a, a, b], "validation": [a, c, a], "test": [c]})
    assert notes == (
        "2 of 3 validation texts also stand in train.",
        "1 of 1 test texts also stand in validation.",
    )
    assert shared_texts({"train": [a], "validation": [b], "test": [c]}) == ()


def test_without_training_the_train_split_may_be_absent() -> None:
    parts = Splitting(halve="validation", trains=False).apply(rows(validation=5))
    assert {name: len(part.rows) for name, part in parts.items()} == {
        "validation": 2,
        "test": 3,
    }
    assert rows_before({name: part.rows for name, part in parts.items()}, "test") == 2
    assert list(Splitting(trains=False).apply(rows(train=1, validation=1, test=1))) == [
        "train",
        "validation",
        "test",
    ]
    with pytest.raises(DataError, match="There is no train split"):
        Splitting().apply(rows(validation=5, test=5))
    with pytest.raises(DataError, match="no train split to hold out 2 rows from"):
        Splitting(hold_out=2, trains=False).apply(rows(validation=5))
    assert shared_texts({"validation": [("a",), ("b",)], "test": [("b",)]}) == (
        "1 of 1 test texts also stand in validation.",
    )
