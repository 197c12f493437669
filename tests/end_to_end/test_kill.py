"""kill -9 in every stage, then again: the result is the one of an undisturbed run."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusetune.pipeline import run
from fusetune.recipe_file import parse

Condition = Callable[[Path], bool]


def dump(recipe: str, *overrides: str) -> str:
    """A recipe with overrides, as text."""
    return parse(recipe, overrides).to_yaml()


def _lines(folder: Path) -> int:
    journal = folder / "trials.journal"
    return len(journal.read_bytes().splitlines()) if journal.exists() else 0


def _count(folder: Path, pattern: str) -> int:
    return len(list(folder.glob(pattern)))


# When to kill: each is true for the first time somewhere inside a stage.
MOMENTS: dict[str, Condition] = {
    "first trial": lambda f: (f / "work/trial-0000").is_dir(),
    "between trials": lambda f: _lines(f) >= 20 and _count(f, "stages/search.json") == 0,
    "third trial": lambda f: (f / "work/trial-0002").is_dir(),
    "training": lambda f: _count(f, "work/train/checkpoint-*") > 0,
    "collecting": lambda f: _count(f, "members/step-*/member.json") >= 2,
    "last member": lambda f: _count(f, "members/step-*/member.json") >= 5,
    "first evaluations": lambda f: _count(f, "evaluations/*.npz") >= 3,
    "inner search": lambda f: _count(f, "evaluations/*.npz") >= 13,
    "fused model": lambda f: (f / "methods/mobo.json").exists(),
    "report": lambda f: (f / "stages/fuse.json").exists(),
    "results written": lambda f: (f / "results.json").exists(),
}


def _work(recipe: str, folder: str) -> None:
    import torch

    torch.set_num_threads(1)
    run(parse(recipe), folder)


# The same in a comparison: moments of its runs, and between them.
COMPARISON: dict[str, Condition] = {
    "a grid's first run": lambda f: _count(f, "seed-41/grid-0.001/stages/search.json") > 0,
    "a grid's second run": lambda f: _count(f, "seed-41/fixed/members/step-*") >= 2,
    "between two runs": lambda f: _count(f, "seed-41/fixed/stages/report.json") > 0,
    "a kept trial": lambda f: _count(f, "seed-41/hpbo/work/kept/trial-*") > 0,
    "taking over": lambda f: _count(f, "seed-41/hpbo/members/step-*") >= 1,
    "between two seeds": lambda f: _count(f, "seed-41/hpbo/stages/report.json") > 0,
    "the second seed": lambda f: _count(f, "seed-42/fixed/evaluations/*.npz") >= 5,
    "the last run": lambda f: _count(f, "seed-42/hpbo/stages/fuse.json") > 0,
}


def _compare(recipe: str, folder: str) -> None:
    import torch

    from fusetune.pipeline.compare import compare
    from fusetune.pipeline.display import Display

    torch.set_num_threads(1)
    compare(
        parse(recipe),
        Path(folder),
        [41, 42],
        methods=["finetune", "grid", "mobo", "hpbo"],
        display=Display(quiet=True),
    )


def _kill_when(
    recipe: str,
    folder: Path,
    condition: Condition,
    work: Callable[[str, str], None] = _work,
) -> bool:
    """Run until the condition holds, then kill -9; whether the run was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fusetune.pipeline.compare"])
    process = context.Process(target=work, args=(recipe, str(folder)))
    process.start()
    deadline = time.monotonic() + 1200  # against a hang alone
    while process.is_alive() and time.monotonic() < deadline:
        if condition(folder):
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            return True
        time.sleep(0.005)
    process.join(timeout=1)
    assert process.exitcode == 0, f"ended with {process.exitcode}"
    return False


def _figures(folder: Path) -> dict[str, Any]:
    """results.json without what measures time."""
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    results.pop("cost")
    for entry in results["methods"].values():
        entry.pop("seconds")
    return results


def _trials(folder: Path) -> list[tuple[Any, ...]]:
    from optuna import load_study

    from fusetune.optimization.study import open_storage

    storage = open_storage(folder / "trials.journal")
    return [
        (name, t.number, t.state.name, t.values, t.params)
        for name in ("search", "fuse")
        for t in load_study(study_name=name, storage=storage).trials
    ]


@pytest.mark.slow
def test_killed_while_adapters_are_trained_and_fused(tiny_recipe: str, tmp_path: Path) -> None:
    lora = ["model.lora={rank: 4}", "search.variant={lora_rank: 1}", "search.trials=2"]
    recipe = dump(tiny_recipe, *lora)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert not _kill_when(recipe, whole, lambda _: False)
    for name in ("training", "collecting", "last member", "inner search", "fused model"):
        assert _kill_when(recipe, cut, MOMENTS[name])
    assert not _kill_when(recipe, cut, lambda _: False)
    assert _figures(cut) == _figures(whole)
    weights = [(f / "fused/model.safetensors").read_bytes() for f in (whole, cut)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_killed_in_every_stage(tiny_recipe: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert not _kill_when(tiny_recipe, whole, lambda _: False)
    killed = [name for name, moment in MOMENTS.items() if _kill_when(tiny_recipe, cut, moment)]
    assert not _kill_when(tiny_recipe, cut, lambda _: False)
    assert killed == list(MOMENTS)  # each moment was met, so that each stage was cut off
    assert _figures(cut) == _figures(whole)
    assert _trials(cut) == _trials(whole)
    for name in ("fused/model.safetensors", "fused/fusion.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def _table(folder: Path) -> dict[str, Any]:
    """comparison.json without what measures time."""
    table: dict[str, Any] = json.loads((folder / "comparison.json").read_text())
    for row in table["rows"]:
        row.pop("seconds")
        row.pop("total_seconds")
    return table


@pytest.mark.slow
def test_a_comparison_killed_at_many_moments(tiny_recipe: str, tmp_path: Path) -> None:
    recipe = dump(
        tiny_recipe,
        "search.trials=2",
        "search.variant=full",
        "search.epochs=null",
        "train.epochs=1",
        "train.arguments.learning_rate=3.0e-3",
        "compare.learning_rates=[1.0e-3, 3.0e-3]",
        "fuse.evaluations=10",
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert not _kill_when(recipe, whole, lambda _: False, _compare)
    killed = [
        n for n, moment in COMPARISON.items() if _kill_when(recipe, cut, moment, _compare)
    ]
    assert not _kill_when(recipe, cut, lambda _: False, _compare)
    assert killed == list(COMPARISON)
    assert _table(cut) == _table(whole)
    for name in ("fixed", "hpbo"):
        model = f"seed-41/{name}/fused/model.safetensors"
        assert (cut / model).read_bytes() == (whole / model).read_bytes()
