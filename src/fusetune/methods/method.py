"""The one signature that every row of the comparison follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from fusetune.evaluation.evaluator import Evaluator
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.optimization.study import Loop


@dataclass(frozen=True, slots=True)
class FusionResult:
    """What a method chose, and what the choice cost.

    Attributes:
        weights: The chosen w.
        values: Its objective values on the validation split, natural sign.
        evaluations: How many distinct w the method had to evaluate.
        seconds: Time of those evaluations and of the method's own computing.
        details: Whatever else the report can show; JSON types only.
        choices: Rule → what it chooses from the same evaluations; see `choices`. Each is a
            row of its own in the tables, as `mobo.consensus`.
    """

    weights: FusionWeights
    values: Mapping[str, float]
    evaluations: int
    seconds: float
    details: Mapping[str, object] = field(default_factory=dict)
    choices: Mapping[str, FusionResult] = field(default_factory=dict)

    def rows(self, name: str) -> dict[str, FusionResult]:
        """The result under its name, and each choice as `name.rule`."""
        rows = {name: replace(self, choices={})}
        return rows | {f"{name}.{rule}": choice for rule, choice in self.choices.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FusionResult:
        """The inverse of `dataclasses.asdict`."""
        weights = FusionWeights(tuple(data["weights"]["values"]))
        choices = {r: cls.from_json(c) for r, c in data.get("choices", {}).items()}
        return cls(**{**data, "weights": weights, "choices": choices})

    @classmethod
    def of(cls, weights: FusionWeights, evaluator: Evaluator) -> FusionResult:
        """The result of a method that asked `evaluator` for everything it needed."""
        values = evaluator(weights).values
        return cls(weights, values, evaluator.evaluations, evaluator.seconds)


class FusionMethod(Protocol):
    """Finds w; `finetune`, `swa`, `greedy`, `mobo`, … are functions of this shape."""

    def __call__(
        self, pool: MemberPool, evaluator: Evaluator, *, budget: int, seed: int, loop: Loop
    ) -> FusionResult:
        """Choose weights for the pool's members.

        Args:
            pool: The k members.
            evaluator: f(w) on the validation split; remembers what it evaluated.
            budget: How many distinct w may be evaluated in all, k ≤ budget.
            seed: The only source of randomness.
            loop: Storage and executor for methods that search.
        """
        ...
