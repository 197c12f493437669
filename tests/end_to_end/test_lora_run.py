from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from fusetune.errors import RecipeError
from fusetune.pipeline import export_model, run
from fusetune.pipeline.display import Display
from fusetune.recipe_file import parse
from fusetune.training.collect import MemberCollector

LORA = (
    "model.lora={rank: 8, alpha: 16, target_modules: all-linear}",
    "model.lora.modules_to_save=[word_embeddings]",
    "search.space.learning_rate={low: 0.003, high: 0.01, log: true}",
    "search.variant={lora_rank: 2}",
    "search.trials=2",
    "train.members=4",
    "train.epochs=6",
    "fuse.evaluations=10",
    "fuse.methods=[finetune, swa, learned, twa, fisher, model_stock, mobo]",
)
IDS = torch.tensor([[2, 5, 9, 13, 3], [2, 8, 8, 15, 3]])


@pytest.fixture(scope="module")
def finished(tiny_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "run"
    run(parse(tiny_recipe, [*LORA]), path)
    return path


def test_members_are_adapters_and_the_fused_model_is_plain(finished: Path) -> None:
    members = sorted((finished / "members").iterdir())
    assert len(members) == 4
    for member in members:
        assert not (member / "model.safetensors").exists()
        adapter = load_file(member / "adapter_model.safetensors")
        assert any("lora_A" in name for name in adapter)
        assert "base_model.model.classifier.weight" in adapter
        config = json.loads((member / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (8, 16)
        assert len(json.loads((member / "member.json").read_text())["base"]) == 64
    fused = AutoModelForSequenceClassification.from_pretrained(finished / "fused").eval()
    assert fused.config.id2label == {0: "bad", 1: "good"}
    results = json.loads((finished / "results.json").read_text())
    rows = results["methods"]
    assert rows.keys() >= {"finetune", "swa", "learned", "twa", "fisher", "model_stock", "mobo"}
    assert rows["mobo"]["validation"]["accuracy"]["value"] > 0.6
    assert results["adapters"]["averaged"] == "exact"
    assert results["adapters"]["distance_of_factors"] > 0.0
    assert any("averaging A and B apart" in note for note in results["notes"])
    # The folder's model is the sum of the base and Σ w_i s B_i A_i, with the head averaged.
    fusion = json.loads((finished / "fused" / "fusion.json").read_text())
    weights = [m["weight"] for m in fusion["members"]]
    if all(weight is not None for weight in weights):
        heads = [
            load_file(m / "adapter_model.safetensors")["base_model.model.classifier.weight"]
            for m in members
        ]
        wanted = sum(w * head for w, head in zip(weights, heads, strict=True))
        torch.testing.assert_close(fused.classifier.weight, wanted, rtol=1e-5, atol=1e-6)


def test_one_adapter_of_a_finished_run_is_the_merged_model(
    finished: Path, tmp_path: Path
) -> None:
    display = Display(quiet=True)
    models = {}
    for form in ("merged", "adapter"):
        out = tmp_path / form
        export_model(finished, out, method="swa", weights=None, display=display, form=form)
        if form == "merged":
            models[form] = AutoModelForSequenceClassification.from_pretrained(out).eval()
        else:
            config = json.loads((out / "adapter_config.json").read_text())
            assert config["r"] == 4 * 8
            base = AutoModelForSequenceClassification.from_pretrained(
                config["base_model_name_or_path"], config=models["merged"].config
            )
            models[form] = peft.PeftModel.from_pretrained(base, out).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            models["merged"](IDS).logits, models["adapter"](IDS).logits, rtol=1e-4, atol=1e-5
        )


def test_a_training_that_was_cut_off_goes_on_from_its_adapter(
    finished: Path, tiny_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "again"
    recipe = parse(tiny_recipe, [*LORA, "fuse.export=adapter-svd:8", "fuse.methods=[swa]"])
    run(recipe, path, stage="search")
    save = MemberCollector.save

    def cut_off(self: MemberCollector, *member: Any) -> Path:
        if len(list(self.folder.glob("step-*"))) == 3:
            raise KeyboardInterrupt
        return save(self, *member)

    monkeypatch.setattr(MemberCollector, "save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, path, stage="train")
    monkeypatch.undo()
    assert any((path / "work").rglob("checkpoint-*/adapter_model.safetensors"))
    run(recipe, path, stage="train")
    for member in sorted((finished / "members").iterdir()):
        ours = load_file(path / "members" / member.name / "adapter_model.safetensors")
        theirs = load_file(member / "adapter_model.safetensors")
        assert all(torch.equal(t, theirs[n]) for n, t in ours.items())
    run(recipe, path)
    fusion = json.loads((path / "fused" / "fusion.json").read_text())
    assert fusion["adapter"]["rank"] == 8
    assert 0.0 < fusion["adapter"]["relative_error"] < 1.0
    results = json.loads((path / "results.json").read_text())
    assert any("cut to rank 8" in note for note in results["notes"])
    assert "PeftModel" in (path / "fused" / "README.md").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["search.variant={lora_rank: 2}"], "model.lora, which is not set"),
        (["model.lora={rank: 8}"], "with model.lora all layers are frozen"),
        (["model.lora={rank: 2}", "search.variant={lora_rank: 2}"], "is not below"),
        (["fuse.export=adapter"], "model.lora is not set"),
        (["fuse.export=adapter-svd:0"], "fuse.export is 'adapter-svd:0'"),
        ([*LORA, "model.lora.dora=true", "fuse.export=adapter-svd:2"], "not cut to a rank"),
        ([*LORA, "fuse.adapters=factors", "fuse.averaging=streaming"], "is of merged weights"),
    ],
)
def test_recipes_that_do_not_fit_together(
    overrides: list[str], message: str, tiny_recipe: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(tiny_recipe, overrides)


def test_modules_that_the_model_lacks(tiny_recipe: str, tmp_path: Path) -> None:
    overrides = [*LORA, "model.lora.target_modules=[no_such_layer]"]
    with pytest.raises(RecipeError, match="PEFT cannot adapt BertForSequenceClassification"):
        run(parse(tiny_recipe, overrides), tmp_path / "run")
