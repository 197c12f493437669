"""Whether two measurements of the same λ give the same order, and in plain words.

Two findings of the papers: the order of λ is the same for light variants and the full model,
and a better best member means a better fused model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fusetune.evaluation.ranks import RankCorrelation, rank_correlation
from fusetune.objective import Objective
from fusetune.report.wording import metric_label, number

LEAST = 0.3
"""A light variant misleads if Spearman's ρ between light and full values is below this …"""

ENOUGH = 4
"""… over at least so many λ; fewer say too little."""

CLOSE = 0.6
"""From this ρ on the order is called the same; below it, roughly the same."""


@dataclass(frozen=True, slots=True)
class Trained:
    """One λ, trained in the light and in the full variant.

    Attributes:
        number: Of the λ, from 0.
        params: Hyper-parameter name → value.
        light: Best validation metric while the light variant trained; None if it failed.
        light_loss: The loss there; a search tells equal metrics apart by it.
        full: The same of the full model.
        best_member: Best validation metric of the full model's members.
        fused: That of their fusion.
        reason: Why a training failed; empty if none did.
    """

    number: int
    params: Mapping[str, Any]
    light: float | None = None
    light_loss: float | None = None
    full: float | None = None
    best_member: float | None = None
    fused: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two measurements of the same λ go together.

    Attributes:
        correlation: Of their orders.
        pairs: (number of the λ, first, second) of each λ that has both.
        picked: Number of the λ with the best first value, as a search would take it;
            None without pairs.
        rank: Its rank, from 1, by the second value.
        lost: The best second value minus that of `picked`, turned so that more is worse.
    """

    correlation: RankCorrelation
    pairs: tuple[tuple[int, float, float], ...]
    picked: int | None
    rank: int | None
    lost: float | None


def agreement(
    rows: Sequence[Trained], first: str, second: str, objective: Objective
) -> Agreement:
    """Compare two attributes of the rows; those without both are left out.

    Args:
        rows: One per λ.
        first: Name of an attribute: "light", "full", "best_member" or "fused".
        second: Another one.
        objective: Which direction is better.
    """
    pairs, losses = [], {}
    for row in rows:
        a, b = getattr(row, first), getattr(row, second)
        if a is not None and b is not None:
            pairs.append((row.number, float(a), float(b)))
            losses[row.number] = (row.light_loss or 0.0) if first == "light" else 0.0
    correlation = rank_correlation([a for _, a, _ in pairs], [b for _, _, b in pairs])
    if not pairs:
        return Agreement(correlation, (), None, None, None)
    picked, _, reached = max(
        pairs, key=lambda pair: (objective.sign * pair[1], -losses[pair[0]])
    )
    seconds = [b for _, _, b in pairs]
    best = max(seconds, key=lambda b: objective.sign * b)
    rank = 1 + sum(objective.better(b, reached) for b in seconds)
    return Agreement(correlation, tuple(pairs), picked, rank, objective.sign * (best - reached))


def to_json(found: Agreement) -> dict[str, Any]:
    """An entry of transfer.json."""
    return {
        **asdict(found.correlation),
        "picked": found.picked,
        "rank": found.rank,
        "lost": found.lost,
    }


def misleads(found: Agreement) -> bool:
    """Whether the order that a light variant gives should not be trusted.

    So it is if it has hardly anything to do with the full model's order, or if the light
    variant gives every λ the same value while the full model does not.

    Args:
        found: Light against full.
    """
    if found.correlation.n < ENOUGH:
        return False
    if found.correlation.spearman is None:
        return _constant(found, 1) and not _constant(found, 2)
    return found.correlation.spearman < LEAST


def _constant(found: Agreement, column: int) -> bool:
    return len({pair[column] for pair in found.pairs}) == 1


def sentence(found: Agreement, metric: str) -> str:
    """Whether the light variant finds the λ of the full model, in plain words.

    Args:
        found: Light against full.
        metric: Name of the metric.
    """
    n, rho, tau = found.correlation.n, found.correlation.spearman, found.correlation.kendall
    label = metric_label(metric)
    if n < 2:
        return "Fewer than two λ were trained in both variants: nothing can be compared."
    if rho is None:
        variant = "light variant" if _constant(found, 1) else "full model"
        return f"The {variant} gives all {n} λ the same {label}: there is no order to compare."
    kind = ("gives only roughly", "gives")[rho >= CLOSE] if rho >= LEAST else "does not give"
    place = "the best" if found.rank == 1 else f"number {found.rank} of {n}"
    distance = f", {number(found.lost)} {label} from the best" if found.lost else ""
    few = f" So few as {n} λ say little." if n < ENOUGH else ""
    return (
        f"The light variant {kind} the order of the full model: rank correlation {rho:.2f} "
        f"(Spearman; Kendall {tau:.2f}) over {n} λ. Its best λ is {place} for the full "
        f"model{distance}.{few}"
    )
