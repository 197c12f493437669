from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fusetune.errors import RecipeError
from fusetune.recipe import Recipe
from fusetune.recipe_file import difference, find, load, parse, ready

MINIMAL = """
task: {data: somewhere, text: sentence, metrics: accuracy}
model: {name: minilm}
search: {trials: 0}
"""


def test_defaults_and_single_names_as_lists() -> None:
    recipe = parse(MINIMAL)
    assert recipe.task.text == ["sentence"]
    assert recipe.task.metrics == ["accuracy"]
    assert recipe.train.members == 15
    assert recipe.fuse.evaluations == 90


def test_overrides_reach_any_depth() -> None:
    recipe = parse(
        MINIMAL,
        [
            "train.epochs=3",
            "train.arguments.learning_rate=1e-4",
            "search.space.weight_decay={low: 0.0, high: 0.1}",
            "search.space.weight_decay.high=0.2",
            "task.data=../data/cola",
        ],
    )
    assert recipe.train.epochs == 3
    assert recipe.train.arguments["learning_rate"] == pytest.approx(1e-4)
    assert recipe.search.space["weight_decay"].high == pytest.approx(0.2)
    assert recipe.task.data == "../data/cola"


def test_every_error_at_once_with_its_path() -> None:
    with pytest.raises(RecipeError) as caught:
        parse(MINIMAL, ["train.members=1", "fuse.evaluatons=3", "task.split={hold_out: 0}"])
    text = str(caught.value)
    assert text.startswith("recipe has 3 error(s):")
    assert "train.members: Input should be greater than or equal to 2 (got 1)" in text
    assert "fuse.evaluatons: unknown key (did you mean evaluations?)" in text
    assert "task.split.hold_out: Input should be greater than or equal to 1 (got 0)" in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.arguments={learning_rat: 1}", r"train\.arguments\.learning_rat: no field .*"
         r"did you mean learning_rate\?"),
        ("train.arguments={seed: 1}", r"train\.arguments\.seed: set by seed"),
        ("search.space={lr: {low: 0.1, high: 1.0}}", r"search\.space\.lr: no field"),
        ("search.space={weight_decay: {low: 1.0, high: 0.5}}", "low must be below high"),
        ("search.space={weight_decay: {low: 0, high: 1, log: true}}", "needs low > 0"),
        ("search.space={weight_decay: {low: 0}}", "give low and high, or choices"),
        ("search.trials=3", "a search needs a space"),
        ("search.objective=fused:nothing", "unknown 'fused:nothing'"),
        ("fuse.methods=[swa, mobbo]", r"unknown method 'mobbo' \(did you mean mobo"),
        ("fuse.evaluations=10", r"10 is less than train\.members: 15"),
        ("fuse={compile: true, candidates_per_pass: 4}", "leave out candidates_per_pass, or"),
        ("fuse.candidates_per_pass=0", r"fuse\.candidates_per_pass.*got 0"),
        ("task.split={halve: validation, hold_out: 5}", "either halve or hold_out"),
        ("model", "An override must read key=value"),
        ("model.name=[", "not valid YAML"),
    ],
)  # fmt: skip
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(MINIMAL, [override])


def test_a_resolved_recipe_reads_back_as_itself() -> None:
    recipe = parse(MINIMAL)
    assert parse(recipe.to_yaml()) == recipe


@pytest.mark.parametrize("name", sorted(ready()))
def test_ready_recipes_are_valid(name: str) -> None:
    recipe = load(find(name))
    assert recipe.fuse.evaluations >= recipe.train.members
    assert "mobo" in recipe.fuse.methods


def test_ready_recipes_cover_the_tasks_of_the_papers() -> None:
    tasks = ("rte", "mrpc", "cola", "stsb", "sst2")
    expected = {f"{task}-{model}" for task in tasks for model in ("roberta", "minilm")}
    assert expected <= set(ready())


def test_an_unknown_recipe_names_the_ready_ones() -> None:
    with pytest.raises(RecipeError, match=r"did you mean cola-minilm.*one of: cola-minilm"):
        find("cola-minilmm")


def test_not_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(RecipeError, match="must be a mapping of keys, got list"):
        load(tmp_path / "list.yaml")


def test_difference_names_leaves() -> None:
    old, new = {"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}
    assert difference(old, new) == {"a.c": "2 → 3", "d": "None → 4"}


def test_the_schema_has_every_section() -> None:
    properties = Recipe.model_json_schema()["properties"]
    assert set(properties) == set(yaml.safe_load(parse(MINIMAL).to_yaml()))


def test_a_task_has_texts_or_a_prompt() -> None:
    generation = MINIMAL.replace("text: sentence,", "kind: generation,")
    with pytest.raises(RecipeError, match="give text and label, or prompt and reference"):
        parse(generation)
    with pytest.raises(RecipeError, match="prompt and reference belong together"):
        parse(generation, ["task.prompt='{{ a }}'"])
    with pytest.raises(RecipeError, match="give text and label, or prompt and reference"):
        parse(MINIMAL, ["task.prompt='{{ a }}'", "task.reference=b"])
    recipe = parse(generation, ["task.prompt='{{ a }}'", "task.reference=b"])
    assert recipe.task.inputs == {"prompt": "{{ a }}", "reference": "b"}
    assert parse(recipe.to_yaml()) == recipe


def test_a_model_on_several_devices_is_averaged_where_it_lies() -> None:
    assert parse(MINIMAL).model.device_map is None
    assert parse(MINIMAL, ["model.device_map=auto"]).model.device_map == "auto"
    places = parse(MINIMAL, ["model.device_map={bert: 0, classifier: 1}"]).model.device_map
    assert places == {"bert": 0, "classifier": 1}
    for wrong in ("averaging=resident", "candidates_per_pass=4", "compile=true"):
        with pytest.raises(RecipeError, match=f"fuse.{wrong.partition('=')[0]} is for a model"):
            parse(MINIMAL, ["model.device_map=auto", f"fuse.{wrong}"])
