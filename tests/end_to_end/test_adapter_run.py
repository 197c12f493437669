"""Whole runs of adapters on a mixture of experts, and finished adapters whose head is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from typer.testing import CliRunner

from fusetune.cli import app
from fusetune.errors import RecipeError
from fusetune.pipeline import export_model, run
from fusetune.pipeline.display import Display
from fusetune.recipe_file import parse

WORDS = ["<pad>", "</s>", *"abcdefgh"]
IDS = torch.tensor([[2, 3, 4, 5], [6, 7, 8, 9]])
RECIPE = """
task:
  kind: generation
  data: {data}
  prompt: "{{{{ ask }}}} "
  reference: say
  metrics: [exact_match]
  options: {{generation: {{max_new_tokens: 2}}}}
model:
  name: {model}
  precision: float32
  device: cpu
  lora: {{rank: 2, alpha: 4, target_modules: all-linear}}
search: {{trials: 0}}
train:
  epochs: 2
  members: 3
  arguments: {{learning_rate: 1.0e-2, per_device_train_batch_size: 8}}
fuse: {{evaluations: 6, methods: [finetune, swa, mobo]}}
"""


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts with its tokenizer, and rows of a task."""
    folder = tmp_path_factory.mktemp("mixture")
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends).save_pretrained(folder / "base")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    ids = {"vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    config = Qwen3MoeConfig(**sizes, **heads, **experts, **ids)
    Qwen3MoeForCausalLM(config).save_pretrained(folder / "base")
    letters = WORDS[2:]
    rows = [{"ask": f"{a} {b}", "say": b} for a in letters for b in letters if a != b]
    (folder / "data").mkdir()
    for name, part in (("train", rows[:40]), ("validation", rows[40:48]), ("test", rows[48:])):
        text = "\n".join(json.dumps(row) for row in part)
        (folder / "data" / f"{name}.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="module")
def finished(mixture: Path) -> Path:
    text = RECIPE.format(data=mixture / "data", model=mixture / "base")
    return run(parse(text), mixture / "run").path


def merged(mixture: Path, weights: list[float]) -> dict[str, torch.Tensor]:
    """The average of the merged models, by PEFT and by hand."""
    total: dict[str, torch.Tensor] = {}
    members = sorted((mixture / "run" / "members").iterdir())
    for member, weight in zip(members, weights, strict=True):
        base = AutoModelForCausalLM.from_pretrained(mixture / "base")
        adapted = peft.PeftModel.from_pretrained(base, member).merge_and_unload()
        for name, tensor in adapted.state_dict().items():
            total[name] = total.get(name, torch.zeros(())) + weight * tensor.double()
    return total


def test_experts_are_trained_collected_and_fused(mixture: Path, finished: Path) -> None:
    (member, *_) = sorted((finished / "members").iterdir())
    assert any(
        "experts.base_layer.lora_A" in n
        for n in load_file(member / "adapter_model.safetensors")
    )
    display = Display(quiet=True)
    for form in ("merged", "adapter"):
        out = mixture / form
        export_model(finished, out, method="swa", weights=None, display=display, form=form)
        model = AutoModelForCausalLM.from_pretrained(mixture / "base")
        if form == "merged":
            model = AutoModelForCausalLM.from_pretrained(out)
        else:
            model = peft.PeftModel.from_pretrained(model, out).merge_and_unload()
        wanted = merged(mixture, [1 / 3] * 3)
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor.double(), wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("option", ["dropout=0.1", "dora=true"])
def test_what_experts_do_not_take_is_said(option: str, mixture: Path, tmp_path: Path) -> None:
    text = RECIPE.format(data=mixture / "data", model=mixture / "base")
    with pytest.raises(RecipeError, match="take neither dropout nor DoRA"):
        run(parse(text, [f"model.lora.{option}"]), tmp_path / "run")


def test_finished_adapters_of_experts_are_fused_by_command(
    mixture: Path, finished: Path, tmp_path: Path
) -> None:
    for i, member in enumerate(sorted((finished / "members").iterdir())):
        shutil.copytree(member, tmp_path / f"checkpoint-{i + 1}")
        (tmp_path / f"checkpoint-{i + 1}" / "member.json").unlink()
    said = CliRunner().invoke(app, ["members", str(tmp_path)])
    assert said.exit_code == 0, said.output
    data = str(mixture / "data" / "validation.jsonl")
    columns = ["--prompt", "{{ ask }} ", "--reference", "say", "--metrics", "exact_match"]
    arguments = ["fuse", "--members", f"{tmp_path}/checkpoint-*", "--data", data, *columns]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run" / "fused" / "model.safetensors").is_file()


def test_a_lost_head_is_refused_by_the_command(
    tiny_model: Path, sentiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    AutoModel.from_pretrained(tiny_model).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "base")
    for i in (1, 2):
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
        config = peft.LoraConfig(target_modules=["query"], r=2)
        peft.get_peft_model(model, config).save_pretrained(tmp_path / f"checkpoint-{i}")
    data = str(sentiment / "validation.jsonl")
    asked = ["--text", "text", "--label", "label", "--metrics", "accuracy"]
    kind = ["--kind", "sequence-classification", "--labels", "bad,good"]
    members = ["--members", f"{tmp_path}/checkpoint-*"]
    done = CliRunner().invoke(app, ["fuse", *members, "--data", data, *asked, *kind])
    assert done.exit_code == 2
    assert "classifier.weight of BertForSequenceClassification stand neither in" in done.output
    assert not list(Path().glob("runs/*/fused"))
