"""What the sections of a recipe need of each other, and of what their names stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fusetune.errors import closest
from fusetune.recipe_sections import Variant, number_problems

if TYPE_CHECKING:
    from fusetune.recipe import Recipe

GUESSED = 20  # unknown names for which a known one is looked up; that takes a while


def problems(recipe: Recipe) -> list[str]:
    """Everything that does not go together, a line each with its key first."""
    return [
        *_free_form_problems(recipe),
        *_unknown_arguments("train.arguments", recipe.train.arguments),
        *_unknown_arguments("search.space", recipe.search.space),
        *_argument_problems(recipe),
        *_objective_problems(recipe.search.objective),
        *_trajectory_problems(recipe),
        *_spread_problems(recipe),
        *_checkpoint_problems(recipe),
        *_lora_problems(recipe),
        *_base_problems(recipe),
        *_study_problems(recipe),
    ]


def _base_problems(recipe: Recipe) -> list[str]:
    """Whether the budget is enough for the members, and the base among them."""
    base, found = int(recipe.fuse.base_member), []
    if recipe.fuse.evaluations < recipe.train.members + base:
        found.append(
            f"fuse.evaluations: {recipe.fuse.evaluations} is less than train.members: "
            f"{recipe.train.members}{' and the base' * base}; every member is evaluated once"
        )
    if base and recipe.fuse.adapters == "factors":
        found.append("fuse.base_member: it has no factors to average; leave out fuse.adapters")
    return found


def _study_problems(recipe: Recipe) -> list[str]:
    if recipe.study is None or recipe.storage is not None:
        return []
    return ["study: a search is shared in a database; give its URL as storage"]


def _lora_problems(recipe: Recipe) -> list[str]:
    """What of a recipe does not go together with model.lora, or without it."""
    model, fuse, variant = recipe.model, recipe.fuse, recipe.search.variant
    lora, light = model.lora, variant if isinstance(variant, Variant) else None
    low = light is not None and light.lora_rank is not None
    problems = []
    if lora is None:
        if low:
            problems.append("search.variant.lora_rank: of model.lora, which is not set")
        if model.quantization != "none":
            problems.append(
                "model.quantization: its weights cannot be trained, only adapters on them; "
                "set model.lora"
            )
        if fuse.export != "merged" or fuse.adapters != "exact":
            problems.append("fuse.export, fuse.adapters: for adapters; model.lora is not set")
        return problems
    if fuse.averaging != "auto" and (fuse.export != "merged" or fuse.adapters != "exact"):
        problems.append(
            f"fuse.averaging: {fuse.averaging} is of merged weights; fuse.export and "
            "fuse.adapters need auto"
        )
    if lora.dora and (fuse.adapters == "factors" or ":" in fuse.export):
        problems.append(
            "model.lora.dora: averages of DoRA are exact, and not cut to a rank; leave "
            "fuse.adapters at exact and fuse.export at merged or adapter"
        )
    if light is not None and not low:
        problems.append(
            "search.variant.freeze_layers: with model.lora all layers are frozen; "
            "give lora_rank"
        )
    elif light is not None and light.rank_of(lora.rank) >= lora.rank:
        problems.append(
            f"search.variant.lora_rank: {light.rank_of(lora.rank)} is not below "
            f"model.lora.rank: {lora.rank}"
        )
    return problems + quantisation_problems(model.quantization, recipe)


def quantisation_problems(quantised: str, recipe: Recipe) -> list[str]:
    """What of a recipe needs weights that can be written into, and a quantised base has not.

    Args:
        quantised: "4bit" or "8bit"; "none" of a plain base, which has no such problems.
        recipe: Of the run.
    """
    if quantised == "none":
        return []
    fuse, problems = recipe.fuse, []
    if "fisher" in (*fuse.rows, recipe.search.objective.removeprefix("fused:")):
        problems.append(
            "fuse.methods, search.objective: fisher follows gradients of the base's own "
            "weights, which are quantised; leave it out"
        )
    if fuse.averaging != "auto":
        problems.append(
            f"fuse.averaging: {fuse.averaging} writes averages into the base's weights; "
            "adapters are averaged beside them with auto"
        )
    return problems


def _objective_problems(objective: str) -> list[str]:
    from fusetune.methods import available
    from fusetune.report.content import REFERENCES

    inner = (method for method in available() if method not in REFERENCES)
    known = ["best_member", "fused", *(f"fused:{method}" for method in inner)]
    if objective in known:
        return []
    return [f"search.objective: unknown {objective!r}{closest(objective, known)}"]


def _spread_problems(recipe: Recipe) -> list[str]:
    """What does not go together with layers on several devices."""
    if recipe.model.device_map is None:
        return []
    fuse = recipe.fuse
    wrong = {
        "fuse.averaging": fuse.averaging not in ("auto", "streaming"),
        "fuse.candidates_per_pass": fuse.candidates_per_pass not in ("auto", 1),
        "model.quantization": recipe.model.quantization != "none",
    }
    return [
        f"model.device_map: {name} is for a model on one device; leave it out"
        for name, given in wrong.items()
        if given
    ]


def _trajectory_problems(recipe: Recipe) -> list[str]:
    train, problems = recipe.train, []
    count = train.trajectories.count
    if count > 1 and train.trajectories.source == "trials" and recipe.search.trials < count:
        problems.append(
            f"train.trajectories: the best {count} trials of a search that has "
            f"{recipe.search.trials}; raise search.trials, or take source: seeds"
        )
    if count > 1 and "ema" in recipe.fuse.methods:
        problems.append(
            f"fuse.methods: ema weighs the members along one trajectory; there are {count}"
        )
    if train.members_each < 2 and recipe.search.objective.startswith("fused"):
        problems.append(
            "train.members: search.objective fuses the members of each trial, at least 2; "
            f"there is {train.members_each} per trajectory"
        )
    return problems


def _checkpoint_problems(recipe: Recipe) -> list[str]:
    """What of a recipe does not go together with members that exist already."""
    if recipe.train.checkpoints is None:
        return []
    wrong = {
        "search.trials": recipe.search.trials > 0,
        "search.variant": recipe.search.variant != "full",
        "train.arguments": bool(recipe.train.arguments.keys() - {"report_to", "run_name"}),
        "train.trajectories": recipe.train.trajectories.count > 1,
    }
    problems = [
        f"train.checkpoints: nothing is trained, so that {key} has no meaning"
        + ("; set it to 0" if key == "search.trials" else "; leave it out")
        for key, found in wrong.items()
        if found
    ]
    if "model_stock" in recipe.fuse.rows:
        problems.append(
            "fuse.methods: model_stock needs the model that the training began with, head "
            "included, which train.checkpoints do not tell"
        )
    return problems


def _free_form_problems(recipe: Recipe) -> list[str]:
    return [
        *number_problems("train.arguments", recipe.train.arguments),
        *number_problems("task.options", recipe.task.options),
        *number_problems("executor", recipe.executor.model_extra or {}),
    ]


def _argument_problems(recipe: Recipe) -> list[str]:
    """Values that their fields of TrainingArguments do not take, and what lies between them."""
    values = [(f"train.arguments.{n}", n, v) for n, v in recipe.train.arguments.items()]
    values += [
        (f"compare.learning_rates.{i}", "learning_rate", rate)
        for i, rate in enumerate(recipe.compare.learning_rates)
    ]
    ranges = []
    for name, space in recipe.search.space.items():
        path = f"search.space.{name}"
        if space.choices is not None:
            values += [(path, name, value) for value in space.choices]
        else:
            values += [(f"{path}.low", name, space.low), (f"{path}.high", name, space.high)]
            ranges.append((path, name, space))
    if not (recipe.train.arguments or recipe.search.space or recipe.compare.model_fields_set):
        return []  # looking at the fields takes seconds
    from fusetune.training.fields import range_problem, type_problem

    problems = [(path, type_problem(name, value)) for path, name, value in values]
    if not any(problem for _, problem in problems):
        problems = [(p, range_problem(n, r.low, r.high, r.step)) for p, n, r in ranges]
    return list(dict.fromkeys(f"{path}: {problem}" for path, problem in problems if problem))


def _unknown_arguments(path: str, names: Iterable[str]) -> list[str]:
    """Names that are no field of TrainingArguments."""
    names = list(names)
    if not names:
        return []
    from transformers import TrainingArguments

    from fusetune.training.fields import ALIASES, OWN

    known = [f.name for f in dataclasses.fields(TrainingArguments)] + list(ALIASES)
    unknown = [name for name in names if name not in known]
    problems = [
        f"{path}.{name}: no field of TrainingArguments{closest(name, known)}"
        for name in unknown[:GUESSED]
    ]
    problems += [f"{path}.{name}: no field of TrainingArguments" for name in unknown[GUESSED:]]
    return problems + [f"{path}.{n}: set by {OWN[n]}" for n in names if n in OWN]
