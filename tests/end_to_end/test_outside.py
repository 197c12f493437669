"""A run whose fused model may be no combination of its members."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fusetune.members.export import FUSION
from fusetune.pipeline import export_model, run
from fusetune.pipeline.display import Display
from fusetune.recipe_file import parse
from fusetune.run import RunFolder

METHODS = ("swa", "twa", "model_stock", "fisher")


@pytest.fixture(scope="module")
def finished(tiny_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    methods = f"fuse.methods=[{','.join(METHODS)}]"
    recipe = parse(tiny_recipe, ["search.trials=0", "fuse.choose=best", methods])
    return run(recipe, tmp_path_factory.mktemp("run") / "outside")


def test_results_say_what_has_no_weights(finished: RunFolder) -> None:
    rows = json.loads(finished.results.read_text())["methods"]
    assert list(rows) == list(METHODS)
    assert rows["swa"]["weights"] == [0.2] * 5
    assert rows["model_stock"]["weights"] is None is rows["fisher"]["weights"]
    assert len(rows["twa"].get("coefficients") or rows["twa"]["weights"]) == 5
    for name in ("model_stock", "fisher"):
        assert len(rows[name]["model"]) == 64
        assert 0.0 <= rows[name]["test"]["accuracy"]["value"] <= 1.0
    assert "fisher" in finished.report.read_text()


def test_an_average_of_one_trajectory_lies_near_it(finished: RunFolder) -> None:
    """Model stock and Fisher weights stay between the members, tensor by tensor."""
    files = [load_file(f / "model.safetensors") for f in sorted(finished.members.iterdir())]
    rows = json.loads(finished.results.read_text())["methods"]
    own = load_file(finished.methods / "models" / f"{rows['fisher']['model'][:32]}.safetensors")
    for name, tensor in own.items():
        stacked = torch.stack([file[name] for file in files])
        slack = 1e-5 * stacked.abs().max()
        assert bool((tensor <= stacked.amax(0) + slack).all()), name
        assert bool((tensor >= stacked.amin(0) - slack).all()), name


@pytest.mark.parametrize("method", METHODS)
def test_every_row_can_be_exported(finished: RunFolder, method: str, tmp_path: Path) -> None:
    export_model(
        finished.path,
        tmp_path / "out",
        method=method,
        weights=None,
        display=Display(quiet=True),
    )
    record = json.loads((tmp_path / "out" / FUSION).read_text())
    row = json.loads(finished.results.read_text())["methods"][method]
    assert record["method"] == method
    weights = [member["weight"] for member in record["members"]]
    coefficients = row.get("coefficients") or row["weights"]
    assert weights == (coefficients or [None] * 5)
    files = [load_file(f / "model.safetensors") for f in sorted(finished.members.iterdir())]
    written = load_file(tmp_path / "out" / "model.safetensors")
    if coefficients:
        name = "classifier.weight"
        expected = sum(
            c * file[name].double() for c, file in zip(coefficients, files, strict=True)
        )
        np.testing.assert_allclose(written[name].numpy(), expected.numpy(), atol=1e-6)
    else:
        kept = load_file(finished.methods / "models" / f"{row['model'][:32]}.safetensors")
        assert all(torch.equal(kept[name], written[name]) for name in kept)


def test_fusing_again_takes_what_is_there(finished: RunFolder) -> None:
    """A kill after the methods: their models are read from the files, not made again."""
    before = {f.name: f.stat().st_mtime_ns for f in (finished.methods / "models").iterdir()}
    first = json.loads(finished.results.read_text())
    for stage in ("fuse", "report"):
        (finished.path / "stages" / f"{stage}.json").unlink()
    recipe = parse(finished.recipe_file.read_text(), [])
    run(recipe, finished.path)
    again = json.loads(finished.results.read_text())
    assert again["methods"] == first["methods"]
    after = {f.name: f.stat().st_mtime_ns for f in (finished.methods / "models").iterdir()}
    assert after == before
