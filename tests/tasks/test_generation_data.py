"""The ready recipes' prompts and references on the real data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fusetune.recipe_file import find, load
from fusetune.tasks import find as find_task
from fusetune.tasks.generation import Generation
from fusetune.tasks.splitting import Splitting

FOLDERS = {
    "squad_v2-t5": "squad_v2",
    "samsum-llama-lora": "samsum",
    "e2e-t5-scratch": "e2e_nlg",
    "samsum-smollm2-lora": "samsum",
    "e2e-llama-lora": "e2e_nlg",
    "e2e-smollm2-lora": "e2e_nlg",
    "mcqa-llama-lora": "frenchmedmcqa",
    "mcqa-smollm2-lora": "frenchmedmcqa",
    "squad_v2-minilm": "squad_v2",
}


@pytest.mark.parametrize("recipe", FOLDERS)
def test_ready_recipes_read_their_data(recipe: str, shared: Path, tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        path = shared / "data" / FOLDERS[recipe] / f"{split}.parquet"
        if path.is_file():
            pq.write_table(pq.read_table(path).slice(0, 200), tmp_path / path.name)
    section = load(find(recipe)).task
    splitting = Splitting(halve=section.split.halve if section.split else None)
    options: dict[str, Any] = {**section.inputs, **section.options}
    task = find_task(section.kind)(
        "real", str(tmp_path), metrics=section.metrics, splitting=splitting, **options
    )
    if recipe.startswith("mcqa"):
        assert any("not exactly one right option" in note for note in task.notes)
        assert {right for (right,) in task.splits["test"].labels} == set("ABCDE")
        return
    if recipe == "squad_v2-minilm":
        assert len(task.splits["validation"]) == len(task.splits["test"]) == 100
        assert task.splits["train"].texts[0][0].endswith("?")
        assert any(golds == () for golds in task.splits["validation"].labels)
        return
    assert isinstance(task, Generation)
    assert len(task.splits["train"]) == 200
    validation = task.splits["validation"]
    if recipe.startswith("e2e"):
        assert len(validation) < 60  # 200 rows of few meaning representations
        assert max(map(len, validation.labels)) >= 3
    elif recipe.startswith("squad"):
        assert len(validation) == 100
        assert any(golds == () for golds in validation.labels)
        assert "unanswerable" in task._examples.targets(validation)
        assert validation.texts[0][0].startswith("question: ")
    else:
        assert len(validation) == 200
        assert all(len(golds) == 1 for golds in validation.labels)
