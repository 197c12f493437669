"""A whole run of adapters on a quantised LLaMA: what is written is what was evaluated."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaModel,
)

import fusetune
from fusetune.errors import ModelError, RecipeError
from fusetune.members.base import load_base
from fusetune.members.pool import inspect
from fusetune.models import quantised_load
from fusetune.pipeline import export_model, run
from fusetune.pipeline import finished as files
from fusetune.pipeline.context import Context
from fusetune.pipeline.display import Display
from fusetune.pipeline.workbench import open_members
from fusetune.recipe_file import parse
from fusetune.run import RunFolder
from fusetune.training.collect import MemberCollector

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="quantised layers are of bitsandbytes",
)
SETTINGS = (
    "model.quantization=4bit",
    "model.lora={rank: 8, alpha: 16, target_modules: all-linear}",
    "search.space.learning_rate={low: 0.003, high: 0.01, log: true}",
    "search.variant={lora_rank: 2}",
    "search.trials=2",
    "train.members=4",
    "train.epochs=3",
    "fuse.evaluations=10",
    "fuse.methods=[finetune, swa, learned, twa, model_stock, mobo]",
)


@pytest.fixture(scope="module")
def recipe(tiny_recipe: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny recipe with a LLaMA in the place of its model."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    shutil.copytree(tiny_model, folder)
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=22, num_attention_heads=2, pad_token_id=0, **sizes)
    LlamaModel(config).save_pretrained(folder)
    return tiny_recipe.replace(str(tiny_model), str(folder))


@pytest.fixture(scope="module")
def finished(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantised") / "run"
    run(parse(recipe, [*SETTINGS]), path)
    return path


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[2, 5, 9, 13, 3], [2, 8, 8, 15, 3]])).logits


@needs_package
def test_both_forms_of_the_fused_model_are_the_evaluated_one(
    finished: Path, recipe: str, tmp_path: Path
) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert results["methods"]["mobo"]["validation"]["accuracy"]["value"] > 0.6
    assert results["adapters"]["quantization"] == "4bit nf4, double"
    assert any("The base model is quantised (4bit" in note for note in results["notes"])
    context = Context(parse(recipe, [*SETTINGS]), RunFolder(finished), Display(quiet=True))
    bench = open_members(context)
    chosen = json.loads((finished / "fused" / "fusion.json").read_text())
    assert chosen["quantization"] == "4bit nf4, double"
    for form in ("merged", "adapter"):
        out = tmp_path / form
        export_model(finished, out, method="swa", display=Display(quiet=True), form=form)
    bench.average.into_model(fusetune.FusionWeights.uniform(4))
    evaluated = logits(bench.average.model)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert plain.dtype == torch.float32
    torch.testing.assert_close(logits(plain), evaluated, rtol=1e-4, atol=1e-5)
    base = load_base(bench.pool.members[0])  # quantised as the member's configuration says
    alone = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert alone.peft_config["default"].r == 4 * 8
    torch.testing.assert_close(logits(alone), evaluated, rtol=1e-4, atol=1e-5)
    # The plain model gives the values that the report has of it.
    scorer = context.scorer("validation")
    value = results["methods"]["swa"]["validation"]["loss"]["value"]
    assert scorer(plain).values["loss"] == pytest.approx(value, rel=1e-4)


@needs_package
def test_a_training_that_was_cut_off_goes_on_to_the_same_members(
    finished: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, wanted = tmp_path / "again", parse(recipe, [*SETTINGS, "fuse.export=adapter-svd:8"])
    run(wanted, path, stage="search")
    save = MemberCollector.save

    def cut_off(self: MemberCollector, *member: Any) -> Path:
        if len(list(self.folder.glob("step-*"))) == 2:
            raise KeyboardInterrupt
        return save(self, *member)

    monkeypatch.setattr(MemberCollector, "save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(wanted, path, stage="train")
    monkeypatch.undo()
    run(wanted, path, stage="train")
    members = sorted((finished / "members").iterdir())
    assert len(members) == 4
    for member in members:
        ours = load_file(path / "members" / member.name / "adapter_model.safetensors")
        theirs = load_file(member / "adapter_model.safetensors")
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
        assert files.read(inspect([member]).members[0]).quantization == "4bit"


@needs_package
def test_the_library_takes_a_base_that_the_caller_quantised(
    finished: Path, tmp_path: Path
) -> None:
    members = sorted((finished / "members").iterdir())
    made = load_base(inspect(members).members[0])

    def evaluate(model: nn.Module) -> dict[str, float]:
        return {"loss": float(logits(model).square().sum())}

    found = fusetune.fuse(
        members, evaluate=evaluate, objectives=["loss"], model_init=lambda: made, budget=8
    )
    values = [candidate.values["loss"] for candidate in found.candidates]
    assert found.values["loss"] <= min(values[:4])
    saved = found.save(tmp_path / "fused")
    plain = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    assert evaluate(plain)["loss"] == pytest.approx(found.values["loss"], rel=1e-4)


@needs_package
def test_levels_that_are_stored_are_taken_with_adapters(recipe: str, tmp_path: Path) -> None:
    name = parse(recipe).model.name
    packing = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["score"]
    )
    stored = tmp_path / "stored"
    shutil.copytree(name, stored, ignore=shutil.ignore_patterns("*.safetensors"))
    LlamaModel.from_pretrained(
        name, quantization_config=packing, device_map={"": "cpu"}
    ).save_pretrained(stored)
    text = recipe.replace(name, str(stored))
    rest = SETTINGS[1:]
    short = ["search.trials=0", "train.epochs=1", "fuse.methods=[swa]", "search.variant=full"]
    made = run(parse(text, [*rest, *short]), tmp_path / "run")
    fused = json.loads((made.fused / "fusion.json").read_text())
    assert fused["quantization"] == "4bit nf4"
    context = Context(parse(text, [*rest, *short]), made, Display(quiet=True))
    plain = AutoModelForSequenceClassification.from_pretrained(made.fused).eval()
    assert context.scorer("validation")(plain).values["loss"] == pytest.approx(
        fused["validation"]["loss"], rel=1e-4
    )
    for overrides, error, message in (
        (["model.quantization=8bit", *rest], ModelError, "are stored in 4bit"),
        ([], ModelError, "Only adapters on weights of bitsandbytes"),
        ([*rest, "fuse.methods=[fisher]"], RecipeError, "stored is quantised: .*fisher"),
    ):
        with pytest.raises(error, match=message):
            run(parse(text, [*overrides]), tmp_path / "refused")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.quantization=4bit"], "set model.lora"),
        ([*SETTINGS, "fuse.methods=[fisher]"], "fisher follows gradients"),
        ([*SETTINGS, "search.objective=fused:fisher"], "fisher follows gradients"),
        ([*SETTINGS, "fuse.averaging=streaming"], "writes averages into the base"),
        ([*SETTINGS, "model.quantization=3bit"], "model.quantization"),
    ],
)
def test_recipes_that_do_not_fit_together(
    overrides: list[str], message: str, tiny_recipe: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(tiny_recipe, overrides)


def test_models_that_cannot_be_quantised(
    tiny_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for overrides, message in (
        (["model.name=smollm2"], "levels already"),
        (["model.gguf_file=some.gguf"], "levels already"),
    ):
        with pytest.raises(ModelError, match=message):
            run(parse(tiny_recipe, [*SETTINGS, *overrides]), tmp_path / "run")
    monkeypatch.setattr(quantised_load.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"fusetune\[quantized\]"):
        run(parse(tiny_recipe, [*SETTINGS]), tmp_path / "run")
