"""The same recipe over several seeds, and one table of all methods."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fusetune.members.disk import write_json
from fusetune.pipeline import run
from fusetune.pipeline.display import Display
from fusetune.recipe import Recipe
from fusetune.report.comparison import FORMATS, Comparison, to_json, to_table
from fusetune.report.comparison import compare as compare_results


def compare(
    recipe: Recipe, out: Path, seeds: Sequence[int], *, force: bool, display: Display
) -> Comparison:
    """Run a recipe once per seed, each in a folder of its own, and compare the methods.

    All methods of one seed share its trajectory and its evaluations. What is complete is not
    done again: an interrupted comparison goes on, and more seeds join later.

    Args:
        recipe: Its own seed is replaced.
        out: Gets `seed-41/` and so on, and the table as comparison.json, .md and .tex.
        seeds: At least one.
        force: Start every run anew.
        display: Where progress and the table are shown.

    Raises:
        FusetuneError: As `run`.
    """
    results = []
    for seed in dict.fromkeys(seeds):
        display.say(f"seed {seed}")
        folder = run(
            recipe.model_copy(update={"seed": seed}),
            out / f"seed-{seed}",
            force=force,
            display=display,
        )
        results.append(json.loads(folder.results.read_text(encoding="utf-8")))
    comparison = compare_results(results)
    write_json(out / "comparison.json", to_json(comparison))
    for ending, render in FORMATS.items():
        (out / f"comparison.{ending}").write_text(render(comparison), encoding="utf-8")
    display.console.print(to_table(comparison))
    display.say(f"Table: {out}/comparison.md, .tex and .json")
    return comparison
