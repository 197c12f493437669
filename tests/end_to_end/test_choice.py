"""Which row becomes the fused model, and the mark that never can."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.store import EvaluationStore
from fusetune.members.weights import FusionWeights
from fusetune.methods.method import FusionResult
from fusetune.objective import LOSS, Objective
from fusetune.pipeline import run
from fusetune.pipeline.fuse import choose
from fusetune.recipe_file import parse

VALUES = {
    FusionWeights((1.0, 0.0)): 0.6,
    FusionWeights((0.0, 1.0)): 0.7,
    FusionWeights((0.5, 0.5)): 0.65,
    FusionWeights((0.25, 0.75)): 0.8,
}


class Known(Evaluator):
    """An evaluator that looks its values up."""

    def __init__(self) -> None:
        objectives = (LOSS, Objective("accuracy", "maximize"))
        super().__init__(None, None, None, objectives, EvaluationStore(None, ""))  # type: ignore[arg-type]

    def __call__(self, weights: FusionWeights) -> Evaluation:
        accuracy = VALUES[weights]
        return Evaluation({"loss": 1 - accuracy, "accuracy": accuracy}, None, 0.0)


def result(*weights: float) -> FusionResult:
    chosen = FusionWeights(weights)
    return FusionResult(chosen, Known()(chosen).values, 2, 0.0)


def test_a_rule_that_is_good_enough_is_followed() -> None:
    results = {"mobo": result(0.25, 0.75), "mobo.consensus": result(0.0, 1.0)}
    assert choose(results, Known(), "consensus", "mobo") == ("mobo.consensus", "")


def test_a_rule_worse_than_the_best_member_gives_way() -> None:
    results = {"mobo": result(0.25, 0.75), "mobo.consensus": result(0.5, 0.5)}
    chosen, note = choose(results, Known(), "consensus", "mobo")
    assert chosen == "mobo"
    assert "0.6500 on validation, worse than the best single member, 0.7000" in note


def test_best_takes_the_best_row_of_all_methods() -> None:
    results = {
        "finetune": result(0.0, 1.0),
        "swa": result(0.5, 0.5),
        "mobo.knee": result(0.25, 0.75),
    }
    assert choose(results, Known(), "best", "mobo")[0] == "finetune"


@pytest.mark.slow
def test_the_oracle_is_a_mark_on_test_and_never_a_candidate(
    tiny_recipe: str, tmp_path: Path
) -> None:
    methods = "[finetune, ema, learned, bo, mobo, oracle]"
    recipe = parse(
        tiny_recipe, [f"fuse.methods={methods}", "search.trials=0", "train.epochs=2"]
    )
    folder = run(recipe, tmp_path / "run")
    results = json.loads(folder.results.read_text())
    rows = results["methods"]
    assert {"finetune", "ema", "learned", "bo", "mobo", "mobo.consensus", "oracle"} <= set(rows)
    assert results["chosen"] != "oracle"
    test = {name: row["test"]["accuracy"]["value"] for name, row in rows.items()}
    # All 31 subsets of 5 members were evaluated or screened: no single member beats it.
    assert test["oracle"] >= test["finetune"]
    best = max(
        row["validation"]["accuracy"]["value"] for name, row in rows.items() if name != "oracle"
    )
    chosen = rows[results["chosen"]]["validation"]["accuracy"]["value"]
    assert rows["finetune"]["validation"]["accuracy"]["value"] <= chosen <= best
    # What chose was done before the test split was looked at.
    record = folder.done("fuse")
    assert record is not None
    assert "oracle" not in record["methods"]
