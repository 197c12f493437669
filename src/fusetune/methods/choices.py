"""What each rule for choosing w† makes of the evaluations of one search; no method itself."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from fusetune.evaluation.bootstrap import bootstrap_counts, paired_samples
from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.scorer import Scorer
from fusetune.evaluation.smooth import Smooth
from fusetune.members.weights import FusionWeights
from fusetune.methods.method import FusionResult
from fusetune.methods.search import weights_of
from fusetune.objective import Objective, better, primary_index, to_maximise
from fusetune.optimization import selection
from fusetune.optimization.constraint import Constraint
from fusetune.optimization.pareto import Values

SAMPLES = 500
"""Of the bootstrap that says how far a consensus may go."""


def with_choices(
    result: FusionResult,
    trials: Sequence[FrozenTrial],
    evaluator: Evaluator,
    constraint: Constraint | None = None,
) -> FusionResult:
    """The result of a search with what the other rules choose from the same evaluations.

    Rules: "consensus", whose averaged w is evaluated, as are points between it and the uniform
    average, or `selection.anchor` where these are worse than the best member; "posterior";
    "knee"; with a constraint, "constraint". A rule that finds nothing is left out, and
    `details["notes"]` says why.

    Args:
        result: Of the search; its own w is that of the rule "best".
        trials: All trials of its study.
        evaluator: f(w), for the consensus; what the search evaluated is in its store.
        constraint: Checked against the evaluator's objectives.
    """
    seen = Evaluated.of(trials, evaluator)
    notes: list[str] = []
    choices = {"consensus": consensus(result, seen, evaluator)}
    started = time.perf_counter()
    try:
        row = selection.posterior(seen.W, seen.Y, evaluator.objectives)
        seconds = time.perf_counter() - started
        choices["posterior"] = seen.chosen(row, result, seconds)
    except RuntimeError as error:  # torch's LinAlgError
        notes.append(
            f"The rule posterior was left out: no surrogate could be fitted ({error})."
        )
    choices["knee"] = seen.chosen(selection.knee(seen.Y, evaluator.objectives), result)
    if constraint is not None:
        found = selection.constrained(seen.Y, evaluator.objectives, constraint)
        if found is not None:
            choices["constraint"] = seen.chosen(found, result)
        else:
            notes.append(_unmet(seen, constraint, evaluator.objectives))
    details = {**result.details, **({"notes": notes} if notes else {})}
    return replace(result, choices=choices, details=details)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The n complete trials of a search.

    Attributes:
        trials: In their order.
        values: Of each, natural sign.
        W: `n x k`.
        Y: `n x m`, to be maximised.
    """

    trials: Sequence[FrozenTrial]
    values: Sequence[Mapping[str, float]]
    W: Values
    Y: Values

    @classmethod
    def of(cls, trials: Sequence[FrozenTrial], evaluator: Evaluator) -> Evaluated:
        """Those of a study's trials that are complete."""
        complete = [t for t in trials if t.state == TrialState.COMPLETE]
        names = [o.name for o in evaluator.objectives]
        values = [dict(zip(names, t.values, strict=True)) for t in complete]
        weights = np.array([weights_of(t).values for t in complete], dtype=np.float64)
        return cls(complete, values, weights, to_maximise(values, evaluator.objectives))

    def chosen(self, row: int, result: FusionResult, seconds: float = 0.0) -> FusionResult:
        """A choice among what was evaluated: it costs its own computing at most."""
        trial = self.trials[row]
        return FusionResult(
            point=weights_of(trial),
            values=self.values[row],
            evaluations=result.evaluations,
            seconds=result.seconds + seconds,
            details={"trial": trial.number},
        )


def _smoothed(seen: Evaluated, evaluator: Evaluator) -> Values | None:
    """The smoothed primary metric of each w, to be maximised; None where there is none."""
    score = evaluator.score
    if not isinstance(score, Scorer) or not isinstance(score.task, Smooth):
        return None
    found = []
    for trial in seen.trials:  # one by one: predictions of all at once may be large
        outputs = evaluator(weights_of(trial)).outputs
        assert outputs is not None  # a Scorer always gives them
        value = score.task.smooth(outputs.predictions[None], score.encoded.labels)
        if value is None:
            return None
        found.append(evaluator.primary.sign * float(value[0]))
    return np.array(found, dtype=np.float64)


def consensus(result: FusionResult, seen: Evaluated, evaluator: Evaluator) -> FusionResult:
    """The consensus, as near to the uniform average as its noise allows.

    Where it is worse than the best member on validation, it goes towards the anchor instead.
    Without outcomes per example no noise is known, and it stays where it is.

    Args:
        result: Of the search; its cost is part of the choice's.
        seen: What it evaluated.
        evaluator: f(w), for what has not been evaluated yet.
    """
    path = _Path(seen, evaluator)
    weights, details = path.chosen()
    more, seconds = path.cost
    return FusionResult(
        point=weights,
        values=evaluator(weights).values,
        evaluations=result.evaluations + more,
        seconds=result.seconds + seconds,
        details=details,
    )


class _Path:
    """The ways from the consensus, evaluated as far as they are gone."""

    def __init__(self, seen: Evaluated, evaluator: Evaluator) -> None:
        self.seen, self.evaluator = seen, evaluator
        smooth = _smoothed(seen, evaluator)
        self.average = selection.consensus(seen.W, seen.Y, evaluator.objectives, smooth)
        self.anchor = selection.anchor(seen.W, seen.Y, evaluator.objectives, smooth)
        member = selection.best_member_row(seen.W, seen.Y, evaluator.objectives)
        self.best_member = None if member is None else seen.values[member]
        self._seconds: dict[FusionWeights, float] = {}

    @property
    def cost(self) -> tuple[int, float]:
        """How many w the search had not evaluated, and the seconds that they took."""
        known = {weights_of(trial) for trial in self.seen.trials}
        new = [seconds for w, seconds in self._seconds.items() if w not in known]
        return len(new), sum(new)

    def chosen(self) -> tuple[FusionWeights, dict[str, object]]:
        """The w, and how far it has gone."""
        own = self._evaluate(FusionWeights.normalised(self.average))
        for share in selection.TOWARDS_UNIFORM if self._scorer(own) else ():
            weights = FusionWeights.normalised(selection.shrunk(self.average, share))
            found = self._evaluate(weights)
            if self._as_good_as_best_member(found) and not self._clearly_worse(found, own):
                return weights, {"share_of_uniform": share}
        return self._towards_anchor()

    def _towards_anchor(self) -> tuple[FusionWeights, dict[str, object]]:
        if self.anchor is None:
            return FusionWeights.normalised(self.average), {}
        towards = self.seen.W[self.anchor]
        for share in selection.SHARES:
            weights = FusionWeights.normalised((1.0 - share) * self.average + share * towards)
            if share == 1.0:  # to the last bit, as it was evaluated
                weights = weights_of(self.seen.trials[self.anchor])
            if self._as_good_as_best_member(self._evaluate(weights)):
                break
        return weights, {"share_of_anchor": share} if share > 0.0 else {}

    def _evaluate(self, weights: FusionWeights) -> Evaluation:
        found = self.evaluator(weights)
        self._seconds[weights] = found.seconds
        return found

    def _as_good_as_best_member(self, evaluation: Evaluation) -> bool:
        """Whether it is at least as good in the metric, and in the loss where that is equal."""
        objectives = self.evaluator.objectives
        return self.best_member is None or not better(
            self.best_member, evaluation.values, objectives
        )

    def _clearly_worse(self, found: Evaluation, own: Evaluation) -> bool:
        """Whether it is worse than the consensus by more than the noise of their difference.

        In the primary metric; in the loss where the metrics are equal.
        """
        objectives = self.evaluator.objectives
        if not better(own.values, found.values, objectives):
            return False
        primary, first = self.evaluator.primary, objectives[0]
        tied = found.values[primary.name] == own.values[primary.name]
        name = first.name if tied else primary.name
        behind = abs(own.values[name] - found.values[name])
        return behind > selection.ERRORS * self._error(found, own, in_loss=tied)

    def _scorer(self, evaluation: Evaluation) -> Scorer | None:
        """What says how outcomes vary; None where there are none."""
        score = self.evaluator.score
        return score if isinstance(score, Scorer) and evaluation.outputs is not None else None

    def _error(self, first: Evaluation, second: Evaluation, *, in_loss: bool) -> float:
        """Standard error of their paired difference in the loss or the primary metric."""
        score = self._scorer(first)
        assert score is not None
        assert first.outputs is not None
        assert second.outputs is not None
        if in_loss:
            paired = np.subtract(first.outputs.loss, second.outputs.loss, dtype=np.float64)
            return float(paired.std() / np.sqrt(len(paired)))
        labels, name = score.encoded.labels, self.evaluator.primary.name
        counts = bootstrap_counts(len(labels), SAMPLES)
        outputs = (first.outputs, second.outputs)
        return float(paired_samples(name, *outputs, labels, score.task.resample, counts).std())


def worse_than_member(
    row: str,
    values: Mapping[str, float],
    member: Mapping[str, float],
    objectives: Sequence[Objective],
) -> str:
    """The note that a rule's model is worse than the best single member, and what follows.

    Args:
        row: Of the rule.
        values: Of its model on validation.
        member: Of the best single member.
        objectives: The loss first, then the primary metric.
    """
    primary, first = objectives[primary_index(objectives)], objectives[0]
    name, equal = primary.name, ""
    if values[name] == member[name]:
        name, equal = first.name, f", at the same {primary.name}"
    return (
        f"{row} has {name} {values[name]:.4f} on validation, worse than the best single "
        f"member, {member[name]:.4f}{equal}: the rule best chose instead."
    )


def _unmet(seen: Evaluated, constraint: Constraint, objectives: Sequence[Objective]) -> str:
    bounds = ", ".join(map(str, constraint.bounds))
    named = [b.name for b in constraint.bounds]
    shown = dict.fromkeys([*named, constraint.goal])
    near = "; ".join(
        f"trial {seen.trials[i].number} with "
        + ", ".join(f"{name} {seen.values[i][name]:.4f}" for name in shown)
        for i in selection.nearest(seen.Y, objectives, constraint)
    )
    return f"fuse.constraint: no evaluated w keeps {bounds}. Nearest are {near}."
