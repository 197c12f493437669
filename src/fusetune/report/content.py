"""What a report is made of: plain data about one run. It knows no recipe and no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fusetune.objective import LOSS, Objective

TrialState = Literal["COMPLETE", "PRUNED", "FAIL", "RUNNING"]

REFERENCES = frozenset({"oracle"})
"""Methods that look at the test split: shown as a mark, never as a rival or a winner."""


@dataclass(frozen=True, slots=True)
class MemberRow:
    """One checkpoint.

    Attributes:
        name: Name of its folder, as "step-000123".
        values: Its own validation values by objective name; empty if not measured.
        step: Optimiser step at which it was taken; None outside a trajectory.
        epoch: The same in passes over the training data.
        trajectory: Number of the training run, from 1; None if it is the only one.
    """

    name: str
    values: Mapping[str, float] = field(default_factory=dict)
    step: int | None = None
    epoch: float | None = None
    trajectory: int | None = None


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One evaluated w.

    Attributes:
        weights: k fusion weights, in the order of the members.
        values: Validation values by objective name, natural sign.
        method: Which method asked for it first.
        on_front: Whether it is on the Pareto front of all evaluations.
    """

    weights: tuple[float, ...]
    values: Mapping[str, float]
    method: str = ""
    on_front: bool = False


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial of the search over hyper-parameters.

    Attributes:
        number: Its number in the study, from 0.
        state: As in Optuna.
        params: Hyper-parameter name → value tried.
        value: What the search maximises or minimises; for a pruned trial its last
            intermediate value; None if there is none.
        seconds: Wall time; None if unknown.
        reason: Why it was pruned or failed.
        chosen: Whether the training took its λ; see `search.choose`.
    """

    number: int
    state: TrialState
    params: Mapping[str, Any]
    value: float | None = None
    seconds: float | None = None
    reason: str = ""
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything that the report of one run shows; what is empty is left out of it.

    Attributes:
        results: The content of results.json. Besides its fixed keys, "comparison" (rival
            method → {"difference", "low", "high", "p_value"}: the chosen method minus the
            rival, paired, on the test split's primary metric) is understood.
        objectives: Loss first, then the metrics, or whatever a library user optimised.
        members: The k checkpoints, in the order of the weights.
        evaluations: Every distinct w that was evaluated, in order.
        hypervolume: Hypervolume after each evaluation; as long as `evaluations`, or empty.
        trials: The search over hyper-parameters, in order.
        trial_objective: What a trial's value is; None takes the primary metric.
        cost: Stage ("search", "train", "average", "evaluate", …) → wall "seconds", and
            "bytes" of members read or written.
        notes: Warnings to repeat: leakage, dropped rows, failed trials.
        model: Name of the base model.
        fused: Folder of the fused model.
        usage: Code that loads the fused model.
        export: The command that exports a mixture, without weights and place; empty if there
            is none.
        recipe: The resolved recipe as YAML.
        environment: Versions, device, hashes; values may be nested.
        created: When, as text.

    Raises:
        ValueError: If weights and members, or hypervolume and evaluations, differ in number.
    """

    results: Mapping[str, Any]
    objectives: tuple[Objective, ...]
    members: tuple[MemberRow, ...]
    evaluations: tuple[EvaluationRow, ...] = ()
    hypervolume: tuple[float, ...] = ()
    trials: tuple[TrialRow, ...] = ()
    trial_objective: Objective | None = None
    cost: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    model: str = ""
    fused: str = ""
    usage: str = ""
    export: str = ""
    recipe: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""

    def __post_init__(self) -> None:
        k = len(self.members)
        for number, evaluation in enumerate(self.evaluations, 1):
            if len(evaluation.weights) != k:
                raise ValueError(
                    f"Every evaluation needs one weight per member; evaluation {number} "
                    f"has {len(evaluation.weights)} weights for {k} members."
                )
        if self.hypervolume and len(self.hypervolume) != len(self.evaluations):
            raise ValueError(
                "hypervolume must be empty or hold one value per evaluation; got "
                f"{len(self.hypervolume)} values for {len(self.evaluations)} evaluations."
            )

    @property
    def primary(self) -> Objective:
        """The metric by which the chosen method was chosen."""
        return objective_named(str(self.results["primary"]), self.objectives)

    @property
    def metrics(self) -> tuple[Objective, ...]:
        """The objectives besides the loss, the primary one first."""
        others = [o for o in self.objectives if o.name != LOSS.name]
        return tuple(sorted(others, key=lambda o: o.name != self.primary.name))

    @property
    def member_names(self) -> tuple[str, ...]:
        """The names of the k members."""
        return tuple(member.name for member in self.members)

    @property
    def by_step(self) -> bool:
        """Whether every member has a training step of its own, of one training."""
        if len({member.trajectory for member in self.members}) > 1:
            return False
        steps = [member.step for member in self.members]
        return bool(steps) and None not in steps and len(set(steps)) == len(steps)

    @property
    def member_labels(self) -> tuple[str, ...]:
        """A short label per member: its step where steps tell them apart, else its name."""
        return tuple(str(m.step) if self.by_step else m.name for m in self.members)

    @property
    def chosen(self) -> str:
        """The method whose weights became the fused model."""
        return str(self.results["chosen"])

    @property
    def methods(self) -> Mapping[str, Mapping[str, Any]]:
        """Method → its entry in results.json."""
        methods: Mapping[str, Mapping[str, Any]] = self.results["methods"]
        return methods


def objective_named(name: str, objectives: tuple[Objective, ...]) -> Objective:
    """The objective of that name; one outside `objectives` is maximised, a loss is not."""
    for objective in objectives:
        if objective.name == name:
            return objective
    return LOSS if name == LOSS.name else Objective(name, "maximize")


def point(entry: Mapping[str, Any], split: str, metric: str) -> Mapping[str, float | None]:
    """`{"value", "low", "high"}` of a method's entry; an empty mapping if not measured."""
    found: Mapping[str, float | None] | None = (entry.get(split) or {}).get(metric)
    return found or {}


def best_so_far(values: Sequence[float | None], objective: Objective) -> list[float | None]:
    """The running best of a sequence; None until the first value that is a number."""
    best: float | None = None
    line: list[float | None] = []
    for value in values:
        if (
            value is not None
            and value == value
            and (best is None or objective.better(value, best))
        ):
            best = value
        line.append(best)
    return line
