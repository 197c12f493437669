"""The Pareto front of a run as small recipes, and the choice of one of them later.

Each point is a file `front/point-01.yaml`: a recipe of mergekit with what was measured under
the key `fusetune`. It holds the weights alone, so that a front costs a few kilobytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from fusetune.errors import RunError
from fusetune.members import points as saved
from fusetune.members.disk import write_text
from fusetune.members.mergekit import LinearMerge, to_yaml
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods.method import FusionResult
from fusetune.methods.search import is_study_of_weights
from fusetune.objective import Objective, primary_index, to_maximise
from fusetune.optimization import pareto, selection
from fusetune.optimization.constraint import GRAMMAR, Constraint
from fusetune.pipeline.context import Context

HEADER = "# A point of the Pareto front: fusetune export RUN --pick FILE --out FOLDER\n"


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """An evaluated w that no other beats in every objective.

    Attributes:
        weights: w.
        values: On validation, by objective, natural sign.
        found_by: The study and trial, or the row, that evaluated it.
    """

    weights: FusionWeights
    values: Mapping[str, float]
    found_by: str


def write(
    context: Context, pool: MemberPool, results: Mapping[str, FusionResult]
) -> list[FrontPoint]:
    """Write the front of everything that was evaluated on validation, best metric first."""
    folder = context.folder.front
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    points = front(_evaluated(context, results), context.task.objectives)
    digits = max(2, len(str(len(points))))
    for number, point in enumerate(points, start=1):
        extra = {
            "validation": dict(point.values),
            "found_by": point.found_by,
            "members": pool.fingerprint,
        }
        text = HEADER + to_yaml(pool, point.weights, extra)
        write_text(folder / f"point-{number:0{digits}}.yaml", text)
    return points


def front(points: Sequence[FrontPoint], objectives: Sequence[Objective]) -> list[FrontPoint]:
    """Those that no other beats, the best in the primary objective first."""
    values = to_maximise([point.values for point in points], objectives)
    primary = primary_index(objectives)
    rows = sorted(pareto.front(values), key=lambda i: (-values[i, primary], *-values[i]))
    return [points[i] for i in rows]


def pick(
    folder: Path, wanted: str, objectives: Sequence[Objective], pool: MemberPool
) -> tuple[FusionWeights, str, dict[str, Any]]:
    """The weights of a point of the front, its name, and what is known of it.

    Args:
        folder: The run's `front/`.
        wanted: A file of a point or of mergekit; or bounds and a goal, as
            "loss <= 0.5, max f1".
        objectives: Of the run.
        pool: The members.

    Raises:
        RecipeError: If the file or the bounds make no sense.
        RunError: If there is no front, or nothing on it keeps the bounds; the nearest
            points are shown then.
    """
    if Path(wanted).is_file() or wanted.endswith((".yaml", ".yml")):
        chosen = LinearMerge.read(wanted)
    else:
        chosen = _constrained(folder, wanted, objectives)
    _require_same_members(chosen, pool)
    extra = {"validation": chosen.extra["validation"]} if "validation" in chosen.extra else {}
    return chosen.weights_of(pool.members), chosen.file.name, extra


def _constrained(folder: Path, text: str, objectives: Sequence[Objective]) -> LinearMerge:
    constraint = Constraint.parse(text, where="--pick", names=[o.name for o in objectives])
    constraint.check(objectives, where="--pick")
    points = [LinearMerge.read(file) for file in sorted(folder.glob("point-*.yaml"))]
    if not points:
        raise RunError(
            f"{folder} holds no points of a front.",
            "Run `fusetune fuse --force` on the run folder, which writes them.",
        )
    values = to_maximise([point.extra["validation"] for point in points], objectives)
    row = selection.constrained(values, objectives, constraint)
    if row is None:
        near = [points[i] for i in selection.nearest(values, objectives, constraint)]
        bounds = ", ".join(map(str, constraint.bounds))
        raise RunError(
            f"No point of the front keeps {bounds}. Nearest are:\n"
            + "\n".join(f"  {point.file}: {_shown(point)}" for point in near)
            + "\n",
            f"--pick takes {GRAMMAR}, or one of these files.",
        )
    return points[row]


def _shown(point: LinearMerge) -> str:
    return ", ".join(f"{name} {v:.4f}" for name, v in point.extra["validation"].items())


def _require_same_members(chosen: LinearMerge, pool: MemberPool) -> None:
    found = chosen.extra.get("members", pool.fingerprint)
    if found != pool.fingerprint:
        raise RunError(
            f"{chosen.file} was written for other members than those of this run.",
            "Give the run folder that it stands in.",
        )


def _evaluated(context: Context, results: Mapping[str, FusionResult]) -> list[FrontPoint]:
    """Every w of the run's studies, and what methods without a study chose.

    What has a w for each group of layers is no point here: a recipe of the front has one w.
    """
    names = [objective.name for objective in context.task.objectives]
    found: dict[FusionWeights, FrontPoint] = {}
    for study in filter(is_study_of_weights, context.loop().names()):
        for trial in context.trials(study):
            if trial.state != TrialState.COMPLETE:
                continue
            w = saved.from_json(trial.user_attrs)
            if isinstance(w, FusionWeights):
                values = dict(zip(names, trial.values, strict=True))
                found.setdefault(w, FrontPoint(w, values, f"{study}, trial {trial.number}"))
    for row, result in results.items():
        if isinstance(result.point, FusionWeights):
            values = {name: float(result.values[name]) for name in names}
            found.setdefault(result.point, FrontPoint(result.point, values, row))
    return list(found.values())
