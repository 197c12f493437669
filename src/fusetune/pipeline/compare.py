"""One recipe over several seeds, and one table of all methods and procedures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fusetune.errors import NoResultError, RecipeError, RunError
from fusetune.members.claim import claimed
from fusetune.members.disk import write_json, write_text
from fusetune.pipeline import run
from fusetune.pipeline.checks import check
from fusetune.pipeline.comparison_plan import Plan, make_plan, wanted_rows
from fusetune.pipeline.context import Context
from fusetune.pipeline.display import Display, log_to
from fusetune.pipeline.seed_results import seed_results
from fusetune.pipeline.shared import SharedTrainings, needed_twice
from fusetune.recipe import Recipe
from fusetune.report.comparison import FORMATS, Comparison, notes, to_json, to_table
from fusetune.report.comparison import compare as compare_results
from fusetune.run import RunFolder
from fusetune.tasks.task import Task


def compare(
    recipe: Recipe,
    out: Path,
    seeds: Sequence[int],
    *,
    methods: Sequence[str] | None = None,
    trained: Mapping[RunFolder, Recipe] = MappingProxyType({}),
    force: bool = False,
    display: Display,
    allow_code: bool = False,
) -> Comparison:
    """Make the runs that the rows need, once per seed, and compare the rows.

    Methods share one trajectory per seed, that of the fixed λ (`train.arguments`, no search),
    and its evaluations; a procedure has trainings of its own, those with equal λ done once
    for all procedures of a seed. What is complete is not done
    again: an interrupted comparison goes on, more seeds and more rows join later. A row
    whose training diverges is left out for that seed, and named.

    Args:
        recipe: Its own seed is replaced; nothing else is changed from seed to seed.
        out: Gets a folder per seed with one run folder for each run, and the table as
            comparison.json, .md and .tex.
        seeds: At least one, each once.
        methods: The rows; those of the recipe if None.
        trained: Further runs, with their recipes; what would be trained as one of them was in
            full is taken over from it.
        force: Start every run anew.
        display: Where progress and the table are shown.
        allow_code: Consent to code that the recipe names.

    Raises:
        FusetuneError: As `run`; before long work, if a row is not known or cannot be made
            with this recipe, or a folder belongs to something else.
    """
    rows = wanted_rows(recipe, methods, display.warn)
    plans = _plans(recipe, rows, seeds)
    _check_folders(out, plans, force=force)
    task = _check_runs(out, plans[seeds[0]], allow_code)
    with claimed(out, "The folder of the comparison"):
        options: dict[str, Any] = {"force": force, "display": display, "allow_code": allow_code}
        return _compare(plans, rows, task, out, trained, **options)


def _compare(
    plans: Mapping[int, Plan],
    rows: Sequence[str],
    task: Task,
    out: Path,
    trained: Mapping[RunFolder, Recipe],
    *,
    force: bool,
    display: Display,
    allow_code: bool,
) -> Comparison:
    results = []
    for seed, plan in plans.items():
        folder = out / f"seed-{seed}"
        options: dict[str, Any] = {"force": force, "display": display, "allow_code": allow_code}
        made, failed = _run_all(plan, folder, trained, **options)
        found = seed_results(plan, made, failed, task.objectives[1])
        results.append({"task": task.name, "seed": seed, **found})
    if not any(result["methods"] for result in results):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise NoResultError(f"No run of the comparison led to a result. {reasons}")
    comparison = compare_results(results, rows)
    write_json(out / "comparison.json", to_json(comparison))
    for ending, render in FORMATS.items():
        write_text(out / f"comparison.{ending}", render(comparison))
    display.console.print(to_table(comparison))
    for line in notes(comparison):
        display.say(line)
    display.say(f"Table: {out}/comparison.md, .tex and .json")
    return comparison


def _plans(recipe: Recipe, rows: Sequence[str], seeds: Sequence[int]) -> dict[int, Plan]:
    twice = {seed for seed in seeds if seeds.count(seed) > 1}
    if twice or not seeds:
        raise RecipeError(
            f"A comparison needs different seeds; given were {', '.join(map(str, seeds))}.",
            "Each seed has a folder of its own, and counts once.",
        )
    return {seed: make_plan(recipe, rows, seed) for seed in seeds}


def _check_folders(out: Path, plans: Mapping[int, Plan], *, force: bool) -> None:
    """Refuse folders of something else before anything is trained."""
    for path in (out, *(out / f"seed-{seed}" for seed in plans)):
        if (path / "recipe.yaml").exists() or (path / "stages").exists():
            raise RunError(
                f"{path} is itself a run folder, no folder for the runs of a comparison.",
                "Give another folder with --out.",
            )
    for seed, plan in plans.items():
        for name, recipe in plan.runs.items():
            folder = RunFolder(out / f"seed-{seed}" / name)
            if not force and folder.extension(recipe, join=True) is None:
                folder.check_recipe(recipe, stage=None, force=False)  # names what differs


def _check_runs(out: Path, plan: Plan, allow_code: bool) -> Task:
    """Check data, model and arguments of every run that is to be made; returns the task."""
    tasks: list[Task] = []
    for name, recipe in plan.runs.items():
        folder = RunFolder(out / f"seed-{recipe.seed}" / name)
        context = Context(recipe, folder, Display(quiet=True), allow_code=allow_code)
        try:
            if folder.done("report") is None:
                with log_to(Path(os.devnull), verbose=False):  # each run logs its own check
                    check(context)
            if not tasks:
                tasks.append(context.task)
        finally:
            context.close()
    return tasks[0]


def _run_all(
    plan: Plan,
    out: Path,
    trained: Mapping[RunFolder, Recipe],
    *,
    force: bool,
    display: Display,
    allow_code: bool,
) -> tuple[dict[str, RunFolder], dict[str, str]]:
    """The folders of the runs that were made, and why others led to nothing."""
    folders: dict[str, RunFolder] = {}
    failed: dict[str, str] = {}
    runs = {RunFolder(out / name): recipe for name, recipe in plan.runs.items()}
    twice = needed_twice([*plan.runs.values()])
    known = {**({} if force else runs), **trained}  # by force, only what was made just now
    shared = SharedTrainings(out / "shared", known, trials=twice)
    if force:
        shared.forget()
    for name, recipe in plan.runs.items():
        display.say(f"seed {recipe.seed}, {name}")
        options: dict[str, Any] = {"force": force, "extend": True, "shared": shared}
        options["allow_code"] = allow_code
        try:
            folders[name] = run(recipe, out / name, display=display, **options)
            known[folders[name]] = recipe
        except NoResultError as error:
            display.warn(f"{name}: {error}")
            failed[name] = error.message
    shared.forget()
    return folders, failed
