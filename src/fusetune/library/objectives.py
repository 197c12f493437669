"""What a caller wants to optimise, and with what: words → objectives in the house's order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from fusetune.errors import EvaluateError, closest
from fusetune.methods import SAMPLERS
from fusetune.objective import LOSS, Direction, Objective

DIRECTIONS = ("minimize", "maximize")


def as_objectives(
    objectives: Sequence[str | Objective],
    direction: str | Sequence[str] | None = None,
    primary: str | None = None,
) -> tuple[Objective, ...]:
    """Objectives from names such as "f1:maximize"; the primary one second, as evaluators want.

    Args:
        objectives: Names with their directions, `Objective`s, or names alone. The name
            "loss" needs no direction.
        direction: Of names without one, in order, or one for all of them; called as in
            `Trainer.hyperparameter_search`.
        primary: Name of the objective that decides; by default the first that is not the loss.

    Raises:
        EvaluateError: If there is none, a direction is missing or unknown, a name occurs
            twice, or `primary` is not among them.
    """
    given = [objectives] if isinstance(objectives, str | Objective) else list(objectives)
    if not given:
        raise EvaluateError(
            "A fusion needs at least one objective.", 'Give ["loss", "f1:maximize"].'
        )
    directions = _directions(given, direction)
    found = [
        o if isinstance(o, Objective) else _objective(o, d)
        for o, d in zip(given, directions, strict=True)
    ]
    names = [o.name for o in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise EvaluateError(f"Each objective can be given once; {', '.join(twice)} is twice.")
    others = [name for name in names if name != LOSS.name]
    chosen = primary or (others[0] if others else names[0])
    if chosen not in names:
        raise EvaluateError(
            f"The primary objective {chosen!r} is not among the objectives {', '.join(names)}."
        )
    rest = sorted((o for o in found if o.name != chosen), key=lambda o: o.name != LOSS.name)
    first = next(o for o in found if o.name == chosen)
    return (*rest[:1], first, *rest[1:])


def _directions(
    given: Sequence[str | Objective], direction: str | Sequence[str] | None
) -> list[str | None]:
    if direction is None or isinstance(direction, str):
        return [direction] * len(given)
    if len(direction) != len(given):
        raise EvaluateError(
            f"direction needs one entry for each of the {len(given)} objectives; it has "
            f"{len(direction)}."
        )
    return list(direction)


def _objective(text: str, direction: str | None) -> Objective:
    name, _, own = text.partition(":")
    wanted = own or direction or (LOSS.direction if name == LOSS.name else None)
    if wanted not in DIRECTIONS or not name:
        said = f"got {wanted!r}" if wanted else "it has none"
        raise EvaluateError(
            f"The objective {text!r} needs a direction, minimize or maximize; {said}.",
            f'Write "{name or "f1"}:maximize" or "{name or "f1"}:minimize".',
        )
    return Objective(name, cast("Direction", wanted))


def as_budget(budget: int | None, k: int) -> int:
    """How many candidates k members get; 6 k by default.

    Raises:
        EvaluateError: If some member would get none.
    """
    if budget is None:
        return 6 * k
    if budget < k:
        raise EvaluateError(
            f"The budget must reach each of the {k} members; it is {budget}.",
            f"Give {2 * k} or more.",
        )
    return budget


def as_method(name: str) -> str:
    """A method that searches over w.

    Raises:
        EvaluateError: If there is none of that name.
    """
    if name not in SAMPLERS:
        raise EvaluateError(
            f"Unknown method {name!r}{closest(name, SAMPLERS)}.",
            f"Known: {', '.join(SAMPLERS)}.",
        )
    return name
