"""The training runs that the members come from: which λ and which seed each has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial
from transformers import PreTrainedModel

from fusetune.errors import StageError
from fusetune.objective import Objective
from fusetune.pipeline.best_trial import best_trials
from fusetune.recipe import Recipe
from fusetune.training.trajectory import parameters_sha256


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One training run that is to be done.

    Attributes:
        number: From 1; None where it is the only one.
        params: λ.
        seed: Of data order and dropout; the head has the recipe's.
        trial: The trial of the search whose λ and seed these are, if there is one.
    """

    number: int | None
    params: Mapping[str, Any]
    seed: int
    trial: int | None

    @property
    def folder(self) -> str:
        """Name of the folder for its unfinished training."""
        return "train" if self.number is None else f"train-{self.number}"


class FirstModel:
    """Builds models as `make` does, and remembers what the last one was before training.

    Args:
        make: Builds a model.
        recipe: Says whether there are trajectories to be compared.

    Attributes:
        digest: Of the parameters; None before the first call, and where there is only one
            trajectory.
    """

    def __init__(self, make: Callable[[], PreTrainedModel], recipe: Recipe) -> None:
        self.make = make
        self.digest: str | None = None
        self._several = recipe.train.trajectories.count > 1

    def __call__(self) -> PreTrainedModel:
        """Build a model."""
        model = self.make()
        if self._several:
            self.digest = parameters_sha256(model)
        return model


def plan(
    recipe: Recipe, found: Mapping[str, Any], trials: Sequence[FrozenTrial], primary: Objective
) -> list[Trajectory]:
    """The trajectories of a recipe, the one with the best λ first.

    Args:
        recipe: Says how many, and in what they differ.
        found: The record of the search.
        trials: All trials of the search.
        primary: What the search improved.

    Raises:
        StageError: If fewer different λ were trained to the end than are to be taken.
    """
    count, params = recipe.train.trajectories.count, found["params"]
    if count == 1:
        return [Trajectory(None, params, recipe.seed, found["trial"])]
    if recipe.train.trajectories.source == "seeds":
        return [
            Trajectory(i + 1, params, _seed(recipe.seed, i), None if i else found["trial"])
            for i in range(count)
        ]
    best = best_trials(trials, primary, count)
    if len(best) < count:
        raise StageError(
            f"train.trajectories takes the best {count} trials of the search, but only "
            f"{len(best)} different ones were trained to their end.",
            "Lower train.trajectories.count, or set search.pruner: none.",
        )
    return [Trajectory(i, t.params, recipe.seed, t.number) for i, t in enumerate(best, 1)]


def require_same_start(starts: Sequence[str | None]) -> None:
    """Check that all trajectories begin with the same parameters, the new head included.

    Members that grew from different heads lie in different valleys: their averages would be
    poor for a reason that has nothing to do with the weights.

    Raises:
        StageError: If one begins elsewhere.
    """
    different = [i for i, start in enumerate(starts, 1) if start != starts[0]]
    if different:
        raise StageError(
            f"Trajectory {different[0]} starts from another model than trajectory 1: their "
            "members cannot be averaged.",
            "If the pretrained model or a library was changed in between, start with --force.",
        )


def _seed(seed: int, index: int) -> int:
    """The recipe's for the first; of the others, none that a neighbouring seed has too."""
    if index == 0:
        return seed
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0] >> 1)
