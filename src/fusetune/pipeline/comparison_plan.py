"""Which runs a comparison needs: rows → runs, each of which is made once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fusetune.errors import RecipeError, closest
from fusetune.methods import available as methods
from fusetune.pipeline import procedures
from fusetune.pipeline.procedures.procedure import FIXED, Candidate, fixed
from fusetune.recipe import PROCEDURES, Recipe
from fusetune.recipe_file import derive
from fusetune.report.content import REFERENCES
from fusetune.run import NEUTRAL

ALL = "all"

TABLE = (
    "finetune",
    "grid",
    "hpbo",
    "swa",
    "swa_cyclic",
    "ema",
    "greedy",
    "learned",
    "twa",
    "otfusion",
    "fisher",
    "model_stock",
    "bo",
    "mobo",
    "layers",
    "bilevel",
    "bomf",
    "oracle",
)
"""The rows of `all`, in the papers' order; those that the papers lack stand by their kind."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The runs of one seed.

    Attributes:
        runs: Name of the run, and of its folder → its recipe.
        rows: Row of the comparison → (name of a run, row of its results) for each candidate.
    """

    runs: dict[str, Recipe]
    rows: dict[str, tuple[tuple[str, str], ...]]


def wanted_rows(
    recipe: Recipe, names: Sequence[str] | None, warn: Callable[[str], None]
) -> list[str]:
    """The rows of a comparison, in order, each once.

    Args:
        recipe: Its own methods are the rows if no names are given.
        names: Methods and procedures; "all" stands for `TABLE`.
        warn: Called with a line for each row of `TABLE` that this recipe cannot have.

    Raises:
        RecipeError: If a name is not known.
    """
    known = [*methods(), *procedures.available()]
    found: list[str] = []
    for name in recipe.fuse.methods if names is None else names:
        if name == ALL:
            found += [row for row in TABLE if row in known and _possible(recipe, row, warn)]
        elif name in known:
            found.append(name)
        else:
            raise RecipeError(
                f"Unknown method {name!r}{closest(name, known)}.",
                f"Known are {', '.join(methods())}; with trainings of their own "
                f"{', '.join(PROCEDURES)} and bilevel:METHOD; and {ALL}.",
            )
    if not found:
        raise RecipeError("A comparison needs at least one method.")
    return list(dict.fromkeys(_displayed(recipe, name) for name in found))


def make_plan(recipe: Recipe, rows: Sequence[str], seed: int) -> Plan:
    """The runs that the rows need with one seed.

    Runs that would train the same become one, with the methods of both; it has the name
    under which it was first needed.

    Raises:
        RecipeError: If the recipe lacks what a row needs.
    """
    base = derive(recipe, {"seed": seed})
    runs: dict[str, Recipe] = {}
    names: dict[str, str] = {}  # what a run trains → its name
    assigned: dict[str, tuple[tuple[str, str], ...]] = {}
    for row in rows:
        places = []
        for candidate in _candidates(base, row):
            name = names.setdefault(_training(candidate.recipe), candidate.run)
            runs[name] = _joined(runs.get(name), candidate.recipe)
            places.append((name, candidate.row))
        assigned[row] = tuple(places)
    return Plan(runs, assigned)


def _candidates(recipe: Recipe, row: str) -> Sequence[Candidate]:
    if row in methods():
        return [Candidate(FIXED, fixed(recipe, row), row)]
    return procedures.find(row)(recipe)


def _possible(recipe: Recipe, row: str, warn: Callable[[str], None]) -> bool:
    try:
        _candidates(recipe, row)
    except RecipeError as error:
        warn(f"{row} is left out. {error}")
        return False
    return True


def _displayed(recipe: Recipe, name: str) -> str:
    """The recipe's sampler takes the place of `mobo`, as in a run."""
    return recipe.fuse.sampler if name == "mobo" else name


def _training(recipe: Recipe) -> str:
    """What decides the members of a run, as text."""
    data: dict[str, Any] = recipe.dump()
    data["fuse"].pop("methods")
    return json.dumps({k: v for k, v in data.items() if k not in NEUTRAL}, sort_keys=True)


def _joined(first: Recipe | None, second: Recipe) -> Recipe:
    if first is None:
        return second
    names = list(dict.fromkeys([*first.fuse.methods, *second.fuse.methods]))
    ordered = [n for n in names if n not in REFERENCES] + [n for n in names if n in REFERENCES]
    return derive(first, {"fuse.methods": ordered})
