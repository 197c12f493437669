from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fusetune.errors import RunError, StageError
from fusetune.members.weights import FusionWeights
from fusetune.pipeline import run
from fusetune.pipeline.context import Context
from fusetune.pipeline.display import Display
from fusetune.pipeline.export import export_model
from fusetune.pipeline.workbench import open_members
from fusetune.recipe_file import load, parse
from fusetune.run import RunFolder


@pytest.fixture(scope="module")
def finished(tiny_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run(parse(tiny_recipe), tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def results(finished: RunFolder) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(finished.results.read_text())
    return content


def test_the_folder_is_the_one_that_the_map_shows(finished: RunFolder) -> None:
    names = {path.name for path in finished.path.iterdir()}
    assert {
        "recipe.yaml",
        "environment.json",
        "trials.journal",
        "members",
        "fused",
        "results.json",
        "report.html",
        "run.log",
    } <= names
    assert "work" not in names  # the Trainer's checkpoints are gone
    assert len(list(finished.members.glob("step-*/member.json"))) == 5


def test_results_have_the_promised_keys(results: dict[str, Any]) -> None:
    assert results["task"] == "sentiment"
    assert results["primary"] == "accuracy"
    assert results["members"] == 5
    rules = ["mobo", "mobo.consensus", "mobo.posterior", "mobo.knee"]
    assert list(results["methods"]) == ["finetune", "swa", "greedy", *rules]
    for entry in results["methods"].values():
        assert sum(entry["weights"]) == pytest.approx(1.0)
        for split in ("validation", "test"):
            assert set(entry[split]) == {"loss", "accuracy", "matthews_correlation"}
            for value in entry[split].values():
                assert value["low"] <= value["value"] <= value["high"]
                assert value["low"] < value["high"]


def test_evaluations_are_counted(results: dict[str, Any]) -> None:
    counts = {name: entry["evaluations"] for name, entry in results["methods"].items()}
    assert counts["finetune"] == 5
    assert counts["swa"] == 1
    assert 5 < counts["greedy"] <= 10
    assert counts["mobo"] == counts["mobo.knee"] == counts["mobo.posterior"] == 20
    # Its average is evaluated too, three points towards the uniform average, and up to three on
    # the way to its anchor, which the search has evaluated.
    assert 20 <= counts["mobo.consensus"] <= 27


def test_the_search_is_never_worse_on_validation(results: dict[str, Any]) -> None:
    accuracy = {
        name: entry["validation"]["accuracy"]["value"]
        for name, entry in results["methods"].items()
    }
    consensus = accuracy.pop("mobo.consensus")  # the one w that the search had not seen
    assert accuracy["mobo"] == max(accuracy.values())
    assert consensus >= accuracy["finetune"]
    assert accuracy["finetune"] > 0.6  # the members have learned something
    assert results["chosen"] == "mobo.consensus"


def test_what_each_member_adds(results: dict[str, Any]) -> None:
    weights = results["methods"][results["chosen"]]["weights"]
    carrying = [w for w in weights if w > 0]
    alone = len(carrying) == 1  # as good a metric, and no average with so low a loss
    assert [row["weight"] for row in results["contributions"]] == carrying * (not alone)
    for row in results["contributions"]:
        assert row["member"].startswith("step-")
        assert set(row["without"]) == {"loss", "accuracy", "matthews_correlation"}
    spare = [r["member"] for r in results["contributions"] if r["dispensable"]]
    hints = [note for note in results["notes"] if note.startswith("Fewer members")]
    assert len(hints) == bool(spare)


def test_the_fused_model_predicts_what_was_measured(
    finished: RunFolder, results: dict[str, Any]
) -> None:
    """Loaded as a user would, scored without any code of fusetune."""
    model = AutoModelForSequenceClassification.from_pretrained(finished.fused)
    tokenizer = AutoTokenizer.from_pretrained(finished.fused)
    data = Path(load(finished.recipe_file).task.data)  # type: ignore[arg-type]
    for split in ("validation", "test"):
        rows = [json.loads(line) for line in (data / f"{split}.jsonl").open()]
        batch = tokenizer([r["text"] for r in rows], padding=True, return_tensors="pt")
        labels = torch.tensor([model.config.label2id[r["label"]] for r in rows])
        with torch.inference_mode():
            output = model(**batch, labels=labels)
        accuracy = (output.logits.argmax(-1) == labels).float().mean().item()
        measured = results["methods"][results["chosen"]][split]
        assert accuracy == pytest.approx(measured["accuracy"]["value"])
        assert output.loss.item() == pytest.approx(measured["loss"]["value"], abs=1e-5)


def test_fusion_json_names_members_and_weights(
    finished: RunFolder, results: dict[str, Any]
) -> None:
    record = json.loads((finished.fused / "fusion.json").read_text())
    weights = [member["weight"] for member in record["members"]]
    assert weights == results["methods"][results["chosen"]]["weights"]
    assert record["method"] == results["chosen"]
    assert all(len(member["sha256"]) == 64 for member in record["members"])


def test_the_average_is_the_weighted_sum_of_the_files(
    finished: RunFolder, results: dict[str, Any]
) -> None:
    from safetensors.torch import load_file

    weights = results["methods"][results["chosen"]]["weights"]
    folders = sorted(finished.members.glob("step-*"))
    members = [load_file(folder / "model.safetensors") for folder in folders]
    fused = load_file(finished.fused / "model.safetensors")
    for name, tensor in fused.items():
        expected = sum(w * m[name].double() for w, m in zip(weights, members, strict=True))
        assert isinstance(expected, torch.Tensor)
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-7)


def test_running_again_does_nothing(finished: RunFolder, tiny_recipe: str) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.path.rglob("*.safetensors")}
    text = finished.results.read_text()
    run(parse(tiny_recipe), finished.path)
    assert finished.results.read_text() == text
    assert before == {p: p.stat().st_mtime_ns for p in finished.path.rglob("*.safetensors")}


def test_results_that_are_gone_are_written_again(
    finished: RunFolder, tiny_recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No training and no evaluation again; the same bits, and the card with its test values."""
    kept = RunFolder(shutil.copytree(finished.path, tmp_path / finished.path.name))
    model = (kept.fused / "model.safetensors").read_bytes()
    card = (kept.fused / "README.md").read_text()
    methods = json.loads(kept.results.read_text())["methods"]
    before = {p: p.stat().st_mtime_ns for p in kept.evaluations.rglob("*.npz")}
    assert before
    kept.report.unlink()
    run(parse(tiny_recipe), kept.path, display=Display())
    assert "report: complete, but without report.html" in capsys.readouterr().out
    assert kept.report.is_file()
    shutil.rmtree(kept.fused)
    with pytest.raises(StageError, match="fused is gone, which the stage fuse wrote"):
        run(parse(tiny_recipe), kept.path, stage="report")
    run(parse(tiny_recipe), kept.path, display=Display())
    said = capsys.readouterr().out
    assert "train: complete, nothing to do" in said
    assert "fuse: complete, but without fused" in said
    assert (kept.fused / "model.safetensors").read_bytes() == model
    assert (kept.fused / "README.md").read_text() == card
    assert json.loads(kept.results.read_text())["methods"] == methods
    assert {p: p.stat().st_mtime_ns for p in kept.evaluations.rglob("*.npz")} == before
    for folder in (kept.fused, kept.members):
        shutil.rmtree(folder)
    with pytest.raises(RunError, match="members is gone"):
        run(parse(tiny_recipe), kept.path)
    assert kept.done("fuse") is not None


def test_another_recipe_needs_force(finished: RunFolder, tiny_recipe: str) -> None:
    with pytest.raises(RunError, match=r"train\.members: 5 → 4"):
        run(parse(tiny_recipe, ["train.members=4"]), finished.path)


def test_a_stage_needs_the_ones_before(tiny_recipe: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="has not finished the stage search"):
        run(parse(tiny_recipe), tmp_path / "run", stage="fuse")


def test_export_of_another_method(
    finished: RunFolder, results: dict[str, Any], tmp_path: Path
) -> None:
    display = Display(quiet=True)
    export_model(finished.path, tmp_path / "swa", method="swa", weights=None, display=display)
    record = json.loads((tmp_path / "swa/fusion.json").read_text())
    assert [m["weight"] for m in record["members"]] == pytest.approx([0.2] * 5)
    own = "1,0,0,0,3"
    export_model(finished.path, tmp_path / "own", method=None, weights=own, display=display)
    record = json.loads((tmp_path / "own/fusion.json").read_text())
    assert [m["weight"] for m in record["members"]] == [0.25, 0, 0, 0, 0.75]
    with pytest.raises(RunError, match="must be 5 non-negative numbers"):
        export_model(finished.path, tmp_path / "x", method=None, weights="1,2", display=display)


def test_the_same_weights_give_the_same_bits_again(
    finished: RunFolder, results: dict[str, Any]
) -> None:
    """What the store remembers is what a new evaluation would give."""
    bench = open_members(Context(load(finished.recipe_file), finished, Display(quiet=True)))
    weights = FusionWeights(tuple(results["methods"]["mobo"]["weights"]))
    remembered = bench.evaluator("validation")(weights)
    bench.evaluations = None
    anew = bench.evaluator("validation")(weights)
    assert remembered.values == anew.values
    assert remembered.outputs is not None
    assert anew.outputs is not None
    assert np.array_equal(remembered.outputs.predictions, anew.outputs.predictions)


def test_rivals_rules_and_a_new_start(tiny_recipe: str, tmp_path: Path) -> None:
    """Another sampler in the place of `mobo`; a constraint; then the stage anew."""
    settings = [
        "search.trials=0",
        "train.epochs=2",
        "train.arguments={learning_rate: 1.0e-3}",
        "fuse.sampler=random",
        "fuse.methods=[finetune, mobo, tpe]",
        "fuse.evaluations=12",
        "fuse.constraint='loss <= 9, max accuracy'",
        "fuse.choose=constraint",
    ]
    folder = run(parse(tiny_recipe, settings), tmp_path / "run")
    results = json.loads(folder.results.read_text())
    searched = ["random", "random.consensus", "random.posterior", "random.knee"]
    assert list(results["methods"]) == ["finetune", *searched, "random.constraint", "tpe"]
    values = {n: entry["validation"] for n, entry in results["methods"].items()}
    member, constrained = (
        (values[name]["accuracy"]["value"], -values[name]["loss"]["value"])
        for name in ("finetune", "random.constraint")
    )
    best = "finetune" if member > constrained else "random.constraint"
    assert results["chosen"] == best  # of equal metrics the lower loss counts
    assert results["methods"]["tpe"]["evaluations"] == 12
    everything = "random.constraint"  # all w keep the bound: the same as the best
    assert results["methods"][everything]["weights"] == results["methods"]["random"]["weights"]

    settings[-2] = "fuse.constraint='loss <= 0, max accuracy'"
    settings[3] = "fuse.sampler=mobo"
    display = Display(quiet=True)
    folder = run(parse(tiny_recipe, settings), tmp_path / "run", force=True, display=display)
    results = json.loads(folder.results.read_text())
    assert "mobo.constraint" not in results["methods"]
    assert results["chosen"] in ("finetune", "mobo", "tpe")  # the best on validation instead
    assert any("no evaluated w keeps loss <= 0" in note for note in results["notes"])
    context = Context(load(folder.recipe_file), folder, display)
    assert context.loop().names() == ["fuse", "fuse-tpe"]  # no study of the other sampler


@pytest.mark.parametrize("objective", ["fused", "fused:swa"])
def test_bilevel_search(tiny_recipe: str, tmp_path: Path, objective: str) -> None:
    recipe = parse(
        tiny_recipe,
        [
            f"search.objective={objective}",
            "search.variant=full",
            "search.trials=2",
            "search.pruner=none",
            "train.epochs=2",
            "search.epochs=2",
            "fuse.evaluations=12",
        ],
    )
    folder = run(recipe, tmp_path / "run")
    record = folder.done("search")
    assert record is not None
    results = json.loads(folder.results.read_text())
    # The winner is trained again with the same seed: the same trajectory, the same value.
    method = "swa" if objective.endswith("swa") else "mobo"
    found = results["methods"][method]["validation"]["accuracy"]["value"]
    assert record["value"] == pytest.approx(found)
