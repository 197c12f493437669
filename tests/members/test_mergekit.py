from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from fusetune.errors import RecipeError, StageError
from fusetune.members.mergekit import LinearMerge, to_yaml
from fusetune.members.points import Combination, OwnModel
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights


@pytest.fixture
def pool(tmp_path: Path) -> MemberPool:
    for name in ("a+b/checkpoint-10", "a+b/checkpoint-20", "other/checkpoint-30"):
        (tmp_path / name).mkdir(parents=True)
        tensors = {"w": torch.randn(3, dtype=torch.bfloat16)}
        save_file(tensors, tmp_path / name / "model.safetensors")
    return MemberPool.open([str(tmp_path / "a+b"), str(tmp_path / "other/checkpoint-30")])


def test_what_is_written_is_read_to_the_last_bit(pool: MemberPool, tmp_path: Path) -> None:
    w = FusionWeights((0.1 + 0.2, 0.0, 1.0 - (0.1 + 0.2)))
    file = tmp_path / "merge.yaml"
    file.write_text(to_yaml(pool, w, {"validation": {"loss": 0.5}}))
    content = yaml.safe_load(file.read_text())
    assert content["dtype"] == "bfloat16"
    assert content["models"][0]["model"] == {  # a + in a text would begin an adapter
        "model": {"path": str((tmp_path / "a+b/checkpoint-10").resolve())}
    } or isinstance(content["models"][0]["model"], dict)
    assert [entry["parameters"]["weight"] for entry in content["models"]] == [
        w.values[0],
        w.values[2],
    ]
    read = LinearMerge.read(file)
    assert read.weights_of(pool.members) == w
    assert read.extra == {"validation": {"loss": 0.5}}
    moved = [dataclasses.replace(m, path=Path("/elsewhere") / m.name) for m in pool.members]
    assert read.weights_of(moved) == w  # by name


def test_coefficients_are_not_divided_by_their_sum(pool: MemberPool) -> None:
    content = yaml.safe_load(to_yaml(pool, Combination((1.5, -0.25, 0.25))))
    assert content["parameters"] == {"normalize": False}
    assert [entry["parameters"]["weight"] for entry in content["models"]] == [1.5, -0.25, 0.25]
    with pytest.raises(StageError, match="no weighted average"):
        to_yaml(pool, OwnModel.of({"w": torch.zeros(3)}))


def entries(*weights: Any) -> list[dict[str, Any]]:
    return [
        {"model": f"x/checkpoint-{10 * i}", "parameters": {"weight": w}}
        for i, w in enumerate(weights, start=1)
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("models: [", "is not valid YAML"),
        ("[1, 2]", "no recipe of mergekit"),
        ({"merge_method": "slerp", "models": entries(1, 1)}, "merge_method: slerp"),
        ({"merge_method": "linear", "slices": []}, "no list of models"),
        ({"merge_method": "linear", "models": entries(1, -1)}, "checkpoint-20 has -1"),
        (
            {"merge_method": "linear", "models": entries(1, [0, 1])},
            r"one number .* got \[0, 1\]",
        ),
        ({"merge_method": "linear", "models": entries(0, 0)}, "none is above 0"),
        ({"merge_method": "linear", "models": entries(1) * 2}, "more than once"),
        ({"merge_method": "linear", "models": [{"weight": 1}]}, "without a model"),
        (
            {
                "merge_method": "linear",
                "models": entries(1, 1),
                "parameters": {"normalize": False},
            },
            "sum to 2, and normalize is false",
        ),
    ],
)
def test_other_recipes_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "merge.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(RecipeError, match=message):
        LinearMerge.read(file)


def test_weights_are_normalised_and_models_found(pool: MemberPool, tmp_path: Path) -> None:
    file = tmp_path / "merge.yaml"
    models = [{"model": "base+x/checkpoint-20@main"}, {"model": "checkpoint-30"}]
    content = {"merge_method": "linear", "models": models, "parameters": {"weight": 4}}
    file.write_text(yaml.safe_dump(content))
    assert LinearMerge.read(file).weights_of(pool.members).values == (0.0, 0.5, 0.5)
    file.write_text(yaml.safe_dump({**content, "models": [{"model": "checkpoint-40"}]}))
    with pytest.raises(RecipeError, match="checkpoint-40, which is none of the members: check"):
        LinearMerge.read(file).weights_of(pool.members)


def test_weights_whose_sum_is_beyond_every_number(tmp_path: Path) -> None:
    file = tmp_path / "huge.yaml"
    models = [{"model": name, "parameters": {"weight": 1e308}} for name in ("a", "b", "c", "d")]
    file.write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    assert LinearMerge.read(file).weights == (0.25, 0.25, 0.25, 0.25)
