"""Starting points from elsewhere: trials of an Optuna study, weights of merge recipes.

They are read once and kept in the run folder, so that a resumed run has the same ones whatever
has become of their files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution

from fusetune.members.disk import write_json
from fusetune.members.mergekit import LinearMerge
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.optimization.studies import best_parameters
from fusetune.pipeline.context import Context
from fusetune.pipeline.space import distributions


def check(context: Context) -> None:
    """Find what is wrong with the files before any long work starts.

    Whether a merge recipe names the members can be known only when there are members.

    Raises:
        FusetuneError: If a file or study is not there, or does not fit.
    """
    recipe = context.recipe
    if context.folder.done("search") is None:
        hyperparameters(context, distributions(recipe))
    if context.folder.done("fuse") is None and _kept(context, "fuse") is None:
        for file in recipe.fuse.start:
            LinearMerge.read(file)


def hyperparameters(
    context: Context, space: Mapping[str, BaseDistribution]
) -> list[dict[str, Any]]:
    """The λ that the first trials of the search take; empty without `search.start`."""
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
    try:
        text = _file(context, stage).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    content: dict[str, Any] = json.loads(text)
    return content


def _keep(context: Context, stage: str, content: dict[str, Any]) -> dict[str, Any]:
    file = _file(context, stage)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, content)
    return content


def _file(context: Context, stage: str) -> Path:
    return context.folder.starts / f"{stage}.json"
