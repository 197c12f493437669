"""One task with one seed: make the runs, compare with `finetune`, store the records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.protocols import dense, records, searched, settings
from benchmarks.protocols.job import Job
from benchmarks.protocols.outcomes import Outcomes, keep_landscape, member_of
from benchmarks.protocols.records import Record
from fusetune.errors import RunError
from fusetune.evaluation.bootstrap import bootstrap_counts
from fusetune.members.pool import MemberPool
from fusetune.objective import Objective
from fusetune.pipeline.compare import compare
from fusetune.pipeline.comparison_plan import Plan, make_plan
from fusetune.pipeline.context import Context
from fusetune.pipeline.display import Display
from fusetune.pipeline.environment import package_version
from fusetune.pipeline.procedures.procedure import FIXED
from fusetune.pipeline.seed_results import seed_results
from fusetune.recipe import Recipe
from fusetune.report.comparison import BASE
from fusetune.run import RunFolder
from fusetune.tasks.task import Outputs, Task

DELETED = "members-deleted"
DEFAULT = ".default"
TAIL = 2.5  # per cent


def run(
    job: Job, runs: Path, results: Path, *, delete_members: bool, display: Display
) -> list[Path]:
    """Make what is missing and store a record per row; returns the files.

    Raises:
        FusetuneError: As `fusetune compare`.
    """
    folder = job.seed_folder(runs)
    if job.missing(results):
        if job.attempt:
            _own_base(job, runs, results)  # raises before anything is trained
        methods = to_make(job, runs, results)
        plan = make_plan(job.recipe, methods, job.seed)
        _refuse_deleted(folder, plan)
        compare(
            job.recipe,
            job.out(runs),
            [job.seed],
            methods=methods,
            trained=_trained(job, runs, display),
            display=display,
        )
        written = _store(job, runs, results, plan)
    else:
        display.say(f"{job.task} {job.seed} {job.attempt}: all rows are stored")
        written = []
    if delete_members and folder.is_dir():
        _delete_members(folder)
    return written


def to_make(job: Job, runs: Path, results: Path) -> list[str]:
    """The rows to make: those without a record, unless one of them needs the fixed λ's run.

    Then all are made, also `finetune`: rows of one run must share its members, and another
    processor trains others.
    """
    missing = job.missing(results)
    if FIXED in make_plan(job.recipe, missing, job.seed).runs:
        return list(job.methods)
    try:
        _own_base(job, runs, results)
    except RunError:  # nothing is left that they could be compared with
        return list(job.methods)
    return missing


def _trained(job: Job, runs: Path, display: Display) -> dict[RunFolder, Recipe]:
    """What tries need not train: of the fusion alone, or of which members are kept."""
    if not job.attempt:
        return {}
    recipe = job.recipe_of("")
    if job.attempt in dense.TRIES:
        folder = replace(job, attempt=dense.SOURCE).seed_folder(runs)
        return dense.trained(recipe, job.attempt, job.recipe, job.seed, folder, display)
    folder = replace(job, attempt="").seed_folder(runs)
    plan = make_plan(recipe, job.methods, job.seed)
    own = {RunFolder(folder / name): made for name, made in plan.runs.items()}
    if job.attempt in searched.TRIES:
        for source, made in own.items():
            if source.path.name != FIXED:
                target = RunFolder(job.seed_folder(runs) / source.path.name)
                searched.begin(made, source, target, display)
        return own | searched.with_other_rates(job, runs)
    return own


def _store(job: Job, runs: Path, results: Path, plan: Plan) -> list[Path]:
    folder = job.seed_folder(runs)
    made = {
        n: RunFolder(folder / n) for n in plan.runs if (folder / n / "results.json").exists()
    }
    failed = {n: "it led to no result; see its run.log" for n in plan.runs if n not in made}
    name = FIXED if FIXED in made else next(iter(made))
    context = Context(plan.runs[name], made[name], Display(quiet=True))
    try:
        outcomes = Outcomes(folder)
        for run_name in made:
            outcomes.collect(context, run_name)
        task = context.task
        entries = seed_results(plan, made, failed, task.objectives[1])["methods"]
        if not job.attempt or job.attempt in settings.OF_SEARCH:  # members of their own
            chosen = {entry["place"][0] for entry in entries.values()}  # of a grid, the best
            kept = {name: run for name, run in made.items() if name in chosen}
            _keep_landscapes(job, plan, kept, results)
        entries |= _defaults(job, folder, entries, task.objectives[1])
        entries |= _unfused(folder, plan, task.objectives[1])
        own = not job.attempt and FIXED in plan.runs
        base = outcomes.get(FIXED, BASE) if own else _own_base(job, runs, results)
        compared = _Compared(job, task, base, outcomes)
        return [compared.record(row, entry).write(results) for row, entry in entries.items()]
    finally:
        context.close()


def _own_base(job: Job, runs: Path, results: Path) -> Outputs:
    """What the `finetune` of the protocol's own settings said, for rows that another run made.

    Where its run is gone it is read from what is kept of the members, rounded to 16 bits.

    Raises:
        RunError: If there is neither.
    """
    own = replace(job, attempt="")
    file = records.path(results, job.protocol, "", job.task, job.seed, BASE)
    outcomes, landscape = Outcomes(own.seed_folder(runs)), own.landscape(results, FIXED)
    if not outcomes.has(FIXED, BASE) and file.exists() and landscape.exists():
        return member_of(records.read(file), landscape)
    return outcomes.get(FIXED, BASE)


def _keep_landscapes(
    job: Job, plan: Plan, made: Mapping[str, RunFolder], results: Path
) -> None:
    """What members say of every row, for trying rules without models; each pool once."""
    seen = set()
    for name, run in made.items():
        context = Context(plan.runs[name], run, Display(quiet=True))
        try:
            pool = MemberPool.open(run.members).fingerprint if run.members.is_dir() else name
            if pool not in seen:  # bomf may have the members of the run without a search
                keep_landscape(context, job.landscape(results, name))
            seen.add(pool)
        finally:
            context.close()


class _Compared:
    """Rows against the `finetune` of the protocol's own settings, on the same test rows."""

    def __init__(self, job: Job, task: Task, base: Outputs, outcomes: Outcomes) -> None:
        self.job, self.task, self.outcomes = job, task, outcomes
        self.split = task.splits["test"]
        self.primary = task.objectives[1]
        # One seed for all: rows that several seeds share are then resampled alike.
        self.counts = bootstrap_counts(len(self.split), seed=0)
        self.base = self._sampled(base)
        self.base_value = task.score(base, self.split.labels)[self.primary.name]

    def _sampled(self, outputs: Any) -> Any:
        sampled = self.task.resample(outputs, self.split.labels, self.counts)
        return sampled[self.primary.name]

    def record(self, row: str, entry: Mapping[str, Any]) -> Record:
        """The record of one row."""
        name, sign = self.primary.name, self.primary.sign
        samples = sign * (self._sampled(self.outcomes.get(*entry["place"])) - self.base)
        low, high = np.percentile(samples, [TAIL, 100.0 - TAIL])
        side = min(np.count_nonzero(samples <= 0.0), np.count_nonzero(samples >= 0.0))
        return Record(
            protocol=self.job.protocol,
            attempt=self.job.attempt,
            task=self.job.task,
            seed=self.job.seed,
            method=row,
            primary=name,
            validation=entry["validation"],
            test=entry["test"],
            gain={
                "value": sign * (entry["test"][name]["value"] - self.base_value),
                "low": float(low),
                "high": float(high),
                "p_value": min(1.0, 2.0 * (side + 1) / (len(samples) + 1)),
                "variance": float(samples.var()),
            },
            samples=records.encode(samples),
            test_rows=self.split.fingerprint,
            evaluations=entry["evaluations"],
            trainings=entry["trainings"],
            seconds=entry["seconds"],
            total_seconds=entry["total_seconds"],
            settings=self.job.overrides,
            scale=self.job.scale,
            command=self.job.command,
            version=package_version("fusetune"),
        )


def _defaults(
    job: Job, folder: Path, entries: Mapping[str, Any], primary: Objective
) -> dict[str, Any]:
    """What a run with the default rule of choice makes of each search, as `bomf.default`.

    As in a run: the rule's w, unless it is worse on validation than the best single member.
    """
    found = {}
    for row, entry in entries.items():
        chosen = entries.get(f"{row}.{job.recipe.fuse.choose}")
        if chosen is None:
            continue
        results = RunFolder(folder / chosen["place"][0]).results
        run = json.loads(results.read_text(encoding="utf-8"))
        name = run["primary"]
        member = run["methods"][BASE]["validation"][name]["value"]
        value = chosen["validation"][name]["value"]
        found[row + DEFAULT] = entry if primary.better(member, value) else chosen
    return found


def _unfused(folder: Path, plan: Plan, primary: Objective) -> dict[str, Any]:
    """The best checkpoint of each searched training, `bomf.finetune`: what λ alone gains."""
    rows: dict[str, tuple[tuple[str, str], ...]] = {
        f"{row}.{BASE}": ((place[0], BASE),)
        for row, (place, *others) in plan.rows.items()
        if place[0] != FIXED and place[1] != BASE and not others
    }
    made = {run: RunFolder(folder / run) for ((run, _),) in rows.values()}
    complete = {run: found for run, found in made.items() if found.results.exists()}
    found = seed_results(Plan(plan.runs, rows), complete, {}, primary)["methods"]
    return {row: entry for row, entry in found.items() if row in rows}


def _refuse_deleted(folder: Path, plan: Plan) -> None:
    """More rows need the members, which are gone."""
    if not (folder / DELETED).exists():
        return
    for name, recipe in plan.runs.items():
        run_folder = RunFolder(folder / name)
        stored = run_folder.done("fuse") or {"methods": {}}
        lacking = [
            m for m in recipe.fuse.rows if not (run_folder.methods / f"{m}.json").exists()
        ]
        if stored["methods"] and lacking:
            raise RunError(
                f"{run_folder.path} has no members any more, and {', '.join(lacking)} "
                "would need them.",
                f"Delete {run_folder.path}, so that it is trained again, or leave them out.",
            )


def _delete_members(folder: Path) -> None:
    """Free what a finished seed needs no more; outcomes and results stay."""
    (folder / DELETED).touch()
    for run_folder in (path.parent for path in folder.glob("*/results.json")):
        for name in ("members", "work", "methods/models"):
            shutil.rmtree(run_folder / name, ignore_errors=True)
        for file in (run_folder / "fused").glob("*.safetensors"):
            file.unlink()
