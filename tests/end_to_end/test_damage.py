"""A damaged file of a run folder ends in one message, and doing what it advises works."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2Model
from typer.testing import CliRunner

from fusetune.cli import app
from fusetune.errors import ModelError, RunError
from fusetune.files.record import read_record, shaped
from fusetune.models.load import resolve
from fusetune.pipeline.kept import KeptTrial
from fusetune.pipeline.push import prepare
from fusetune.pipeline.saved import saved, saved_results
from fusetune.run import SHAPES, STAGES, RunFolder

TORN = [
    "",
    '{"',
    "[]",
    "null",
    '"text"',
    "\x00\xff",
    "[" * 100_000,
    '{"a": NaN}',
    '{"a": 1e999',
]


@pytest.fixture
def run(quick_run: RunFolder, tmp_path: Path) -> RunFolder:
    shutil.copytree(quick_run.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def change(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **changes}))


def said(*given: str) -> str:
    result = CliRunner().invoke(app, list(given))
    assert result.exit_code in (0, 2), result.exception
    return result.output if result.exit_code == 2 else ""


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("text", TORN)
def test_a_record_that_is_torn_or_no_object_is_named(
    stage: str, text: str, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    folder.record(stage).parent.mkdir()
    folder.record(stage).write_text(text)
    with pytest.raises(RunError, match=rf"{stage}\.json (cannot be read|is damaged): "):
        folder.recorded(stage)
    folder.drop_damaged(stage)
    assert folder.recorded(stage) is None


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("search", {"params": []}), ("search", {"seconds": "x"}), ("search", {"trial": "0"}),
        ("train", {"members": "x"}), ("train", {"members": [1]}), ("train", {"params": None}),
        ("train", {"paths": ["a"]}), ("train", {"trajectories": [{}]}),
        ("fuse", {"chosen": "nobody"}), ("fuse", {"methods": []}), ("fuse", {"load": {}}),
        ("fuse", {"notes": [1]}), ("fuse", {"methods": {"swa": {"point": []}}}),
    ],
)  # fmt: skip
def test_a_record_of_another_shape_is_named(
    stage: str, changes: dict[str, Any], run: RunFolder
) -> None:
    change(run.record(stage), **changes)
    with pytest.raises(RunError, match=rf"{stage}\.json is damaged: [a-z]") as info:
        run.recorded(stage)
    assert "pydantic" not in str(info.value)
    assert "Remove it and run again" in info.value.hint


def test_every_record_of_a_run_has_the_shape_that_is_asked_of_it(quick_run: RunFolder) -> None:
    for stage in STAGES:
        assert quick_run.recorded(stage) is not None
    assert set(SHAPES) == set(STAGES)
    assert saved_results(quick_run)
    assert saved(quick_run, "swa") is not None


@pytest.mark.parametrize(
    "weights", [[1.0], [0.5, 0.25, 0.25, 0.25], ["x"] * 4, {}, [[1]] * 4, 7, [None] * 4]
)
def test_weights_that_are_none_of_the_runs_are_named(weights: Any, run: RunFolder) -> None:
    fuse = json.loads(run.record("fuse").read_text())
    fuse["methods"]["swa"]["point"] = {"weights": weights}
    run.record("fuse").write_text(json.dumps(fuse))
    with pytest.raises(RunError, match=r"fuse\.json is damaged"):
        saved_results(run)
    change(run.methods / "swa.json", point={"weights": weights})
    with pytest.raises(RunError, match=r"swa\.json is damaged.*Remove it"):
        saved(run, "swa")


def test_what_a_record_names_lies_in_its_folder(run: RunFolder) -> None:
    record = json.loads(run.record("train").read_text())
    for name in ("../elsewhere", "/etc/passwd", "a/b", "x\0"):
        record["trajectories"][0]["members"] = [name]
        run.record("train").write_text(json.dumps(record))
        with pytest.raises(RunError, match="is not the name of a file in its folder"):
            run.recorded("train")


def test_the_advice_works(run: RunFolder) -> None:
    recipe = str(run.recipe_file)
    for stage in ("search", "train", "fuse"):
        run.record(stage).write_text('{"')
        assert f"{stage}.json cannot be read" in said("report", str(run.path), "-q")
        assert f"{stage}.json" in said("run", str(run.path), "-q")
        assert said(stage, recipe, "--force", "--out", str(run.path), "-q") == ""
    run.record("fuse").write_text("{}")
    assert "fuse.json is damaged" in said("export", str(run.path), "--out", "nowhere")
    run.record("fuse").unlink()
    assert said("run", recipe, "--out", str(run.path), "-q") == ""
    assert run.done("report") is not None


def test_a_damaged_recipe_of_a_folder_says_what_to_do(run: RunFolder) -> None:
    for text in ("[]", "a: [", "just text"):
        run.recipe_file.write_text(text)
        with pytest.raises(RunError, match="or remove it"):
            run.stored_recipe()


@pytest.mark.parametrize("name", ["../up", "/etc/passwd"])
def test_a_kept_trial_is_read_with_its_shape(name: str, tmp_path: Path) -> None:
    file = tmp_path / "trial.json"
    for content in ({}, {"params": {}, "members": [name], "steps": 1}, [], {"members": 1}):
        file.write_text(json.dumps(content))
        with pytest.raises(RunError, match=r"trial\.json is damaged"):
            read_record(file, KeptTrial.from_json)
    file.write_text(json.dumps({"params": {}, "members": [3], "steps": 4, "start": None}))
    assert read_record(file, KeptTrial.from_json) == KeptTrial({}, (3,), 4)
    assert read_record(tmp_path / "none.json", shaped(SHAPES["fuse"])) is None


@pytest.mark.parametrize("name", ["notes.txt", "README.md", "adapter_config.json", "folder"])
def test_links_are_not_published(name: str, run: RunFolder, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("PRIVATE")
    place = run.fused / name
    place.unlink(missing_ok=True)
    place.symlink_to(secret if name != "folder" else tmp_path)
    for folder in (run.path, run.fused):
        with pytest.raises(RunError, match=f"{name} is a link.*published"):
            prepare(folder, "me/x")


def test_a_linked_model_is_not_published(run: RunFolder, tmp_path: Path) -> None:
    shutil.move(run.fused, tmp_path / "private")
    run.fused.symlink_to(tmp_path / "private")
    with pytest.raises(RunError, match="fused is a link"):
        prepare(run.path, "me/x")


def test_a_base_model_none_of_whose_weights_fit_is_an_error(
    tiny_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification as Classifier

    assert resolve(str(tiny_model)).build(Classifier.from_pretrained) is not None
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    gpt = GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9)
    GPT2Model(gpt).save_pretrained(tmp_path / "gpt")
    shutil.copy(tmp_path / "gpt/model.safetensors", other / "model.safetensors")
    with pytest.raises(ModelError, match="None of the weights in other fit a BertForSeq"):
        resolve(str(other)).build(Classifier.from_pretrained)
