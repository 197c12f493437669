"""Starting points: the recipe's own λ, trials of an Optuna study, weights of merge recipes.

Those from elsewhere are read once and kept in the run folder, so that a resumed run has the
same ones whatever has become of their files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution

from fusetune.files.record import Shape, read_record, shaped
from fusetune.members.disk import write_json
from fusetune.members.mergekit import LinearMerge
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.optimization.studies import best_parameters, inside
from fusetune.pipeline.context import Context
from fusetune.pipeline.space import distributions
from fusetune.recipe import Recipe
from fusetune.training.arguments import complete
from fusetune.training.fields import ALIASES


class _Parameters(Shape):
    """starts/search.json."""

    params: list[dict[str, Any]]


class _Weights(Shape):
    """starts/fuse.json."""

    weights: list[list[float]]


_SHAPES: Mapping[str, type[Shape]] = {"search": _Parameters, "fuse": _Weights}


def check(context: Context) -> None:
    """Find what is wrong with the files before any long work starts.

    Whether a merge recipe names the members can be known only when there are members.

    Raises:
        FusetuneError: If a file or study is not there, or does not fit.
    """
    recipe = context.recipe
    if context.folder.done("search") is None:
        _of_study(context, distributions(recipe))
    if context.folder.done("fuse") is None and _kept(context, "fuse") is None:
        for file in recipe.fuse.start:
            LinearMerge.read(file)


def hyperparameters(
    context: Context, space: Mapping[str, BaseDistribution]
) -> list[dict[str, Any]]:
    """The λ of the first trials: those of `search.start`, then the recipe's own."""
    found, usual = _of_study(context, space), own(context.recipe, space)
    return found if usual is None or usual in found else [*found, usual]


def own(recipe: Recipe, space: Mapping[str, BaseDistribution]) -> dict[str, Any] | None:
    """The λ that the recipe trains with where it searches none.

    What the search finds is to be compared with it: trials find it by chance at most. What
    `train.arguments` does not name has the default of Transformers.

    Args:
        recipe: Its `train.arguments`.
        space: Parameter name → distribution.

    Returns:
        None where the recipe names no parameter of the space, or one lies outside of it.
    """
    today = {name: ALIASES.get(name, name) for name in space}
    named = {ALIASES.get(name, name) for name in recipe.train.arguments}
    if named.isdisjoint(today.values()):
        return None
    known = complete(recipe.train.arguments)
    return inside({n: known[new] for n, new in today.items() if new in known}, space)


def _of_study(context: Context, space: Mapping[str, BaseDistribution]) -> list[dict[str, Any]]:
    start = context.recipe.search.start
    if start is None:
        return []
    kept = _kept(context, "search")
    if kept is None:
        found, outside = best_parameters(start.storage, start.study, space, start.trials)
        if outside:
            context.note(
                f"search.start: {outside} better trials of the study lie outside of "
                "search.space and were left out."
            )
        kept = _keep(context, "search", {"params": found})
    params: list[dict[str, Any]] = kept["params"]
    return params


def options(context: Context, pool: MemberPool, method: str) -> dict[str, Any]:
    """The argument `starts` of the methods that take one; nothing without `fuse.start`."""
    files = context.recipe.fuse.start
    if not files or method not in ("mobo", "bo"):
        return {}
    kept = _kept(context, "fuse")
    if kept is None:
        found = [LinearMerge.read(file).weights_of(pool.members) for file in files]
        kept = _keep(context, "fuse", {"weights": [list(w.values) for w in found]})
    return {"starts": [FusionWeights(tuple(values)) for values in kept["weights"]]}


def _kept(context: Context, stage: str) -> dict[str, Any] | None:
    return read_record(_file(context, stage), shaped(_SHAPES[stage]))


def _keep(context: Context, stage: str, content: dict[str, Any]) -> dict[str, Any]:
    file = _file(context, stage)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, content)
    return content


def _file(context: Context, stage: str) -> Path:
    return context.folder.starts / f"{stage}.json"
