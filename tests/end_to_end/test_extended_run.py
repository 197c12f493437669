"""More of the same goes on in a run folder; data that change under a run stop it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fusetune.errors import RunError
from fusetune.pipeline import run
from fusetune.pipeline.context import Context
from fusetune.pipeline.display import Display
from fusetune.pipeline.environment import changed_data
from fusetune.pipeline.landscape import landscape
from fusetune.recipe_file import load, parse
from fusetune.run import RunFolder

SMALL = [
    "search.trials=2",
    "train.epochs=2",
    "train.members=3",
    "fuse.evaluations=6",
    "fuse.methods=[swa, mobo]",
]


def trials(folder: RunFolder, study: str) -> list[tuple[int, object]]:
    context = Context(load(folder.recipe_file), folder, Display(quiet=True))
    return [(t.number, t.datetime_start) for t in context.trials(study)]


def test_more_trials_evaluations_and_methods_go_on(tiny_recipe: str, tmp_path: Path) -> None:
    first = run(parse(tiny_recipe, SMALL), tmp_path / "run")
    searched, fused = trials(first, "search"), trials(first, "fuse")
    weights = {p.name for p in first.evaluations.rglob("*") if p.is_file()}
    more = [*SMALL, "fuse.evaluations=8", "fuse.methods=[swa, mobo, greedy]"]
    run(parse(tiny_recipe, more), first.path)
    assert trials(first, "search") == searched
    assert trials(first, "fuse")[:6] == fused  # not done again
    assert len(trials(first, "fuse")) == 8
    assert weights <= {p.name for p in first.evaluations.rglob("*") if p.is_file()}
    results = json.loads(first.results.read_text())
    assert {"swa", "mobo", "greedy"} <= results["methods"].keys()
    assert json.loads((first.methods / "mobo.json").read_text())["evaluations"] == 8
    run(parse(tiny_recipe, [*more, "search.trials=4"]), first.path)
    assert trials(first, "search")[:2] == searched
    assert len(trials(first, "search")) == 4
    taken = (first.done("search") or {})["trial"]
    assert (first.done("train") or {})["trajectories"][0]["trial"] == taken
    with pytest.raises(RunError, match=r"search\.trials: 4 → 3"):
        run(parse(tiny_recipe, [*more, "search.trials=3"]), first.path)


def test_a_better_trial_begins_the_training_anew(tiny_recipe: str, tmp_path: Path) -> None:
    folder = run(parse(tiny_recipe, SMALL), tmp_path / "run")
    record = folder.done("train")
    assert record is not None
    record["trajectories"][0]["trial"] = 77  # as if the search had found another one since
    folder.finish("train", record)
    before = trials(folder, "fuse")
    run(parse(tiny_recipe, SMALL), folder.path)
    taken = (folder.done("search") or {})["trial"]
    assert (folder.done("train") or {})["trajectories"][0]["trial"] == taken
    assert not set(before) & set(trials(folder, "fuse"))  # of the members that are gone
    assert folder.lost("fuse") == []
    assert folder.lost("report") == []


@pytest.fixture
def own_data(sentiment: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sentiment, tmp_path / "data"))


def exchange(data: Path, split: str) -> None:
    file = data / f"{split}.jsonl"
    text = file.read_text().replace('"good"', '"x"').replace('"bad"', '"good"')
    file.write_text(text.replace('"x"', '"bad"'))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_data_that_change_between_stages_stop_the_run(
    split: str, tiny_recipe: str, own_data: Path, tmp_path: Path
) -> None:
    recipe = parse(tiny_recipe, [*SMALL, "search.trials=0", f"task.data={own_data}"])
    folder = run(recipe, tmp_path / "run", stage="search")
    exchange(own_data, split)
    kept = (folder.path / "environment.json").read_bytes()
    for stage in (None, "train"):
        with pytest.raises(RunError, match=rf"changed .*: {split} \(\d+ rows as before"):
            run(recipe, folder.path, stage=stage)
    with pytest.raises(RunError, match="changed"):  # the search was of other data
        run(recipe, folder.path, stage="train", force=True)
    assert (folder.path / "environment.json").read_bytes() == kept
    exchange(own_data, split)  # put back
    run(recipe, folder.path, stage="train")
    exchange(own_data, split)
    run(recipe, folder.path, force=True, stage="search")
    assert folder.done("train") is None
    assert (folder.path / "environment.json").read_bytes() != kept


def test_a_finished_run_says_that_its_data_have_changed(
    tiny_recipe: str, own_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = parse(tiny_recipe, [*SMALL, "search.trials=0", f"task.data={own_data}"])
    folder = run(recipe, tmp_path / "run")
    before = (folder.path / "environment.json").read_bytes(), folder.results.read_bytes()
    lines = (own_data / "train.jsonl").read_text().splitlines(keepends=True)
    (own_data / "train.jsonl").write_text("".join(lines[:-1]))
    run(recipe, folder.path, display=Display(quiet=False))
    said = " ".join(capsys.readouterr().out.split())
    assert "data have changed since this run began: train (320 rows → 319 rows)" in said
    assert "report: complete, nothing to do" in said
    assert before == (
        (folder.path / "environment.json").read_bytes(),
        folder.results.read_bytes(),
    )
    folder.report.unlink()  # to write it again, the data would be read
    with pytest.raises(RunError, match="changed"):
        run(recipe, folder.path)
    with pytest.raises(RunError, match="changed"):
        landscape(folder.path, grid=2)


def test_a_damaged_record_of_the_data_is_told(tiny_recipe: str, tmp_path: Path) -> None:
    recipe = parse(tiny_recipe, [*SMALL, "search.trials=0"])
    folder = run(recipe, tmp_path / "run", stage="search")
    context = Context(recipe, folder, Display(quiet=True))
    assert changed_data(context) == ""
    for text in ("", "[]", '{"data": {"train": 3}}', '{"data": {"train": {"rows": "x"}}}'):
        (folder.path / "environment.json").write_text(text)
        with pytest.raises(RunError, match=r"environment\.json (is damaged|cannot be read)"):
            run(recipe, folder.path)
    (folder.path / "environment.json").unlink()
    assert changed_data(context) == ""
