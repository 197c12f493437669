"""The recipe's space of hyper-parameters, as the search and the first checks need it."""

from __future__ import annotations

from typing import Any

import optuna

from fusetune.errors import RecipeError
from fusetune.recipe import Recipe


def distributions(recipe: Recipe) -> dict[str, optuna.distributions.BaseDistribution]:
    """The search space as Optuna's distributions.

    Raises:
        RecipeError: If Optuna refuses one.
    """
    space: dict[str, optuna.distributions.BaseDistribution] = {}
    for name, item in recipe.search.space.items():
        low, high = item.low, item.high
        try:
            if item.choices is not None:
                space[name] = optuna.distributions.CategoricalDistribution(item.choices)
            elif isinstance(low, int) and isinstance(high, int):
                step = int(item.step) if item.step else 1
                space[name] = optuna.distributions.IntDistribution(low, high, item.log, step)
            else:
                assert low is not None
                assert high is not None
                space[name] = optuna.distributions.FloatDistribution(
                    float(low), float(high), item.log, item.step
                )
        except ValueError as error:
            raise RecipeError(f"search.space.{name}: {error}") from error
    return space


def corners(recipe: Recipe) -> list[dict[str, Any]]:
    """λ at both ends of the space, and at every choice and bound of one parameter.

    What Transformers refuses it refuses there. Where one parameter varies, the others are at
    their lower ends. Only the recipe's own arguments, λ empty, where nothing is searched.
    """
    space = recipe.search.space if recipe.search.trials else {}
    values = {n: r.choices if r.choices else [r.low, r.high] for n, r in space.items()}
    low = {name: min(tried, key=_size) for name, tried in values.items()}
    high = {name: max(tried, key=_size) for name, tried in values.items()}
    single = [{**low, name: value} for name, tried in values.items() for value in tried]
    found = [low, high, *single]
    return [params for i, params in enumerate(found) if params not in found[:i]]


def _size(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def sobol_trials(recipe: Recipe) -> int:
    """Trials before the model takes over; the same in every search of a comparison."""
    return max(3, -(-recipe.search.trials // 4))


def pruner(name: str) -> optuna.pruners.BasePruner:
    """The pruner of that name, as the recipe has it."""
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=0)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner()
    return optuna.pruners.NopPruner()
