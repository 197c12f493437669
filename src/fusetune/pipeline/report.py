"""Stage 5: the test split, results.json, report.html and the model card."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from fusetune.evaluation.evaluator import Evaluator
from fusetune.members.adapter import CONFIG as ADAPTER
from fusetune.members.disk import write_json, write_text
from fusetune.members.manifest import read_manifest
from fusetune.members.weights import FusionWeights
from fusetune.methods.method import FusionResult
from fusetune.methods.search import study_name
from fusetune.objective import Objective, to_maximise
from fusetune.optimization.pareto import front, hypervolume_curve, reference_point
from fusetune.pipeline import agreement, notes
from fusetune.pipeline.context import SEARCH, Context
from fusetune.pipeline.environment import environment, package_version
from fusetune.pipeline.examples import examples
from fusetune.pipeline.fuse import card_text, references
from fusetune.pipeline.ledger import ledger
from fusetune.pipeline.results import SPLITS, build_results
from fusetune.pipeline.saved import saved_results
from fusetune.pipeline.workbench import Workbench, open_members
from fusetune.redaction import tree_without_secrets, without_secrets
from fusetune.report.content import EvaluationRow, MemberRow, RunRecord, TrialRow
from fusetune.report.discrepancy import discrepancy
from fusetune.report.html import write as write_html
from fusetune.report.tables import methods_table
from fusetune.report.verdict import verdict

# Kinds for which Transformers has no pipeline any more.
WITHOUT_PIPELINE = {
    "text2text-generation": "AutoModelForSeq2SeqLM",
    "question-answering": "AutoModelForQuestionAnswering",
}


def report(context: Context) -> dict[str, Any]:
    """Evaluate what was chosen on test, and write everything that tells of it."""
    started = time.perf_counter()
    folder = context.folder
    record = folder.recorded("fuse")
    assert record is not None  # the pipeline has checked it
    results, chosen = saved_results(folder), str(record["chosen"])
    bench = open_members(context)
    rows = {**results, **references(context, bench)}
    evaluators = {split: bench.evaluator(split) for split in SPLITS}
    table = build_results(
        rows,
        chosen,
        context.task,
        evaluators,
        version=package_version("fusetune"),
        seed=context.recipe.seed,
        members=len(bench.pool),
    )
    table["contributions"], spare = notes.of_members(
        evaluators["validation"].fresh(), results[chosen].point, bench.pool
    )
    table["examples"] = examples(
        context.task.splits["test"], evaluators["test"], results, chosen
    )
    warnings = [
        *record.get("notes", []),
        *(note for result in results.values() for note in notes.of_method(result)),
        *notes.of_metrics(context.task, evaluators, results, bench.pool),
        *spare,
    ]
    if "adapters" in record:
        table["adapters"] = record["adapters"]
    table = dict(tree_without_secrets(table))
    page = _record(context, bench, evaluators["validation"], table, results, warnings)
    table["discrepancy"] = discrepancy(page.evaluations, page.objectives, table["primary"])
    table["cost"] = {
        **page.cost,
        "report": {"seconds": time.perf_counter() - started, "bytes": 0},
    }
    table["notes"] = list(page.notes)
    write_json(folder.results, table)
    write_html(page, folder.report)
    metrics: dict[str, dict[str, float]] = {
        split: {n: v["value"] for n, v in table["methods"][chosen][split].items()}
        for split in SPLITS
    }
    _write_card(context, bench, chosen, results[chosen], metrics)
    folder.finish("report", {"results": folder.results.name, "report": folder.report.name})
    _show(context, table, page)
    return table


def _show(context: Context, table: dict[str, Any], page: RunRecord) -> None:
    """The table, what it means, and where everything lies."""
    folder, display = context.folder, context.display
    display.console.print(methods_table(table, page.objectives))
    display.say(verdict(table, page.objectives).headline)
    display.say(f"Report: {folder.report}")
    display.say(f"Model:  {folder.fused}")
    display.say(page.usage)


def _write_card(
    context: Context,
    bench: Workbench,
    chosen: str,
    result: FusionResult,
    metrics: Mapping[str, Mapping[str, float]],
) -> None:
    """The model card once more, now with the figures of the test split."""
    card = card_text(
        context,
        bench.pool,
        chosen,
        result.point,
        metrics,
        adapter=(context.folder.fused / ADAPTER).is_file(),
    )
    write_text(context.folder.fused / "README.md", card)


def _record(
    context: Context,
    bench: Workbench,
    evaluator: Evaluator,
    table: Mapping[str, Any],
    results: Mapping[str, FusionResult],
    warnings: Iterable[str],
) -> RunRecord:
    folder, objectives = context.folder, context.task.objectives
    search_trials = context.trials(SEARCH)
    taken = (folder.recorded("search") or {}).get("trial")
    sampler = context.recipe.fuse.sampler
    fusion_trials = context.trials(study_name(sampler))
    evaluations, hypervolume = _evaluations(sampler, fusion_trials, results, evaluator)
    return RunRecord(
        results=table,
        objectives=objectives,
        members=_members(bench, evaluator),
        evaluations=evaluations,
        hypervolume=hypervolume,
        trials=tuple(_trial(t, taken) for t in search_trials),
        cost=ledger(context, bench.pool, fusion_trials),
        notes=_texts(
            *notes.of_code(context.recipe.model.trust_remote_code),
            *context.code,
            *context.task.notes,
            *agreement.warnings(folder.path, context.recipe),
            *notes.failures("search", search_trials),
            *notes.of_training(folder.recorded("train") or {}),
            *warnings,
        ),
        model=context.source.label,
        fused=str(folder.fused),
        usage=usage(context),
        export=f"fusetune export {shlex.quote(str(folder.path))}",
        recipe=context.recipe.to_yaml(),
        environment=environment(context),
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _texts(*notes: str) -> tuple[str, ...]:
    return tuple(without_secrets(note) for note in notes)


def _members(bench: Workbench, evaluator: Evaluator) -> tuple[MemberRow, ...]:
    """Each member with its own validation values; they are in the store by now."""
    k = len(bench.pool)
    rows = []
    for i, member in enumerate(bench.pool.members):
        manifest = read_manifest(member.path)
        rows.append(
            MemberRow(
                name=member.name,
                values=dict(evaluator(FusionWeights.one_hot(i, k)).values),
                step=member.step,
                epoch=manifest.epoch if manifest else None,
                trajectory=member.trajectory,
            )
        )
    return tuple(rows)


def _evaluations(
    sampler: str,
    trials: Iterable[FrozenTrial],
    results: Mapping[str, FusionResult],
    evaluator: Evaluator,
) -> tuple[tuple[EvaluationRow, ...], tuple[float, ...]]:
    """Every distinct w: those of the search in order, then those of other methods."""
    objectives = evaluator.objectives
    asked: dict[FusionWeights, tuple[str, Mapping[str, float]]] = {}
    for trial in trials:
        if trial.state is TrialState.COMPLETE and "weights" in trial.user_attrs:
            weights = FusionWeights(tuple(trial.user_attrs["weights"]))
            values = {o.name: v for o, v in zip(objectives, trial.values, strict=True)}
            asked.setdefault(weights, (sampler, values))
    for name, result in results.items():
        if isinstance(result.point, FusionWeights):
            asked.setdefault(result.point, (name, result.values))
    maximised = to_maximise([v for _, v in asked.values()], objectives)
    best = set(front(maximised).tolist())
    rows = tuple(
        EvaluationRow(weights.values, dict(v), method, i in best)
        for i, (weights, (method, v)) in enumerate(asked.items())
    )
    return rows, _hypervolume(maximised, list(asked), objectives)


def _hypervolume(
    values: np.ndarray, weights: list[FusionWeights], objectives: tuple[Objective, ...]
) -> tuple[float, ...]:
    single = [i for i, w in enumerate(weights) if max(w.values) == 1.0]
    if len(single) < 2:
        return ()
    reference, span = reference_point(values[single])
    curve = hypervolume_curve((values - reference) / span, np.zeros(len(objectives)))
    return tuple(float(v) for v in curve)


def _trial(trial: FrozenTrial, taken: int | None) -> TrialRow:
    value = trial.value if trial.state is TrialState.COMPLETE else None
    if value is None and trial.intermediate_values:
        value = trial.intermediate_values[max(trial.intermediate_values)]
    return TrialRow(
        number=trial.number,
        state=trial.state.name,  # type: ignore[arg-type]  # Optuna's names are ours
        params=dict(trial.params),
        value=value,
        seconds=trial.user_attrs.get("seconds"),
        reason=str(trial.user_attrs.get("reason", "")),
        chosen=trial.number == taken,
    )


def usage(context: Context) -> str:
    """A line of code that uses the fused model."""
    path = context.folder.fused
    place = json.dumps(str(path), ensure_ascii=False)  # quoted, whatever the folder is called
    tag = context.task.pipeline_tag
    if (path / ADAPTER).is_file():
        return f"from peft import PeftModel; model = PeftModel.from_pretrained(base, {place})"
    if tag in WITHOUT_PIPELINE:
        auto_class = WITHOUT_PIPELINE[tag]
        return (
            f"from transformers import {auto_class}; "
            f"model = {auto_class}.from_pretrained({place})"
        )
    return f'from transformers import pipeline; model = pipeline("{tag}", {place})'
