"""What a run of a protocol costs, so that it can be planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.protocols.settings import LIGHT, TASKS
from fusetune.recipe import Recipe

# Seconds of one processor core, MiniLM in float32: a step of 16 rows, and evaluating a row.
STEP, STEP_TOKEN, ROW_TOKEN = 0.15, 0.85 / 1024, 1.0 / 5300


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one processor core that a task and seed need."""

    training: float
    validation: float
    test: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.training + self.validation + self.test


def cost(recipe: Recipe, task: str, protocol: str, methods: Sequence[str]) -> Cost:
    """An estimate; what other work on the machine adds is not in it."""
    setting = TASKS[task]
    train, dev, test = setting.rows
    validation, tested = (dev // 2, dev // 2) if protocol == "a" else (dev, test)
    if protocol == "a" and task == "sst2":
        validation, tested = 1000, dev
    if protocol == "b" and setting.held_out:
        validation, tested = setting.held_out, dev
    batch = int(recipe.train.arguments["per_device_train_batch_size"])
    epoch = train / batch * (STEP + STEP_TOKEN * batch * setting.tokens)
    training = epoch * recipe.train.epochs * recipe.train.trajectories.count
    trial_epochs = recipe.search.epochs or recipe.train.epochs
    light = LIGHT * epoch * trial_epochs * recipe.search.trials
    k, budget = recipe.train.members, recipe.fuse.evaluations
    grid = training * (len(recipe.compare.learning_rates) - 1)
    trained = {
        "grid": grid,
        "hpbo": training * (recipe.search.trials + 1),
        "bilevel": training * (recipe.search.trials + 1),
        "bomf": light + training,
        "swa_cyclic": training,
    }
    evaluated = {
        "bo": budget - k,
        "mobo": budget - k,
        "learned": budget,
        "ema": 10,
        "greedy": k,
    }
    names = [name.partition(":")[0] for name in methods]
    searches = [n for n in names if n in ("bilevel", "bomf")]
    fixed = [n for n in names if n not in trained]
    seen = (
        sum(evaluated.get(n, 1) for n in fixed) + (k if fixed else 0) + budget * len(searches)
    )
    read = len(names) + (_reference(recipe) if "oracle" in names else 0)
    second = ROW_TOKEN * setting.tokens
    return Cost(
        (training if fixed else 0.0) + sum(trained.get(n, 0.0) for n in names),
        seen * validation * second,
        read * tested * second,
    )


def _reference(recipe: Recipe) -> int:
    return recipe.fuse.oracle_evaluations or recipe.fuse.evaluations
