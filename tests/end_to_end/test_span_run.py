"""A whole run of span question answering: long contexts, and questions without an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from fusetune.pipeline import run
from fusetune.recipe_file import parse
from tests import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spans")
    return tiny.save_rows(folder, tiny.span, train=160, validation=40, test=40)


def recipe(data: Path, model: Path) -> str:
    return f"""
seed: 41
task:
  kind: span-question-answering
  data: {data}
  name: kind words
  text: [q, c]
  label: answers
  metrics: [f1, exact_match]
  options: {{stride: 6, most_tokens: 3}}
model: {{name: {model}, precision: float32, device: cpu, max_length: 24}}
search: {{trials: 0}}
train:
  epochs: 4
  members: 4
  collect_from: 0.5
  arguments: {{learning_rate: 1.0e-2, per_device_train_batch_size: 16}}
fuse:
  evaluations: 10
  methods: [finetune, swa, greedy, learned, mobo]
"""


def test_a_run_from_recipe_to_report(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    made = run(parse(recipe(data, tiny_model)), tmp_path / "run")
    results = json.loads(made.results.read_text())
    for entry in results["methods"].values():
        for split in ("validation", "test"):
            assert set(entry[split]) == {"loss", "f1", "exact_match"}
    found = {n: e["validation"]["f1"]["value"] for n, e in results["methods"].items()}
    assert found["mobo"] >= found["finetune"]
    rows = [json.loads(line) for line in (data / "validation.jsonl").open()]
    silent = sum(not row["answers"]["text"] for row in rows)
    assert found["mobo"] > silent / 40 + 0.2  # more than never giving an answer

    model = AutoModelForQuestionAnswering.from_pretrained(made.fused).eval()
    tokenizer = AutoTokenizer.from_pretrained(made.fused)
    context = "the music of a lovely story"
    inputs = tokenizer(
        "the film was", context, return_tensors="pt", return_offsets_mapping=True
    )
    offsets = inputs.pop("offset_mapping")[0]
    with torch.no_grad():
        said = model(**inputs)
    first, last = int(said.start_logits.argmax()), int(said.end_logits.argmax())
    assert context[offsets[first][0] : offsets[last][1]] == "lovely"
    page = made.report.read_text(encoding="utf-8")
    assert "exact_match" in page
    assert "AutoModelForQuestionAnswering" in (made.fused / "README.md").read_text()
