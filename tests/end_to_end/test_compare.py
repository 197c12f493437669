from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fusetune.cli import app

SHORT = ("search.trials=0", "train.epochs=1", "train.members=3", "fuse.evaluations=6")


@pytest.fixture
def recipe(tiny_recipe: str, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_recipe)
    return path


def invoke(recipe: Path, out: Path, *options: str) -> tuple[int, str]:
    arguments = ["compare", str(recipe), *SHORT, "--out", str(out), *options]
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


def compare(recipe: Path, out: Path, *options: str) -> dict[str, Any]:
    code, output = invoke(recipe, out, *options)
    assert code == 0, output
    found: dict[str, Any] = json.loads((out / "comparison.json").read_text())
    return found | {"output": output}


def refused(recipe: Path, out: Path, *options: str) -> str:
    code, output = invoke(recipe, out, *options)
    assert code == 2, output
    return " ".join(output.split())


def rows(table: dict[str, Any]) -> list[str]:
    return [row["method"] for row in table["rows"]]


def test_seeds_and_methods_join_and_what_is_done_is_not_done_again(
    recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "compare"
    compare(recipe, out, "--seeds", "41", "--methods", "finetune,swa,greedy")
    fixed = out / "seed-41/fixed"
    before = (fixed / "results.json").read_bytes()
    table = compare(recipe, out, "--seeds", "41,42", "--methods", "finetune,swa,greedy")
    assert (fixed / "results.json").read_bytes() == before
    assert "complete, nothing to do" in table["output"]
    assert table["seeds"] == [41, 42]
    assert rows(table) == ["finetune", "swa", "greedy"]
    value = [
        json.loads((out / f"seed-{s}/fixed/results.json").read_text())["methods"]["swa"][
            "test"
        ]["accuracy"]["value"]
        for s in (41, 42)
    ]
    assert table["rows"][1]["test"]["mean"] == pytest.approx(sum(value) / 2)
    assert (out / "comparison.md").read_text().startswith("| method |")
    assert "\\toprule" in (out / "comparison.tex").read_text()
    greedy = (fixed / "methods/greedy.json").read_bytes()
    table = compare(recipe, out, "--seeds", "41", "--methods", "oracle,ema,swa")
    assert rows(table) == ["oracle", "ema", "swa"]
    assert table["rows"][0]["closed"] in (1.0, None)  # against a finetune that is not shown
    assert (fixed / "methods/greedy.json").read_bytes() == greedy
    assert "train: complete, nothing to do" in table["output"]


def test_a_grid_counts_all_its_trainings_and_goes_on_without_one_that_diverges(
    recipe: Path, tmp_path: Path
) -> None:
    grid = ("train.arguments.learning_rate=3e-3", "compare.learning_rates=[3e-3,1e-3,1e30]")
    out = tmp_path / "compare"
    table = compare(recipe, out, *grid, "--seeds", "41", "--methods", "finetune,grid")
    folders = sorted(path.name for path in (out / "seed-41").iterdir())
    assert folders == ["fixed", "grid-0.001", "grid-1e+30"]  # 3e-3 is the fixed one
    one, found = table["rows"]
    assert (one["trainings"], found["trainings"]) == (1, 2)
    assert (one["evaluations"], found["evaluations"]) == (3, 6)
    assert found["total_seconds"] > found["seconds"]
    results = [
        json.loads((out / f"seed-41/{name}/results.json").read_text())["methods"]["finetune"]
        for name in ("fixed", "grid-0.001")
    ]
    values = [r["validation"] for r in results]
    best = results[
        max((0, 1), key=lambda i: (values[i]["accuracy"]["value"], -values[i]["loss"]["value"]))
    ]
    assert found["test"]["mean"] == best["test"]["accuracy"]["value"]
    assert any(
        "grid goes without grid-1e+30: The full training diverged" in n for n in table["notes"]
    )


def test_a_row_without_a_result_is_named(recipe: Path, tmp_path: Path) -> None:
    broken = ("compare.learning_rates=[1e30]",)
    table = compare(
        recipe, tmp_path / "c", *broken, "--seeds", "41", "--methods", "finetune,grid"
    )
    assert rows(table) == ["finetune"]
    assert "The full training diverged" in table["missing"]["grid"]["41"]
    assert "grid is missing for seed 41" in (tmp_path / "c/comparison.md").read_text()


def test_procedures_with_searches_of_their_own(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "compare"
    search = ("search.trials=2", "search.pruner=none", "fuse.evaluations=4", "train.retries=0")
    names = "hpbo,bilevel:swa,bomf,swa_cyclic"
    table = compare(recipe, out, *search, "--seeds", "41", "--methods", names)
    found = {row["method"]: row for row in table["rows"]}
    assert list(found)[:3] == ["hpbo", "bilevel:swa", "bomf"]
    assert "bomf.consensus" in found
    assert not (out / "seed-41/fixed").exists()  # no row needs it
    trainings = {name: row["trainings"] for name, row in found.items()}
    assert trainings["hpbo"] == 2  # the best trial is not trained again
    assert trainings["bilevel:swa"] == 2
    assert trainings["bomf"] == 3
    assert trainings["swa_cyclic"] == 1
    checks = 3  # of each trial, on validation
    assert found["hpbo"]["evaluations"] == 2 * checks + 3
    assert found["bilevel:swa"]["evaluations"] == 2 * (checks + 1) + 1


def test_procedures_that_train_the_same_share_it(recipe: Path, tmp_path: Path) -> None:
    one = ("search.pruner=none", "fuse.evaluations=4", "train.retries=0")
    search = ("search.trials=2", *one, "--seeds", "41")
    together = tmp_path / "together"
    table = compare(recipe, together, *search, "--methods", "hpbo,bilevel:swa,bomf")
    assert not (together / "seed-41/shared").exists()  # nothing is left that could need it
    log = (together / "seed-41/bomf/run.log").read_text()
    assert "taken over from another run of the comparison" in log
    found = {row["method"]: row for row in table["rows"]}
    for name in ("bilevel:swa", "bomf"):
        alone = compare(recipe, tmp_path / name, *search, "--methods", name)
        (row,) = (row for row in alone["rows"] if row["method"] == name)
        for key in ("validation", "test", "trainings", "evaluations"):
            assert found[name][key] == row[key], (name, key)


def test_a_search_that_comes_back_to_the_recipes_rate_trains_nothing_anew(
    recipe: Path, tmp_path: Path
) -> None:
    own = (
        "train.arguments.learning_rate=3e-3",
        "train.arguments.per_device_train_batch_size=8",
    )
    once = ("search.pruner=none", "train.retries=0")
    search = (*own, "search.trials=2", *once, "search.epochs=0.1")
    options = (*search, "fuse.evaluations=4", "--seeds", "41", "--methods")
    together, alone = tmp_path / "together", tmp_path / "alone"
    compare(recipe, together, *options, "finetune")
    table = compare(recipe, together, *options, "finetune,bomf")
    seed = together / "seed-41"
    search_record = json.loads((seed / "bomf/stages/search.json").read_text())
    assert search_record["params"]["learning_rate"] == 3e-3
    assert "taken over from another run" in (seed / "bomf/run.log").read_text()
    before = {f.name: f.stat().st_ino for f in (seed / "fixed/evaluations").iterdir()}
    after = {f.name: f.stat().st_ino for f in (seed / "bomf/evaluations").iterdir()}
    assert before.items() <= after.items()  # nothing is evaluated anew
    single = compare(recipe, alone, *options, "bomf")
    compare(recipe, alone, *options, "finetune,bomf", "--force")  # nothing old is taken over
    assert "taken over" not in (alone / "seed-41/fixed/run.log").read_text()
    found, expected = table["rows"][1], single["rows"][0]
    assert found["method"] == expected["method"] == "bomf"
    for key in ("validation", "test", "trainings", "evaluations"):
        assert found[key] == expected[key], key
    assert found["trainings"] == 3
    trained = json.loads((seed / "fixed/stages/train.json").read_text())
    assert found["total_seconds"] > trained["seconds"]  # they count wherever they were spent


def test_seeds_share_a_database_without_sharing_studies(recipe: Path, tmp_path: Path) -> None:
    storage = f"storage=sqlite:///{tmp_path}/trials.db"
    options = (storage, "--seeds", "41,42", "--methods", "bo")
    first = compare(recipe, tmp_path / "a", *options)
    alone = compare(recipe, tmp_path / "b", "--seeds", "41,42", "--methods", "bo")
    timed = ("seconds", "total_seconds")
    for table in (first, alone):
        for row in table["rows"]:
            for name in timed:
                row.pop(name)
    assert first["rows"] == alone["rows"]


def test_bad_input(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "compare"
    assert "--seeds must be whole numbers" in refused(recipe, out, "--seeds", "41,x")
    assert "needs different seeds; given were 41, 41" in refused(
        recipe, out, "--seeds", "41,41"
    )
    unknown = refused(recipe, out, "--methods", "swa,bilvel")
    assert "Unknown method 'bilvel'" in unknown
    assert "Known are" in unknown
    assert "swa_cyclic" in unknown
    assert "search.trials is 0" in refused(recipe, out, "--methods", "hpbo")
    assert "no field" in refused(recipe, out, "train.arguments.learnig_rate=1")
    assert not out.exists()


def test_folders_of_something_else(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "compare"
    options = ("--seeds", "41", "--methods", "finetune,swa")
    compare(recipe, out, *options)
    fixed = out / "seed-41/fixed"
    assert "is itself a run folder" in refused(recipe, fixed, *options)
    shutil.copytree(fixed, out / "seed-43")
    assert "seed-43 is itself a run folder" in refused(recipe, out, "--seeds", "41,43")
    shutil.copytree(out / "seed-41", out / "seed-44")
    other = refused(recipe, out, "--seeds", "44", "--methods", "swa")
    assert "seed: 41 → 44" in other
