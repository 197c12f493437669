from __future__ import annotations

import pytest

from fusetune.errors import RecipeError
from fusetune.pipeline import procedures
from fusetune.pipeline.comparison_plan import TABLE, make_plan, wanted_rows
from fusetune.recipe import Recipe
from fusetune.recipe_file import parse

RECIPE = """
task: {data: somewhere, text: sentence, metrics: accuracy}
model: {name: minilm}
search:
  trials: 4
  variant: {freeze_layers: 2}
  epochs: 1
  space: {learning_rate: {low: 1.0e-5, high: 1.0e-3}}
train: {members: 8, collect_from: 0.6, arguments: {learning_rate: 2.0e-5}}
"""


def recipe(*overrides: str) -> Recipe:
    return parse(RECIPE, overrides)


def rows(names: list[str] | None, *overrides: str) -> tuple[list[str], list[str]]:
    warnings: list[str] = []
    return wanted_rows(recipe(*overrides), names, warnings.append), warnings


def test_the_recipes_own_methods_by_default() -> None:
    assert rows(None)[0] == ["finetune", "swa", "greedy", "mobo"]
    assert rows(["mobo", "swa", "mobo"], "fuse.sampler=tpe")[0] == ["tpe", "swa"]


def test_all_is_every_row_that_the_recipe_can_have() -> None:
    found, warnings = rows(["all"])
    assert not warnings
    assert set(procedures.PROCEDURES) <= set(found)
    assert set(found) <= set(TABLE)
    found, warnings = rows(["all"], "search.trials=0", "train.trajectories=2")
    assert not {"hpbo", "bilevel", "bomf", "ema"} & set(found)
    assert [w.split()[0] for w in warnings] == ["hpbo", "ema", "bilevel", "bomf"]
    assert "search.trials is 0" in warnings[0]


def test_an_unknown_name_comes_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"'bilvel' \(did you mean bilevel(.|\n)*Known are"):
        rows(["bilvel"])
    with pytest.raises(RecipeError, match="Unknown method 'bilevel:oracle'"):
        rows(["bilevel:oracle"])  # it looks at the test split


def test_all_methods_share_the_run_of_the_fixed_parameters() -> None:
    plan = make_plan(recipe(), ["swa", "oracle", "mobo"], 43)
    assert list(plan.runs) == ["fixed"]
    fixed = plan.runs["fixed"]
    assert fixed.seed == 43
    assert fixed.search.trials == 0
    assert fixed.train == recipe().train
    assert fixed.fuse.methods == ["finetune", "swa", "mobo", "oracle"]
    assert plan.rows["mobo"] == (("fixed", "mobo"),)


def test_nothing_is_trained_twice() -> None:
    plan = make_plan(recipe(), ["grid", "swa"], 41)
    assert list(plan.runs) == ["grid-1e-05", "fixed", "grid-3e-05"]
    assert plan.rows["grid"][1] == ("fixed", "finetune")
    assert plan.runs["fixed"].fuse.methods == ["finetune", "swa"]
    assert plan.runs["grid-3e-05"].train.arguments["learning_rate"] == 3e-5
    default = make_plan(
        recipe("train.arguments={}", "compare.learning_rates=[5e-5]"), ["grid"], 41
    )
    assert list(default.runs) == ["fixed"]  # 5e-5 is what Transformers takes by itself


def test_what_each_procedure_derives() -> None:
    plan = make_plan(recipe(), ["hpbo", "bilevel", "bilevel:swa", "bomf", "swa_cyclic"], 41)
    runs = plan.runs
    assert [runs[n].search.objective for n in ("hpbo", "bilevel", "bilevel-swa", "bomf")] == [
        "best_member",
        "fused",
        "fused:swa",
        "best_member",
    ]
    for name in ("hpbo", "bilevel", "bilevel-swa"):
        assert runs[name].trains_in_trials
    assert runs["bomf"].search == recipe().search
    assert plan.rows["bilevel:swa"] == (("bilevel-swa", "swa"),)
    assert plan.rows["bilevel"] == (("bilevel", "mobo"),)
    cyclic = runs["swa_cyclic"]
    assert cyclic.search.trials == 0
    assert cyclic.train.arguments["lr_scheduler_type"] == "cyclic"
    assert cyclic.train.arguments["lr_scheduler_kwargs"] == {"cycles": 8, "start": 0.6}


def test_what_a_procedure_needs() -> None:
    with pytest.raises(RecipeError, match=r"bilevel searches λ, but search\.trials is 0"):
        make_plan(recipe("search.trials=0"), ["bilevel"], 41)
    with pytest.raises(RecipeError, match="the trials of this recipe are full trainings"):
        make_plan(recipe("search.variant=full", "search.epochs=null"), ["bomf"], 41)


def test_every_procedure_is_named_in_recipes() -> None:
    for name in procedures.PROCEDURES:
        assert procedures.find(name) is not None
        with pytest.raises(RecipeError, match=f"fusetune compare RECIPE --methods {name}"):
            recipe(f"fuse.methods=[swa, {name}]")
    with pytest.raises(RecipeError, match="Unknown procedure 'swa'"):
        procedures.find("swa")


def test_trajectories_of_trials_need_a_search() -> None:
    several = recipe("train.trajectories={count: 2, source: trials}")
    runs = make_plan(several, ["swa", "bomf"], 41).runs
    assert runs["fixed"].train.trajectories.count == 1
    assert runs["bomf"].train.trajectories.count == 2
