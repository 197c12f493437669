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


def _kill_when(recipe: str, folder: Path, condition: Condition) -> bool:
    """Run until the condition holds, then kill -9; whether the run was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fusetune.pipeline"])
    process = context.Process(target=_work, args=(recipe, str(folder)))
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
