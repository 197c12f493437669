from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusetune.errors import RecipeError
from fusetune.recipe import Recipe
from fusetune.recipe_file import REMOVED, Removed, difference, find, load, parse, ready
from fusetune.recipe_yaml import read_yaml, write_yaml

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


@pytest.mark.parametrize("removed", REMOVED, ids=lambda removed: removed.key)
def test_a_key_that_is_gone_says_what_to_write_instead(removed: Removed) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(MINIMAL, [f"{removed.key}=something", "train.members=1"])
    text = str(caught.value)
    assert f"{removed.key}: gone since version 0.2.0; {removed.instead}" in text
    assert "recipe has 2 error(s)" in text
    for value in removed.unused:
        assert parse(MINIMAL, [f"{removed.key}={json.dumps(value)}"]) == parse(MINIMAL)
    tree = parse(MINIMAL).dump()  # as version 0.1.0 wrote it into a run folder
    section, key = removed.key.split(".")
    tree[section][key] = removed.default
    assert parse(write_yaml(tree), of_run=True) == parse(MINIMAL)


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
    for wrong in ("averaging=resident", "candidates_per_pass=4"):
        with pytest.raises(RecipeError, match=f"fuse.{wrong.partition('=')[0]} is for a model"):
            parse(MINIMAL, ["model.device_map=auto", f"fuse.{wrong}"])


@pytest.mark.parametrize(
    "label",
    ["yes", "no", "on", "off", "True", "true", "1.0", "1", "007", "1e5", "0x1F", "2026-12-01",
     "null", "NA", "~", "1:30", "1_000", "+1", "-1", "=", "<<"],
)  # fmt: skip
def test_labels_stay_what_they_are_from_the_command_line_to_the_folder(label: str) -> None:
    text = MINIMAL.replace("accuracy}", f"f1, options: {{positive: {label}}}}}")
    for recipe in (
        parse(text),
        parse(MINIMAL, [f"task.options.positive={label}"]),
        parse(MINIMAL, [f"task.options={{labels: [{label}, other], positive: {label}}}"]),
        parse(
            MINIMAL, [f"task={{data: x, text: y, metrics: f1, options: {{positive: {label}}}}}"]
        ),
    ):
        assert recipe.task.options["positive"] == label
        assert recipe.task.options.get("labels", [label, "other"]) == [label, "other"]
        assert parse(recipe.to_yaml()) == recipe
        assert yaml.safe_load(recipe.to_yaml())["task"]["options"]["positive"] == label


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("010", "010"), ("1:30", "1:30"), ("1_0", "1_0"), ("yes", "yes"), ("Off", "Off"),
        ("2026-12-01", "2026-12-01"), ("2026-12-01 10:00:00", "2026-12-01 10:00:00"),
        ("0o17", "0o17"), ("=", "="), ("1e-5", 1e-5), ("5E3", 5000.0), ("-.5", -0.5),
        ("3.", 3.0), ("0", 0), ("-7", -7), ("0x10", 16), ("true", True), ("False", False),
        ("null", None), ("~", None), ("1.5e-3", 1.5e-3), ("1e5x", "1e5x"), ("00", "00"),
    ],
)  # fmt: skip
def test_what_yaml_1_1_turns_into_something_else_stays_a_text(written: str, read: Any) -> None:
    assert read_yaml(f"a: {written}", "recipe") == {"a": read}
    assert type(read_yaml(written, "recipe")) is type(read)
    assert read_yaml(write_yaml({"a": read}), "recipe") == {"a": read}
    assert read_yaml(write_yaml([written]), "recipe") == [written]


def test_keys_are_names_and_stand_there_once() -> None:
    assert read_yaml("{no: 1, 1: 2, null: 3}", "recipe") == {"no": 1, "1": 2, "null": 3}
    for text in ("{a: 1, b: 2, a: 3}", "b: {c: {a: 1, a: 2}}", "1: x\n'1': y"):
        with pytest.raises(RecipeError, match="stands twice, again in line"):
            read_yaml(text, "recipe")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.name=Items # all", "would be a comment, and lost"),
        ("task.name=# all", "would be a comment, and lost"),
        ("task.prompt={{ question }}", "a key in line 1 is no name.*in quotes"),
        ("task.prompt=Q: {{ question }}", "a key in line 1 is no name.*in quotes"),
        ("seed=true", r"seed: Input should be a number \(got true\)"),
        ("train.epochs=1:30", r'train\.epochs: Input should be a valid number \(got "1:30"\)'),
        ("task.data={train: a, holdout: b}", "task.data: A split is one of train, .*'holdout'"),
        ("task.data={val: a, dev: b}", "task.data: val, dev name the split validation twice"),
        ("task.data=[a]", "task.data: Input should be a valid mapping"),
        ("model=minilm", r'model: Input should be a valid mapping \(got "minilm"\)'),
    ],
)  # fmt: skip
def test_mistakes_are_named_without_names_of_python(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        parse(MINIMAL, [override])
    for word in ("constr", "dict", "Literal", "literal", "str]", "str.", "None", "function-"):
        assert word not in str(caught.value)


def test_splits_may_be_called_by_their_usual_names() -> None:
    recipe = parse(MINIMAL, ["task.data={train: a.csv, val: b.csv, test: c.csv}"])
    assert recipe.task.data == {"train": "a.csv", "validation": "b.csv", "test": "c.csv"}
