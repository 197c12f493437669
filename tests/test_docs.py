"""What can be copied from the docs works."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from fusetune.models.scratch import train_tokenizer
from fusetune.pipeline.make_task import make_task
from fusetune.recipe_file import parse

DOCS = Path(__file__).resolve().parents[1] / "docs"


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


RECIPES = [
    pytest.param(block, id=f"{page.stem}-{i}")
    for page in sorted(DOCS.glob("*.md"))
    for i, block in enumerate(blocks(page.name, "yaml"))
    if block.startswith("task:") and "\nmodel:" in block  # a whole one
]


@pytest.mark.parametrize("text", RECIPES)
def test_recipes_are_whole_and_valid(text: str) -> None:
    recipe = parse(text)
    task = make_task(recipe.task, recipe.seed)
    assert [objective.name for objective in task.objectives] == ["loss", *recipe.task.metrics]


def test_there_is_an_example_of_every_kind() -> None:
    kinds = {parse(block).task.kind for block in blocks("tasks.md", "yaml")}
    assert kinds == {
        "sequence-classification",
        "regression",
        "generation",
        "multiple-choice",
        "span-question-answering",
    }


def test_generation_as_a_library(tmp_path: Path) -> None:
    (code,) = (b for b in blocks("generation.md", "python") if "Generation(" in b)
    row = {"dialogue": "a: hello you b: hello", "summary": "They say hello."}
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row))
    tokenizer = train_tokenizer(list(row.values()), 300)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1, n_positions=1024,
            bos_token_id=1, eos_token_id=1,
        )
    )  # fmt: skip
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    for name, place in (
        ("HuggingFaceTB/SmolLM2-135M-Instruct", tmp_path / "model"),
        ("data/samsum", tmp_path),
    ):
        assert name in code
        code = code.replace(name, str(place))
    known: dict[str, Any] = {}
    exec(code, known)
    assert set(known["found"].values) == {"loss", "rougeL"}
    assert len(known["found"].outputs.texts) == 1
