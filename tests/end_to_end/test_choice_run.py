"""A whole run of a multiple-choice task: adapters on a tiny LLaMA from its configuration."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from fusetune.models.scratch import train_tokenizer
from fusetune.pipeline import run
from fusetune.recipe_file import parse

THINGS = {
    "fruit": ("apple", "pear", "plum", "cherry"),
    "animal": ("horse", "goat", "owl", "trout"),
    "tool": ("hammer", "saw", "drill", "file"),
}
PLACES = ("first", "second", "third")
PROMPT = "{{ a }}, {{ b }}{% if c %}, {{ c }}{% endif %}: which is the {{ place }}?"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    draw = random.Random(0)
    for split, n in {"train": 200, "validation": 40, "test": 40}.items():
        rows = []
        for _ in range(n):
            group = draw.choice(sorted(THINGS))
            k = draw.choice((2, 3, 3))
            options = [*draw.sample(THINGS[group], k), None][:3]
            right = draw.randrange(k)
            row = dict(zip("abc", options, strict=True))
            row |= {"place": PLACES[right], "answer": "ABC"[right], "kind": group}
            rows.append(row)
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned nothing, whose weights are large enough for adapters to use."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = train_tokenizer((data / "train.jsonl").read_text().splitlines(), 400)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
    model.save_pretrained(folder)
    return folder


def recipe(data: Path, base: Path) -> str:
    return f"""
seed: 41
task:
  kind: multiple-choice
  data: {data}
  name: places
  prompt: "{PROMPT}"
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
