"""Full trainings that do not keep what the search's trial promised."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from fusetune.pipeline import run
from fusetune.pipeline.attempts import promised
from fusetune.pipeline.context import Context
from fusetune.pipeline.display import Display
from fusetune.pipeline.trajectories import Trajectory
from fusetune.recipe import Recipe
from fusetune.recipe_file import parse
from fusetune.run import RunFolder

LIGHT = ("search.trials=1", "train.epochs=2", "train.members=3")
SHORT_ROWS = "fuse.methods=[finetune, swa]"
OUT_OF_REACH, ANYTHING = 2.0, -1.0  # of an accuracy


def record(folder: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"stages/{stage}.json").read_text())
    return found


def members(folder: Path) -> dict[str, bytes]:
    files = sorted((folder / "members").rglob("*.safetensors"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def trained(recipe: Recipe, folder: Path) -> dict[str, bytes]:
    run(recipe, folder, stage="search")
    run(recipe, folder, stage="train")
    return members(folder)


def promise(monkeypatch: pytest.MonkeyPatch, value: float | None) -> None:
    monkeypatch.setattr("fusetune.pipeline.attempts.promised", lambda *_: value)


def with_rate(folder: Path, rate: float) -> None:
    """Let the search have found another learning rate with the value that it has."""
    path = folder / "stages/search.json"
    search = json.loads(path.read_text())
    search["params"]["learning_rate"] = rate
    path.write_text(json.dumps(search))


def test_a_rate_that_only_the_trial_bore_is_lowered(tiny_recipe: str, tmp_path: Path) -> None:
    overrides = [
        "search.trials=1",
        "search.epochs=3",
        "search.space.learning_rate={choices: [0.004]}",
        "train.epochs=6",
        "train.members=3",
        "train.retries=1",
        "train.arguments={learning_rate: 0.004, lr_scheduler_type: constant}",
        "fuse.methods=[finetune, swa]",
    ]
    recipe = parse(tiny_recipe, overrides)
    run(recipe, tmp_path, stage="search")
    context = Context(recipe, RunFolder(tmp_path), Display(quiet=True))
    found = record(tmp_path, "search")
    for rate, judged in ((0.004, False), (0.1, True)):  # the recipe's own is not
        params = found["params"] | {"learning_rate": rate}
        promise = promised(context, Trajectory(None, params, 41, 0))
        assert promise == (found["value"] if judged else None)
    context.close()
    with_rate(tmp_path, 0.1)
    run(recipe, tmp_path)
    train = record(tmp_path, "train")
    first, second = train["trajectories"][0]["attempts"]
    assert first["learning_rate"] == 0.1
    assert first["value"] < first["promised"] == found["value"]
    assert second["learning_rate"] == train["params"]["learning_rate"] == 0.004
    assert second["kept"]
    assert train["trainings"] == train["evaluations"] == 2
    assert len(list((tmp_path / "members").iterdir())) == 3
    notes = json.loads((tmp_path / "results.json").read_text())["notes"]
    (note,) = [n for n in notes if "had promised" in n]
    assert "with the learning rate 0.1, and was given up" in note
    assert note in (tmp_path / "report.html").read_text().replace("&#39;", "'")


def test_without_retries_the_search_is_trusted(tiny_recipe: str, tmp_path: Path) -> None:
    trained(parse(tiny_recipe, [*LIGHT, "train.retries=0"]), tmp_path)
    train = record(tmp_path, "train")
    assert train["trajectories"][0]["attempts"] == []
    assert train["params"] == record(tmp_path, "search")["params"]


@pytest.mark.parametrize("order", ["random", "group_by_length"])
def test_where_none_keeps_it_one_goes_on_from_where_it_was_given_up(
    order: str, tiny_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promise(monkeypatch, OUT_OF_REACH)
    light = [*LIGHT, f"train.arguments.train_sampling_strategy={order}"]
    found = trained(parse(tiny_recipe, [*light, "train.retries=1"]), tmp_path / "tried")
    train = record(tmp_path / "tried", "train")
    first, second = train["trajectories"][0]["attempts"]
    assert second["learning_rate"] <= first["learning_rate"] / 2
    rates = [attempt["learning_rate"] for attempt in (first, second)]
    assert train["params"]["learning_rate"] in rates
    assert train["trainings"] == 2
    assert not (tmp_path / "tried/work").exists()
    arguments = [f"train.arguments.{name}={value!r}" for name, value in train["params"].items()]
    alone = parse(tiny_recipe, [*light, "search.trials=0", *arguments])
    promise(monkeypatch, None)
    assert found == trained(alone, tmp_path / "alone")


def half(*overrides: str) -> list[str]:
    return [*LIGHT, *overrides]


def test_half_the_rate_is_begun_too_and_the_chosen_one_is_as_if_trained_alone(
    tiny_recipe: str, tmp_path: Path
) -> None:
    arguments = "train.arguments={learning_rate: 0.004, lr_scheduler_type: constant}"
    fixed = "search.space={learning_rate: {choices: [0.004]}}"
    recipe = parse(tiny_recipe, [*half(arguments, fixed, "train.retries=1"), SHORT_ROWS])
    run(recipe, tmp_path / "half")
    train = record(tmp_path / "half", "train")
    first, second = train["trajectories"][0]["attempts"]
    assert [a["learning_rate"] for a in (first, second)] == [0.004, 0.002]
    assert all(a["kept"] and a["promised"] is None for a in (first, second))  # its own λ
    assert set(first) == {"learning_rate", "value", "promised", "kept"}
    assert train["trainings"] == train["evaluations"] == 2
    rate = train["params"]["learning_rate"]
    assert rate in (0.004, 0.002)
    notes = json.loads((tmp_path / "half/results.json").read_text())["notes"]
    (note,) = [n for n in notes if "several learning rates" in n]
    assert f"one reached {first['value']:.4f} with the learning rate 0.004, then one" in note
    assert f"went on with {rate:.4g}." in note
    plain = [f"train.arguments.{n}={v!r}" for n, v in train["params"].items()]
    alone = parse(tiny_recipe, [*LIGHT, arguments, "search.trials=0", *plain])
    assert members(tmp_path / "half") == trained(alone, tmp_path / "alone")


@pytest.mark.parametrize(("value", "goes_on"), [(0, 1), (-1, 0)])
def test_the_first_goes_on_from_where_it_waited_or_is_left(
    value: int, goes_on: int, tiny_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusetune.pipeline.halving.verdict", lambda *_: value)
    found = trained(parse(tiny_recipe, half()), tmp_path / "half")
    train = record(tmp_path / "half", "train")
    attempts = train["trajectories"][0]["attempts"]
    assert len(attempts) == 2
    assert train["params"]["learning_rate"] == attempts[goes_on]["learning_rate"]
    arguments = [f"train.arguments.{name}={value!r}" for name, value in train["params"].items()]
    assert found == trained(
        parse(tiny_recipe, [*LIGHT, "search.trials=0", *arguments]), tmp_path / "alone"
    )


def test_a_run_without_a_search_has_one_rate(tiny_recipe: str, tmp_path: Path) -> None:
    trained(parse(tiny_recipe, half("search.trials=0")), tmp_path)
    assert record(tmp_path, "train")["trajectories"][0]["attempts"] == []


def test_a_space_without_a_learning_rate(
    tiny_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promise(monkeypatch, OUT_OF_REACH)
    overrides = [
        *LIGHT,
        "train.retries=1",
        "search.space={weight_decay: {low: 0.0, high: 0.1}}",
        "train.arguments={learning_rate: 0.004}",
        "fuse.methods=[finetune, swa]",
    ]
    run(parse(tiny_recipe, overrides), tmp_path)
    rates = [
        a["learning_rate"] for a in record(tmp_path, "train")["trajectories"][0]["attempts"]
    ]
    assert rates == [0.004, 0.002]
    notes = json.loads((tmp_path / "results.json").read_text())["notes"]
    assert any("None reached it; the members are of the best, with 0.00" in n for n in notes)


def test_a_loss_that_is_no_number_is_an_attempt_too(
    tiny_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promise(monkeypatch, ANYTHING)
    own_rate = "train.arguments.learning_rate=0.001"
    recipe = parse(tiny_recipe, [*LIGHT, own_rate, "train.retries=1"])
    run(recipe, tmp_path, stage="search")
    with_rate(tmp_path, 1e30)
    run(recipe, tmp_path, stage="train")
    first, second = record(tmp_path, "train")["trajectories"][0]["attempts"]
    assert (first["value"], first["kept"]) == (None, False)
    assert (second["learning_rate"], second["kept"]) == (0.001, True)


KILLED = """
import os, signal, sys
from pathlib import Path
from fusetune.pipeline import attempts, run
from fusetune.recipe_file import parse

attempts.promised = lambda *_: 2.0
attempts.halving.verdict = lambda *_: -1
calls = 0

def die(kept, *, after):
    def wrapped(*arguments, **named):
        global calls
        calls += 1
        if calls == int(sys.argv[4]) and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        found = kept(*arguments, **named)
        if calls == int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    return wrapped

place, moment = sys.argv[3].split(":")
kind = attempts.Attempts
setattr(kind, place, die(getattr(kind, place), after=moment == "after"))
recipe = parse(Path(sys.argv[1]).read_text(), sys.argv[5:])
run(recipe, Path(sys.argv[2]), stage="train")
"""


@pytest.mark.parametrize(
    ("place", "call"),
    [("judge:before", 1), ("_set_aside:after", 1), ("judge:after", 2), ("restore:after", 1)],
)
def test_killed_as_it_judges_it_ends_as_if_undisturbed(
    place: str,
    call: int,
    tiny_recipe: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides = [*LIGHT, "train.retries=1"]
    recipe = parse(tiny_recipe, overrides)
    text, script = tmp_path / "recipe.yaml", tmp_path / "killed.py"
    text.write_text(tiny_recipe)
    script.write_text(textwrap.dedent(KILLED))
    killed = tmp_path / "killed"
    run(recipe, killed, stage="search")
    command = [sys.executable, str(script), str(text), str(killed), place, str(call)]
    ended = subprocess.run([*command, *overrides], env=dict(os.environ), check=False)
    assert ended.returncode == -signal.SIGKILL
    promise(monkeypatch, OUT_OF_REACH)
    monkeypatch.setattr("fusetune.pipeline.halving.verdict", lambda *_: -1)
    run(recipe, killed, stage="train")
    assert members(killed) == trained(recipe, tmp_path / "undisturbed")
    tried = [record(tmp_path / n, "train")["trajectories"] for n in ("killed", "undisturbed")]
    assert tried[0][0]["attempts"] == tried[1][0]["attempts"]
