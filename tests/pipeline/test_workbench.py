"""What the recipe says of evaluation reaches the evaluators."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fusetune.evaluation.candidates import starting_points
from fusetune.evaluation.scorer import Scorer
from fusetune.members.average import ResidentAverage
from fusetune.members.pool import MemberPool
from fusetune.pipeline.context import Context
from fusetune.pipeline.workbench import Workbench
from fusetune.tasks.classification import SequenceClassification
from fusetune.tasks.task import Encoded

K, N = 3, 20


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(logits=self.head(input_ids))


def collate(features: Any) -> dict[str, Tensor]:
    return {n: torch.tensor([f[n] for f in features]) for n in ("input_ids", "labels")}


def bench(folder: Path, **fuse: Any) -> tuple[Workbench, list[str]]:
    for i in range(K):
        member = folder / "members" / f"step-{i + 1}"
        if not member.is_dir():
            member.mkdir(parents=True)
            torch.manual_seed(i)
            save_file(Bag().state_dict(), member / "model.safetensors")
            (member / "config.json").write_text(json.dumps({"model_type": "bag"}))
    pool = MemberPool.open(folder / "members")
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, N)
    features = tuple(
        {"input_ids": random.normal(size=4).astype(np.float32).tolist(), "labels": int(y)}
        for y in labels
    )
    task = SequenceClassification("t", "no", text=["x"], label="y", metrics=["accuracy"])
    scorers = {
        split: Scorer(task, Encoded(features, labels, split), collate, torch.device("cpu"))
        for split in ("validation", "test")
    }
    notes: list[str] = []
    defaults = {"candidates_per_pass": "auto", "adapters": "exact"}
    section = SimpleNamespace(**{**defaults, **fuse})
    recipe = SimpleNamespace(
        fuse=section,
        executor=SimpleNamespace(kind="serial"),
        model=SimpleNamespace(device_map=None),
    )
    context = SimpleNamespace(
        recipe=recipe, scorer=scorers.get, note=notes.append, task=task, shared=None
    )
    made = Workbench(pool, cast(Context, context), folder / "kept")
    made.__dict__["average"] = ResidentAverage(pool, Bag().eval())
    return made, notes


def test_candidates_share_passes_and_the_store(tmp_path: Path) -> None:
    many, _ = bench(tmp_path / "a", candidates_per_pass=2)
    evaluator = many.evaluator("validation")
    assert evaluator.per_pass == evaluator.fresh().per_pass == 2
    evaluator.prefetch(starting_points(K))
    assert len(list((tmp_path / "a/kept").glob("*.npz"))) == K + 1
    usual, notes = bench(tmp_path / "a")
    assert usual.evaluator("validation").per_pass == 1  # auto, on a CPU
    assert notes == []
    one = bench(tmp_path / "b")[0].evaluator("validation")
    for w in starting_points(K):
        assert evaluator(w).values == pytest.approx(one(w).values, rel=1e-5)
        assert evaluator(w).read == one(w).read > 0
