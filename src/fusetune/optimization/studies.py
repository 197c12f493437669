"""Studies of elsewhere: the best trials of one, to begin with."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import optuna
from optuna import Study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from fusetune.errors import RunError, closest
from fusetune.optimization.storage import open_existing, quiet, storing


def best_parameters(
    location: str | PathLike[str],
    name: str | None,
    space: Mapping[str, BaseDistribution],
    count: int,
) -> tuple[list[dict[str, Any]], int]:
    """Parameters of the best trials of a study, as far as they lie in a search space.

    Best by the study's own objective and direction; of several objectives, the trials on its
    Pareto front in their order. What else the study varied is left out.

    Args:
        location: A storage by URL, or the file of a journal.
        name: Of the study; None where it is the only one.
        space: Parameter name → distribution, as it will be searched.
        count: How many at most, all different.

    Returns:
        The parameters, best first, and how many better trials lie outside of the space.

    Raises:
        RunError: If there is no such study, it does not know all parameters of the space,
            or no complete trial lies in it.
    """
    wanted = {n: d for n, d in space.items() if not d.single()}
    with storing(), quiet():
        study = _find(open_existing(location), name)
        trials = _best_first(study)
    known = {parameter for trial in trials for parameter in trial.params}
    if trials and (missing := [n for n in wanted if n not in known]):
        raise RunError(
            f"Study {study.study_name!r} did not vary {', '.join(missing)}; it varied "
            f"{', '.join(sorted(known))}.",
            "Every name of search.space has to be among its parameters.",
        )
    found: list[dict[str, Any]] = []
    outside = 0
    for trial in trials:
        params = inside(trial.params, wanted)
        outside += params is None and len(found) < count
        if params is not None and params not in found:
            found.append(params)
    if not found:
        raise RunError(
            f"Study {study.study_name!r} has {len(trials)} complete trials, none of them with "
            "parameters inside search.space.",
            "Widen search.space, or leave search.start out.",
        )
    return found[:count], outside


def _find(storage: BaseStorage, name: str | None) -> Study:
    names = optuna.get_all_study_names(storage)
    if name is None and len(names) == 1:
        (name,) = names
    if name not in names:
        listed = ", ".join(sorted(names)) or "none"
        raise RunError(
            f"The storage has no study {name!r}{closest(name, names)}."
            if name is not None
            else f"The storage has {len(names)} studies; name one.",
            f"There: {listed}.",
        )
    return optuna.load_study(study_name=name, storage=storage)


def _best_first(study: Study) -> list[FrozenTrial]:
    if len(study.directions) > 1:
        return study.best_trials
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
    return sorted(trials, key=lambda t: (sign * float(t.value or 0.0), t.number))


def inside(
    given: Mapping[str, Any], space: Mapping[str, BaseDistribution]
) -> dict[str, Any] | None:
    """The values that a search space needs; None if one is missing or outside.

    Args:
        given: Parameter name → value; others than those of the space are left out.
        space: Parameter name → distribution.
    """
    params = {}
    for name, distribution in space.items():
        if name not in given:
            return None
        value = given[name]
        try:
            if isinstance(distribution, FloatDistribution):
                value = float(value)
            elif isinstance(distribution, IntDistribution):
                if int(value) != value:
                    return None
                value = int(value)
            elif isinstance(distribution, CategoricalDistribution):
                value = distribution.choices[distribution.choices.index(value)]
            if not distribution._contains(distribution.to_internal_repr(value)):
                return None
        except (TypeError, ValueError):
            return None
        params[name] = value
    return params
