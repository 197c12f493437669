"""What each member adds to a fused model: its value without that member."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusetune.evaluation.evaluator import Evaluator
from fusetune.members.weights import FusionWeights


@dataclass(frozen=True, slots=True)
class Contribution:
    """Attributes:
    member: Index of the member that was left out.
    weight: Its weight in the full model.
    values: Of θ̄ with the other weights divided by their sum, natural sign.
    better: Whether that is better than the full model in the primary metric, or equal
        in it and not worse in the loss: the member could be done without.
    """

    member: int
    weight: float
    values: Mapping[str, float]
    better: bool


def contributions(evaluator: Evaluator, weights: FusionWeights) -> list[Contribution]:
    """Leave out one member at a time, of those that carry weight: at most k evaluations.

    Returns:
        One entry per member with weight, in order; empty if a single member has it all.
    """
    carrying = [i for i, w in enumerate(weights.values) if w > 0.0]
    if len(carrying) < 2:
        return []
    full = evaluator(weights)
    rests = [
        FusionWeights.normalised(0.0 if j == i else w for j, w in enumerate(weights.values))
        for i in carrying
    ]
    evaluator.prefetch(rests)
    found = []
    for i, rest in zip(carrying, rests, strict=True):
        without = evaluator(rest)
        found.append(
            Contribution(
                i, weights.values[i], without.values, not evaluator.better(full, without)
            )
        )
    return found


def hint(found: Sequence[Contribution], names: Sequence[str]) -> str:
    """A sentence about members that could be done without; empty if every one helps.

    Args:
        found: As `contributions` gives it.
        names: Of all k members.
    """
    spare = [names[c.member] for c in found if c.better]
    if not spare:
        return ""
    if len(spare) == 1:
        return (
            f"Fewer members would do: leaving out {spare[0]} loses nothing on validation "
            f"({len(found)} members carry weight)."
        )
    return (
        f"Fewer members may do: leaving out any one of {', '.join(spare)} loses nothing on "
        f"validation ({len(found)} members carry weight)."
    )
