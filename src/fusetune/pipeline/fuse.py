"""Stage 3 and 4: the inner search, over the fusion weights w, and the choice of w†."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from fusetune.errors import RunError
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.scorer import Scorer
from fusetune.evaluation.store import EvaluationStore
from fusetune.members.average import Average, plan
from fusetune.members.card import model_card
from fusetune.members.disk import write_json
from fusetune.members.export import export
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods import find as find_method
from fusetune.methods.method import FusionResult
from fusetune.models.load import resolve
from fusetune.models.packaged import PACKAGED
from fusetune.objective import Objective
from fusetune.pipeline.context import Context
from fusetune.pipeline.display import Bar, Display
from fusetune.recipe_file import load
from fusetune.run import RunFolder
from fusetune.tasks.task import SplitName


@dataclass
class Workbench:
    """The members in memory, one model to put averages into, and evaluators of it.

    Attributes:
        pool: The members.
        context: Task, device and scorers.
        evaluations: Folder of the evaluation store; None keeps evaluations in memory.
    """

    pool: MemberPool
    context: Context
    evaluations: Path | None

    @cached_property
    def average(self) -> Average:
        """Resident if the members fit in memory, else streaming."""
        model = resolve(str(self.pool.members[0].path)).build(self.context.task.build)
        model.eval()
        return plan(self.pool, model, device=self.context.device)

    def evaluator(self, split: SplitName) -> Evaluator:
        """F on a split; nothing is evaluated that the store knows."""
        scorer: Scorer = self.context.scorer(split)
        store = EvaluationStore(
            self.evaluations, f"{self.pool.fingerprint} {scorer.fingerprint}"
        )
        return Evaluator(
            self.average, self.average.model, scorer, self.context.task.objectives, store
        )


def open_members(context: Context) -> Workbench:
    """The run's own members.

    Raises:
        RunError: If they are not the ones that the training recorded.
    """
    folder = context.folder
    recorded = (folder.done("train") or {}).get("members", [])
    pool = MemberPool.open(folder.members)
    if list(pool.names) != recorded:
        raise RunError(
            f"{folder.members} holds {', '.join(pool.names)}, but the training collected "
            f"{', '.join(recorded)}.",
            "Run `fusetune train --force` to collect them again.",
        )
    return Workbench(pool, context, folder.evaluations)


def fuse(context: Context) -> dict[str, Any]:
    """Run every method, choose w† by validation alone and write the fused model."""
    recipe, display = context.recipe, context.display
    bench = open_members(context)
    evaluator = bench.evaluator("validation")
    results: dict[str, FusionResult] = {}
    for name in recipe.fuse.methods:
        results[name] = _saved(context.folder, name) or _run_method(context, bench, name)
        values = _values_text(results[name], evaluator.objectives)
        display.say(f"fuse: {name:<10} {values}  ({results[name].evaluations} evaluations)")
    chosen = choose(results, evaluator)
    _write_fused(context, bench, chosen, results[chosen])
    record = {"chosen": chosen, "methods": {n: asdict(r) for n, r in results.items()}}
    context.folder.finish("fuse", record)
    return record


def choose(results: dict[str, FusionResult], evaluator: Evaluator) -> str:
    """The method with the best validation values; of equal ones, the last in the recipe."""
    chosen = next(iter(results))
    for name in results:
        best, candidate = evaluator(results[chosen].weights), evaluator(results[name].weights)
        if not evaluator.better(best, candidate):
            chosen = name
    return chosen


def saved_results(folder: RunFolder) -> dict[str, FusionResult]:
    """The results of the stage's record, by method."""
    record = folder.done("fuse") or {"methods": {}}
    return {name: _result(data) for name, data in record["methods"].items()}


def export_model(
    path: Path, out: Path, *, method: str | None, weights: str | None, display: Display
) -> None:
    """Write the model of one method, or of given weights, of a finished run.

    Args:
        path: The run folder.
        out: Where the model goes.
        method: A method of the run; the chosen one's model if None.
        weights: Comma-separated numbers instead, one per member; divided by their sum.
        display: Where to say what was done.

    Raises:
        RunError: If the run has not been fused, or has no such method, or the weights are
            not one non-negative number per member.
    """
    folder = RunFolder(path)
    record = folder.done("fuse")
    if record is None:
        raise RunError(f"{path} has no fused models yet.", f"Run `fusetune run {path}` first.")
    context = Context(load(folder.recipe_file), folder, display)
    bench = open_members(context)
    results = saved_results(folder)
    name = method or str(record["chosen"])
    if weights is not None:
        chosen, name = _parse_weights(weights, len(bench.pool)), "weights of your own"
    elif name in results:
        chosen = results[name].weights
    else:
        raise RunError(f"{path} has no method {name!r}; it has {', '.join(results)}.")
    export(bench.average, chosen, bench.pool, out, extra={"method": name})
    display.say(f"Wrote the model of {name} to {out}.")


def _parse_weights(text: str, k: int) -> FusionWeights:
    try:
        numbers = [float(part) for part in text.split(",")]
        if len(numbers) != k or min(numbers) < 0 or not 0 < sum(numbers) < float("inf"):
            raise ValueError
    except ValueError:
        raise RunError(
            f"--weights must be {k} non-negative numbers with commas between them, "
            f"not all zero; got {text!r}."
        ) from None
    return FusionWeights.normalised(numbers)


def _run_method(context: Context, bench: Workbench, name: str) -> FusionResult:
    recipe = context.recipe
    evaluator = bench.evaluator("validation")
    with context.display.bar(name, recipe.fuse.evaluations) as bar:
        result = find_method(name)(
            bench.pool,
            evaluator,
            budget=recipe.fuse.evaluations,
            seed=recipe.seed,
            loop=context.loop(_show(bar, evaluator)),
        )
        bar.update(result.evaluations, result.evaluations)
    path = context.folder.path / "methods" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, asdict(result))
    return result


def _saved(folder: RunFolder, name: str) -> FusionResult | None:
    try:
        text = (folder.path / "methods" / f"{name}.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return _result(json.loads(text))


def _result(data: dict[str, Any]) -> FusionResult:
    weights = FusionWeights(tuple(data["weights"]["values"]))
    return FusionResult(**{**data, "weights": weights})


def _write_fused(context: Context, bench: Workbench, method: str, result: FusionResult) -> None:
    card = card_text(context, bench.pool, method, result.weights, {"validation": result.values})
    export(
        bench.average,
        result.weights,
        bench.pool,
        context.folder.fused,
        tokenizer=context.tokenizer,
        card=card,
        extra={"method": method, "validation": dict(result.values)},
    )


def card_text(
    context: Context,
    pool: MemberPool,
    method: str,
    weights: FusionWeights,
    metrics: Mapping[str, Mapping[str, float]],
) -> str:
    """The model card of the fused model; `metrics` are split → metric → value."""
    data = context.recipe.task.data
    return model_card(
        pool,
        weights,
        name=context.folder.path.resolve().name,
        method=method,
        task=f"{context.task.name} ({context.recipe.task.kind})",
        base_model=base_model(context),
        dataset=data if isinstance(data, str) else context.task.name,
        pipeline_tag=context.task.pipeline_tag,
        metrics=metrics,
    )


def base_model(context: Context) -> str:
    """The hub id of the pretrained model where it is known, else its folder."""
    name = context.recipe.model.name
    return PACKAGED[name].hub_id if name in PACKAGED else name


def _values_text(result: FusionResult, objectives: Sequence[Objective]) -> str:
    return "  ".join(f"{o.name} {result.values[o.name]:.4f}" for o in objectives)


def _show(bar: Bar, evaluator: Evaluator) -> Callable[[optuna.Study, FrozenTrial], None]:
    """After each trial: the count and the best values so far."""
    primary, loss = evaluator.primary, evaluator.objectives[0]
    best: dict[str, float] = {}

    def show(study: optuna.Study, trial: FrozenTrial) -> None:
        for objective, value in zip(evaluator.objectives, trial.values or (), strict=False):
            if objective.name not in best or objective.better(value, best[objective.name]):
                best[objective.name] = value
        text = "  ".join(
            f"{o.name} {best[o.name]:.4f}" for o in (loss, primary) if o.name in best
        )
        bar.update(trial.number + 1, text=f"best {text}")

    return show
