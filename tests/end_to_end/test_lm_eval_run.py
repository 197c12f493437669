"""A finished run fused by a metric of lm-evaluation-harness, from the command line."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from fusetune.cli import app

WORDS = ["red", "green", "blue", "sky", "grass", "rose"]
ANSWERS = {"sky": "blue", "grass": "green", "rose": "red"}


@pytest.fixture
def checkpoints(tmp_path: Path) -> str:
    """Three checkpoints of a tiny model, the later the further from the first."""
    words = ["<unk>", "<s>", "</s>", *WORDS, *map(str, range(40))]
    made = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **names)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(3)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for step in (10, 20, 30):
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
            model.save_pretrained(tmp_path / f"out/checkpoint-{step}")
            tokenizer.save_pretrained(tmp_path / f"out/checkpoint-{step}")
    return f"{tmp_path}/out/checkpoint-*"


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    draw = random.Random(1)
    with (folder / "rows.jsonl").open("w") as file:
        for i in range(40):
            thing = draw.choice(list(ANSWERS))
            options = draw.sample(["red", "green", "blue"], 3)
            row = {"ask": f"{i} {thing}", "options": options, "right": ANSWERS[thing]}
            file.write(json.dumps(row) + "\n")
    task = {
        "task": "arc_of_colours",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"validation": str(folder / "rows.jsonl")},
            "cache_dir": str(folder / "cache"),
        },
        "validation_split": "validation",
        "output_type": "multiple_choice",
        "doc_to_text": "{{ask}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "{{options.index(right)}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "colours.yaml").write_text(yaml.safe_dump(task))
    return folder


def test_a_harness_task_chooses_the_weights(
    checkpoints: str, tasks: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    run = tmp_path / "run"
    given = ["fuse", "--members", checkpoints, "--kind", "lm-eval", "--data", str(tasks)]
    settings = ["fuse.evaluations=9", "model.device=cpu", "model.precision=float32"]
    metric = "lm_eval:arc_of_colours/acc"
    said = CliRunner().invoke(app, [*given, "--metrics", metric, "--out", str(run), *settings])
    assert said.exit_code == 0, said.output
    results = json.loads((run / "results.json").read_text())
    assert results["primary"] == "arc_of_colours/acc"
    for row in results["methods"].values():
        for split in ("validation", "test"):
            value = row[split]["arc_of_colours/acc"]
            assert value["low"] <= value["value"] <= value["high"]
    best = results["methods"]["finetune"]["validation"]["arc_of_colours/acc"]["value"]
    mobo = results["methods"]["mobo"]["validation"]["arc_of_colours/acc"]["value"]
    assert mobo >= best
    assert any("public test benchmarks are objectives" in note for note in results["notes"])

    bound = "loss <= 100, max arc_of_colours/acc"
    picked = CliRunner().invoke(
        app, ["export", str(run), "--pick", bound, "--out", str(tmp_path / "picked")]
    )
    assert picked.exit_code == 0, picked.output
    assert (tmp_path / "picked/model.safetensors").is_file()


def test_what_is_not_given_is_asked_for(checkpoints: str) -> None:
    said = CliRunner().invoke(app, ["fuse", "--members", checkpoints, "--kind", "lm-eval"])
    assert said.exit_code == 2
    assert "--metrics" in said.output
    assert "--prompt" not in said.output
