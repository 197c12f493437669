"""A whole run of a multiple-choice task: adapters on a tiny LLaMA from its configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from fusetune.pipeline import run
from fusetune.recipe_file import parse
from tests import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    return tiny.save_rows(folder, tiny.place, train=200, validation=40, test=40)


@pytest.fixture(scope="module")
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = (data / "train.jsonl").read_text().splitlines()
    return tiny.save_llama(tmp_path_factory.mktemp("models") / "tiny-llama", texts)


def recipe(data: Path, base: Path) -> str:
    return f"""
seed: 41
task:
  kind: multiple-choice
  data: {data}
  name: places
  prompt: "{tiny.PLACE_PROMPT}"
  reference: answer
  metrics: [accuracy, group_accuracy]
  options: {{choices: [a, b, c], letters: true, group: kind}}
model:
  name: {base}
  precision: float32
  device: cpu
  lora: {{rank: 8, alpha: 16, target_modules: all-linear}}
search:
  trials: 2
  objective: best_member
  variant: {{lora_rank: 2}}
  epochs: 1
  space: {{learning_rate: {{low: 0.003, high: 0.02, log: true}}}}
train:
  epochs: 4
  members: 4
  collect_from: 0.5
  arguments: {{per_device_train_batch_size: 16}}
fuse:
  evaluations: 10
  methods: [finetune, swa, greedy, mobo]
"""


def test_a_run_from_recipe_to_report(data: Path, base: Path, tmp_path: Path) -> None:
    made = run(parse(recipe(data, base)), tmp_path / "run")
    results = json.loads(made.results.read_text())
    for entry in results["methods"].values():
        for split in ("validation", "test"):
            assert set(entry[split]) == {"loss", "accuracy", "group_accuracy"}
    found = {n: e["validation"]["accuracy"]["value"] for n, e in results["methods"].items()}
    assert found["mobo"] >= found["finetune"]
    assert found["mobo"] > 0.6  # chance is 0.39
    members = sorted((made.path / "members").iterdir())
    assert len(members) == 4
    assert any("lora_A" in n for n in load_file(members[0] / "adapter_model.safetensors"))

    model = AutoModelForCausalLM.from_pretrained(made.fused).eval()
    assert not any("lora" in name for name, _ in model.named_parameters())
    tokenizer = AutoTokenizer.from_pretrained(made.fused)
    rows = [json.loads(line) for line in (data / "test.jsonl").open()]
    right = 0
    for row in rows:
        listed = ", ".join(row[name] for name in "abc" if row[name])
        letters = "ABC"[: 2 + bool(row["c"])]
        said = [log_p(model, tokenizer, f"{listed}: which is the {row['place']}?", letter)
                for letter in letters]  # fmt: skip
        right += letters[said.index(max(said))] == row["answer"]
    reported = results["methods"][results["chosen"]]["test"]["accuracy"]["value"]
    assert right / len(rows) == pytest.approx(reported, abs=1e-6)

    page = made.report.read_text(encoding="utf-8")
    assert "group_accuracy" in page
    assert "AutoModelForCausalLM" in (made.fused / "README.md").read_text(encoding="utf-8")


def log_p(model: LlamaForCausalLM, tokenizer: object, prompt: str, letter: str) -> float:
    """Of the letter and the end of the text behind the prompt."""
    before = tokenizer(prompt)["input_ids"][:-1]  # type: ignore[operator]
    whole = tokenizer(prompt + letter)["input_ids"]  # type: ignore[operator]
    ids = torch.tensor([whole])
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1]).logits[0].log_softmax(-1)
    places = torch.arange(len(before) - 1, len(whole) - 1)
    return float(logits[places, ids[0, len(before) :]].sum())
