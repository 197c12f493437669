"""Stage 3 and 4: the inner search, over the fusion weights w, and the choice of w†."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from fusetune.errors import MemberError
from fusetune.evaluation.evaluator import Evaluator
from fusetune.members.average import AdapterAverage
from fusetune.members.card import model_card
from fusetune.members.export import FUSION, ExportForm
from fusetune.members.points import Combination, OwnModel, Point
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights
from fusetune.methods import find as find_method
from fusetune.methods.choices import with_choices, worse_than_member
from fusetune.methods.method import FusionResult
from fusetune.methods.search import study_name
from fusetune.models.packaged import PACKAGED
from fusetune.objective import Objective, better
from fusetune.pipeline import adapters as adapter_record
from fusetune.pipeline import front, notes, starts, tracking
from fusetune.pipeline.context import Context
from fusetune.pipeline.display import Bar
from fusetune.pipeline.export import write_model
from fusetune.pipeline.first_trajectory import first_trajectory
from fusetune.pipeline.saved import save, saved
from fusetune.pipeline.workbench import Workbench, open_members
from fusetune.report.content import REFERENCES
from fusetune.tasks.task import SplitName


def fuse(context: Context) -> dict[str, Any]:
    """Run every method, choose w† by validation alone and write the fused model."""
    recipe, display = context.recipe, context.display
    bench = open_members(context)
    _require_difference(bench.pool)
    display.say(f"fuse: {bench.plan}")
    started = time.perf_counter()
    _ = bench.average
    load = {"seconds": time.perf_counter() - started, "bytes": bench.plan.read}
    evaluator = bench.evaluator("validation")
    results: dict[str, FusionResult] = {}
    for name in recipe.fuse.rows:
        if name in REFERENCES:
            continue  # they look at the test split: the report asks them
        found = saved(context.folder, name, context.task.objectives) or _run_method(
            context, bench, name
        )
        for row, result in found.rows(name).items():
            results[row] = result
            values = _values_text(result, evaluator.objectives)
            display.say(f"{row:<14}  {values}  {result.evaluations} evaluations")
        for note in notes.of_method(found):
            display.warn(note)
    results |= first_trajectory(bench.pool, evaluator)
    chosen, note = choose(results, evaluator, recipe.fuse.choose, recipe.fuse.sampler)
    if note:
        display.warn(note)
    front.write(context, bench.pool, results)
    started = time.perf_counter()
    adapters, adapter_notes = _write_fused(context, bench, chosen, results[chosen])
    written = sum(f.stat().st_size for f in context.folder.fused.glob("*.safetensors"))
    record = {
        "chosen": chosen,
        "load": load,
        "write": {"seconds": time.perf_counter() - started, "bytes": written},
        "notes": [*([note] if note else []), *adapter_notes],
        **({"adapters": adapters} if adapters else {}),
        "methods": {n: r.to_json() for n, r in results.items()},
    }
    context.folder.finish("fuse", record)
    return record


def choose(
    results: Mapping[str, FusionResult], evaluator: Evaluator, rule: str, sampler: str
) -> tuple[str, str]:
    """The row whose w becomes the fused model, and a note where that needs a word.

    A rule other than "best" chooses among the evaluations of the sampler's row; its model
    has to be at least as good on validation as the best single member; of equal metrics the
    lower loss is the better one. "best", and a
    rule that found nothing or less than that, take the method with the best
    validation values; of equal ones, the last.
    """
    row, note = f"{sampler}.{rule}", ""
    if row in results:
        k = len(results[row].weights)
        best = evaluator(FusionWeights.one_hot(0, k))
        for i in range(1, k):
            member = evaluator(FusionWeights.one_hot(i, k))
            best = member if evaluator.better(member, best) else best
        if not better(best.values, results[row].values, evaluator.objectives):
            return row, ""
        note = worse_than_member(row, results[row].values, best.values, evaluator.objectives)
    candidates = [name for name in results if "." not in name]
    chosen = candidates[0]
    for name in candidates:
        best, candidate = evaluator(results[chosen].point), evaluator(results[name].point)
        if not evaluator.better(best, candidate):
            chosen = name
    return chosen, note


def _require_difference(pool: MemberPool) -> None:
    if len({member.sha256 for member in pool.members}) == 1:
        raise MemberError(
            f"All {len(pool)} members are the same, {pool.names[0]} to {pool.names[-1]}: every "
            "average of them is that model.",
            "Let the training change the model: raise its learning rate, or train longer.",
        )


def references(context: Context, bench: Workbench) -> dict[str, FusionResult]:
    """Upper marks chosen on the test split, for the tables alone; never candidates."""
    wanted = [name for name in context.recipe.fuse.rows if name in REFERENCES]
    return {
        name: saved(context.folder, name, context.task.objectives)
        or _run_method(context, bench, name, "test")
        for name in wanted
    }


def _run_method(
    context: Context, bench: Workbench, name: str, split: SplitName = "validation"
) -> FusionResult:
    recipe = context.recipe
    evaluator = bench.evaluator(split)
    with (
        context.display.bar(name, recipe.fuse.evaluations) as bar,
        tracking.following(context, bench, name) as report,
    ):
        result = find_method(name)(
            bench.pool,
            evaluator,
            budget=recipe.fuse.evaluations,
            seed=recipe.seed,
            loop=context.loop(_show(bar, evaluator, report)),
            origin=context.origin,
            **context.method_options(name),
            **starts.options(context, bench.pool, name),
        )
        bar.update(result.evaluations, result.evaluations)
    if name == recipe.fuse.sampler:
        trials = context.trials(study_name(name))
        result = with_choices(result, trials, evaluator, context.constraint)
    return save(context.folder, name, result)


def _write_fused(
    context: Context, bench: Workbench, method: str, result: FusionResult
) -> tuple[dict[str, Any], list[str]]:
    """Write the fused model; of adapters, what the record and the notes say of them."""
    form = ExportForm.parse(context.recipe.fuse.export)
    notes_: list[str] = []
    if form.adapter and isinstance(result.point, OwnModel | Combination):
        form = ExportForm()
        notes_.append(f"The model of {method} is no adapter of its base: it is written merged.")
    card = card_text(
        context,
        bench.pool,
        method,
        result.point,
        {"validation": result.values},
        adapter=form.adapter,
    )
    write_model(
        context,
        bench.writer,
        result.point,
        bench.pool,
        context.folder.fused,
        card=card,
        extra={"method": method, "validation": dict(result.values)},
        form=form,
    )
    if not isinstance(bench.average, AdapterAverage):
        return {}, notes_
    fusion = json.loads((context.folder.fused / FUSION).read_text(encoding="utf-8"))
    found, more = adapter_record.describe(
        bench.average, result.point, fusion.get("adapter", {})
    )
    return found, [*notes_, *more]


def card_text(
    context: Context,
    pool: MemberPool,
    method: str,
    point: Point,
    metrics: Mapping[str, Mapping[str, float]],
    *,
    adapter: bool = False,
) -> str:
    """The model card of the fused model; `metrics` are split → metric → value.

    `adapter` says that the folder holds an adapter.
    """
    data = context.recipe.task.data
    on_hub = isinstance(data, str) and not Path(data).exists()
    return model_card(
        pool,
        point,
        name=context.folder.path.resolve().name,
        method=method,
        task=f"{context.task.name} ({context.recipe.task.kind})",
        base_model=base_model(context),
        dataset=str(data) if on_hub else context.task.name,  # where a folder is, is private
        pipeline_tag=context.task.pipeline_tag,
        metrics=metrics,
        adapter=adapter,
    )


def base_model(context: Context) -> str | None:
    """The hub id of the pretrained model where it is known, else its folder.

    None where that folder is of one of the members, which exist already: nothing tells then
    what they were trained from.
    """
    name = context.recipe.model.name
    members = map(Path, (context.folder.recorded("train") or {}).get("paths", ()))
    if any(path.is_relative_to(Path(name).resolve()) for path in members):
        return None
    return PACKAGED[name].hub_id if name in PACKAGED else name


def _values_text(result: FusionResult, objectives: Sequence[Objective]) -> str:
    return "  ".join(f"{o.name} {result.values[o.name]:.4f}" for o in objectives)


def _show(bar: Bar, evaluator: Evaluator, report: tracking.OnTrial) -> tracking.OnTrial:
    """After each trial: the count and the best values so far, and `report`."""
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
        report(study, trial)

    return show
