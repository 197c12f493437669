"""Weights and studies that come from other tools, and go to them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from safetensors.torch import load_file

from fusetune.errors import RecipeError, RunError
from fusetune.members.mergekit import LinearMerge
from fusetune.optimization.storage import open_existing, open_storage
from fusetune.pipeline import run
from fusetune.pipeline.display import Display
from fusetune.pipeline.export import export_model
from fusetune.pipeline.studies import copy_to, listed
from fusetune.recipe_file import load, parse
from fusetune.run import RunFolder

DISPLAY = Display(quiet=True)


@pytest.fixture
def finished(quick_run: RunFolder) -> RunFolder:
    return quick_run


def weights_in(folder: Path) -> list[float]:
    record = json.loads((folder / "fusion.json").read_text())
    return [member["weight"] for member in record["members"]]


def test_the_front_is_a_folder_of_small_recipes(finished: RunFolder, tmp_path: Path) -> None:
    files = sorted(finished.front.iterdir())
    assert [file.name for file in files] == [
        f"point-{i:02}.yaml" for i in range(1, 1 + len(files))
    ]
    values = [LinearMerge.read(file).extra["validation"] for file in files]
    for a in values:  # no point beats another, and nothing that was evaluated beats any
        assert not any(
            b["loss"] < a["loss"]
            and b["accuracy"] > a["accuracy"]
            and b["matthews_correlation"] > a["matthews_correlation"]
            for b in [*values, *_evaluated(finished)]
        )
    assert [v["accuracy"] for v in values] == sorted(
        (v["accuracy"] for v in values), reverse=True
    )
    best = max(v["accuracy"] for v in _evaluated(finished))
    assert values[0]["accuracy"] == best
    export_model(finished.path, tmp_path / "m", pick=str(files[-1]), display=DISPLAY)
    assert sum(weights_in(tmp_path / "m")) == pytest.approx(1.0)
    record = json.loads((tmp_path / "m/fusion.json").read_text())
    assert record["method"] == files[-1].name
    assert record["validation"] == values[-1]


def _evaluated(finished: RunFolder) -> list[dict[str, float]]:
    study = optuna.load_study(study_name="fuse", storage=open_existing(finished.journal))
    return [dict(zip(study.metric_names or (), t.values, strict=True)) for t in study.trials]


def test_a_pick_by_bounds(finished: RunFolder, tmp_path: Path) -> None:
    values = {
        file: LinearMerge.read(file).extra["validation"] for file in finished.front.iterdir()
    }
    lowest = min(values, key=lambda file: values[file]["loss"])
    bound = "accuracy >= 0, min loss"
    export_model(finished.path, tmp_path / "m", pick=bound, display=DISPLAY)
    wanted = LinearMerge.read(lowest)
    kept = [w for w in weights_in(tmp_path / "m") if w > 0]
    assert kept == [w for w in wanted.weights if w > 0]
    with pytest.raises(
        RunError, match=r"keeps loss <= 0\. Nearest are:\n  .*point-\d+\.yaml: l"
    ):
        export_model(
            finished.path, tmp_path / "n", pick="loss <= 0, max accuracy", display=DISPLAY
        )
    with pytest.raises(RecipeError, match=r"no objective 'acuracy' \(did you mean accuracy"):
        export_model(
            finished.path, tmp_path / "n", pick="acuracy >= 0, min loss", display=DISPLAY
        )
    with pytest.raises(RunError, match="one of --method, --weights and --pick"):
        export_model(finished.path, tmp_path / "n", pick="x", method="swa", display=DISPLAY)
    assert not (tmp_path / "n").exists()


def mergekit() -> str:
    found = os.environ.get("MERGEKIT_YAML") or shutil.which("mergekit-yaml")
    if found is None:
        pytest.skip("mergekit-yaml is neither in MERGEKIT_YAML nor on the PATH")
    return found


def test_mergekit_makes_the_same_tensors(finished: RunFolder, tmp_path: Path) -> None:
    recipe = tmp_path / "recipes" / "merge.yaml"
    which = {"weights": "1,0,2,5"}
    export_model(finished.path, tmp_path / "ours", mergekit=recipe, display=DISPLAY, **which)
    subprocess.run(
        [mergekit(), str(recipe), str(tmp_path / "theirs")],
        check=True,
        capture_output=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    ours = load_file(tmp_path / "ours/model.safetensors")
    theirs = load_file(tmp_path / "theirs/model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-5, atol=1e-7)
    assert (tmp_path / "theirs/tokenizer.json").is_file()


def merge(*models: tuple[Any, float], **more: Any) -> str:
    entries = [{"model": m, "parameters": {"weight": w}} for m, w in models]
    return yaml.safe_dump({"merge_method": "linear", "models": entries, **more})


def test_a_merge_recipe_is_a_starting_point(finished: RunFolder, tmp_path: Path) -> None:
    names = sorted(path.name for path in finished.members.iterdir())
    file = tmp_path / "start.yaml"
    file.write_text(merge((names[0], 3), ({"model": {"path": f"/away/{names[3]}"}}, 1)))
    changed = tmp_path / "run"
    shutil.copytree(finished.path, changed)
    given = load(finished.recipe_file)
    recipe = parse(given.to_yaml(), [f"fuse.start={file}"])
    folder = run(recipe, changed, force=True)
    study = optuna.load_study(study_name="fuse", storage=open_existing(folder.journal))
    trial = study.trials[5]  # after four members and their average
    assert trial.user_attrs["origin"] == "given"
    assert trial.user_attrs["weights"] == [0.75, 0, 0, 0.25]
    model = (folder.fused / "model.safetensors").read_bytes()
    file.unlink()  # it was read once: what goes on after a kill needs it no more
    for record in ("stages/report.json", "stages/fuse.json", "methods/mobo.json"):
        (folder.path / record).unlink()
    run(recipe, folder.path)
    assert (folder.fused / "model.safetensors").read_bytes() == model

    unknown = tmp_path / "unknown.yaml"
    unknown.write_text(merge(("elsewhere/checkpoint-7", 1.0)))
    wanted = r"checkpoint-7, which is none of the members: step-0"
    with pytest.raises(RecipeError, match=wanted):
        run(parse(given.to_yaml(), [f"fuse.start={unknown}"]), changed, force=True)


def test_studies_go_to_a_storage_and_begin_a_search(
    tiny_recipe: str, finished: RunFolder, tmp_path: Path
) -> None:
    place = str(tmp_path / "all.journal")
    assert [row.name for row in listed(finished.path)] == ["fuse"]
    copy_to(finished.path, place, DISPLAY)
    copied = optuna.load_study(study_name="tiny/fuse", storage=open_existing(place))
    original = optuna.load_study(study_name="fuse", storage=open_existing(finished.journal))
    assert [t.values for t in copied.trials] == [t.values for t in original.trials]
    assert copied.trials[3].user_attrs == original.trials[3].user_attrs
    assert copied.metric_names == original.metric_names
    copy_to(finished.path, place, DISPLAY)  # again: nothing is doubled
    again = optuna.load_study(study_name="tiny/fuse", storage=open_existing(place))
    assert len(again.trials) == len(original.trials)

    # As `Trainer.hyperparameter_search` leaves it behind.
    other = optuna.create_study(
        study_name="hpo", storage=open_storage(place), direction="maximize"
    )
    rows = [(0.5, 2e-3, 0.0), (0.9, 5e-3, 0.05), (0.8, 0.5, 0.01), (0.7, 3e-3, 0.1)]
    spaces = {
        "learning_rate": optuna.distributions.FloatDistribution(1e-6, 1.0, log=True),
        "weight_decay": optuna.distributions.FloatDistribution(0.0, 0.3),
        "seed": optuna.distributions.IntDistribution(1, 40),
    }
    for value, rate, decay in rows:
        params = {"learning_rate": rate, "weight_decay": decay, "seed": 7}
        other.add_trial(
            optuna.trial.create_trial(value=value, params=params, distributions=spaces)
        )
    space = (
        "search.space={learning_rate: {low: 1.0e-3, high: 1.0e-2, log: true},"
        " weight_decay: {low: 0.0, high: 0.1}}"
    )
    start = f"search.start={{storage: '{place}', study: hpo, trials: 2}}"
    recipe = parse(tiny_recipe, ["search.trials=3", "search.epochs=0.2", space, start])
    folder = run(recipe, tmp_path / "run", stage="search")
    study = optuna.load_study(study_name="search", storage=open_existing(folder.journal))
    taken = [(t.params["learning_rate"], t.params["weight_decay"]) for t in study.trials]
    assert taken[:2] == [(5e-3, 0.05), (3e-3, 0.1)]  # 0.5 is outside of search.space
    origins = [t.user_attrs["origin"] for t in study.trials]
    assert origins == ["given", "given", "sobol"]

    recipe = parse(  # the recipe's own λ comes after them
        tiny_recipe,
        [
            "search.trials=4",
            "search.epochs=0.2",
            space,
            start,
            "train.arguments.learning_rate=2e-3",
        ],
    )
    folder = run(recipe, tmp_path / "named", stage="search")
    study = optuna.load_study(study_name="search", storage=open_existing(folder.journal))
    assert [t.user_attrs["origin"] for t in study.trials] == ["given"] * 3 + ["model"]
    assert study.trials[2].params == {"learning_rate": 2e-3, "weight_decay": 0.0}

    missing = "search.space={per_device_train_batch_size: {choices: [8, 16]}}"
    with pytest.raises(RunError, match="did not vary per_device_train_batch_size; it varied"):
        run(parse(tiny_recipe, ["search.trials=3", missing, start]), tmp_path / "other")
    nowhere = start.replace(place, f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(RunError, match=r"no storage sqlite:///.*none\.db"):
        run(parse(tiny_recipe, ["search.trials=3", space, nowhere]), tmp_path / "other")
    assert not (tmp_path / "none.db").exists()
