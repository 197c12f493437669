"""The one signature that every row of the comparison follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from fusetune.evaluation.evaluator import Evaluator
from fusetune.members import points
from fusetune.members.points import Point
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods.origin import Origin
from fusetune.optimization.study import Loop


@dataclass(frozen=True, slots=True)
class FusionResult:
    """What a method chose, and what the choice cost.

    Attributes:
        point: The chosen w; of some methods, coefficients of any sign or a model of its own.
        values: Its objective values on the validation split, natural sign.
        evaluations: How many distinct w the method had to evaluate.
        seconds: Time of those evaluations and of the method's own computing.
        details: Whatever else the report can show; JSON types only.
        choices: Rule → what it chooses from the same evaluations; see `choices`. Each is a
            row of its own in the tables, as `mobo.consensus`.
    """

    point: Point
    values: Mapping[str, float]
    evaluations: int
    seconds: float
    details: Mapping[str, object] = field(default_factory=dict)
    choices: Mapping[str, FusionResult] = field(default_factory=dict)

    @property
    def weights(self) -> FusionWeights:
        """The chosen w.

        Raises:
            ValueError: If the method left the simplex.
        """
        if not isinstance(self.point, FusionWeights):
            raise ValueError(f"The result is not on the simplex: {self.point!r}.")
        return self.point

    def rows(self, name: str) -> dict[str, FusionResult]:
        """The result under its name, and each choice as `name.rule`."""
        rows = {name: replace(self, choices={})}
        return rows | {f"{name}.{rule}": choice for rule, choice in self.choices.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the tensors of a model of its own."""
        return {
            "point": points.to_json(self.point),
            "values": dict(self.values),
            "evaluations": self.evaluations,
            "seconds": self.seconds,
            "details": dict(self.details),
            "choices": {rule: choice.to_json() for rule, choice in self.choices.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], folder: Path | None = None) -> FusionResult:
        """The inverse of `to_json`; models of their own are in `folder`."""
        point = points.from_json(data["point"], folder)
        choices = {r: cls.from_json(c, folder) for r, c in data.get("choices", {}).items()}
        return cls(**{**data, "point": point, "choices": choices})

    @classmethod
    def of(cls, point: Point, evaluator: Evaluator) -> FusionResult:
        """The result of a method that asked `evaluator` for everything it needed."""
        values = evaluator(point).values
        return cls(point, values, evaluator.evaluations, evaluator.seconds)


class FusionMethod(Protocol):
    """Finds w; `finetune`, `swa`, `greedy`, `mobo`, … are functions of this shape."""

    def __call__(
        self,
        pool: MemberPool,
        evaluator: Evaluator,
        *,
        budget: int,
        seed: int,
        loop: Loop,
        origin: Origin | None = None,
    ) -> FusionResult:
        """Choose weights for the pool's members.

        Args:
            pool: The k members.
            evaluator: f(w) on the validation split; remembers what it evaluated.
            budget: How many distinct w may be evaluated in all, k ≤ budget.
            seed: The only source of randomness.
            loop: Storage and executor for methods that search.
            origin: What the members come from, for methods that need more than the members.

        Raises:
            StageError: If the method needs an origin and there is none.
        """
        ...
