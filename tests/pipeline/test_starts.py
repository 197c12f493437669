"""Which λ the first trials of a search take."""

from __future__ import annotations

from typing import Any

import pytest

from fusetune.pipeline.space import distributions
from fusetune.pipeline.starts import own
from fusetune.recipe_file import find, load
from fusetune.training.arguments import build


def first(*changes: str) -> dict[str, Any] | None:
    recipe = load(find("cola-minilm"), changes)
    return own(recipe, distributions(recipe))


def test_the_first_trial_has_what_would_be_trained_without_a_search() -> None:
    assert first() == {
        "learning_rate": 5e-5,
        "weight_decay": 0.0,  # the default of Transformers; the recipe names none
        "per_device_train_batch_size": 16,
    }
    assert first("train.arguments.weight_decay=0.01") == {
        "learning_rate": 5e-5,
        "weight_decay": 0.01,
        "per_device_train_batch_size": 16,
    }


def test_older_names_mean_the_same() -> None:
    space = "search.space={warmup_ratio: {low: 0.0, high: 0.5}}"
    assert first(space) == {"warmup_ratio": 0.2}
    assert first(space, "train.arguments={warmup_steps: 0.1}") == {"warmup_ratio": 0.1}
    assert first("search.space={warmup_steps: {low: 0.0, high: 0.5}}") == {"warmup_steps": 0.2}


def test_defaults_are_those_of_a_training(tmp_path: Any) -> None:
    space = (
        "search.space={optim: {choices: [sgd, adamw_torch_fused]}, adam_beta2: {low: 0.9, "
        "high: 1.0}, learning_rate: {low: 1.0e-5, high: 1.0e-3}}"
    )
    found = first(space)
    assert found is not None
    made = build(tmp_path, load(find("cola-minilm")).train.arguments, epochs=1.0, seed=1)
    assert {name: getattr(made, name) for name in found} == found
    assert found["optim"] == "adamw_torch_fused"


@pytest.mark.parametrize(
    "change",
    [
        "train.arguments.learning_rate=1.0",  # outside
        "train.arguments.per_device_train_batch_size=8",  # no choice
        "train.arguments={max_grad_norm: 1.0}",  # names nothing that is searched
        "search.space={learning_rate: {low: 1.0e-6, high: 1.0}, eval_steps: {low: 1, high: 9}}",
    ],
)
def test_a_recipe_that_does_not_say_has_no_trial_of_its_own(change: str) -> None:
    assert first(change) is None
