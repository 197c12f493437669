"""What recipes may give as training arguments: taken for what it says, or refused at once."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from transformers import TrainingArguments

from fusetune.errors import RecipeError
from fusetune.recipe_file import parse
from fusetune.training.arguments import build
from fusetune.training.fields import (
    DEFAULTS,
    OWN,
    PUBLISHING,
    range_problem,
    type_problem,
    understood,
)

RECIPE = """
task: {data: somewhere, text: sentence, metrics: accuracy}
model: {name: minilm}
search: {trials: 4, space: {weight_decay: {low: 0, high: 1}}}
"""


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("learning_rate", "5e-5", 5e-5),
        ("learning_rate", 1, 1.0),
        ("weight_decay", " 0.01 ", 0.01),
        ("per_device_train_batch_size", "4", 4),
        ("per_device_train_batch_size", 4.0, 4),
        ("per_device_train_batch_size", "1e1", 10),
        ("gradient_accumulation_steps", 2.0, 2),
        ("max_steps", -1, -1),
        ("dataloader_num_workers", "0", 0),
        ("warmup_steps", "100", 100),
        ("warmup_steps", 0.25, 0.25),
        ("warmup_steps", 30.0, 30),
        ("warmup_ratio", "0.1", 0.1),
        ("logging_steps", "25", 25),
        ("save_total_limit", None, None),
        ("save_total_limit", "3", 3),
        ("gradient_checkpointing", "yes", True),
        ("dataloader_drop_last", "no", False),
        ("dataloader_drop_last", 0, False),
        ("save_strategy", False, "no"),  # what YAML 1.1 makes of the word no
        ("logging_strategy", "epoch", "epoch"),
        ("lr_scheduler_type", "cyclic", "cyclic"),
        ("lr_scheduler_kwargs", {"cycles": 2}, {"cycles": 2}),
        ("lr_scheduler_kwargs", '{"cycles": 2}', '{"cycles": 2}'),
        ("report_to", ["tensorboard"], ["tensorboard"]),
        ("push_to_hub", False, False),
        ("hub_token", None, None),
        ("fsdp", True, True),
        ("fsdp", "full_shard", "full_shard"),
        ("eval_on_start", "off", False),
    ],
)
def test_a_value_is_taken_for_what_it_says(name: str, given: Any, expected: Any) -> None:
    found = understood(name, given)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "given", "rule"),
    [
        ("learning_rate", None, "must be a number, got null; leave it out for 5e-05"),
        ("learning_rate", -1e-4, "must be at least 0, got -0.0001"),
        ("learning_rate", True, "must be a number, got true"),
        ("learning_rate", "0,00005", "must be a number, got '0,00005'"),
        ("learning_rate", "nan", "finite"),
        ("learning_rate", [1e-5], "must be a number"),
        ("weight_decay", -0.1, "at least 0"),
        ("max_grad_norm", None, "must be a number"),
        ("per_device_train_batch_size", 0, "must be above 0"),
        ("per_device_train_batch_size", 4.5, "must be a whole number, got 4.5"),
        ("per_device_train_batch_size", False, "must be a whole number, got false"),
        ("gradient_accumulation_steps", "0", "must be above 0"),
        ("dataloader_num_workers", -1, "at least 0"),
        ("max_steps", -2, "at least -1"),
        ("logging_steps", 0, "must be above 0"),
        ("warmup_steps", 10.5, "whole number of steps, or a share below 1"),
        ("warmup_ratio", 1.5, "at most 1"),
        ("label_smoothing_factor", 2, "at most 1"),
        ("save_strategy", "best", "needs evaluations by the Trainer"),
        ("save_strategy", "never", "must be one of no, steps, epoch, best"),
        ("lr_scheduler_type", "cosin", "did you mean cosine?"),
        ("lr_scheduler_type", "reduce_lr_on_plateau", "needs evaluations by the Trainer"),
        ("lr_scheduler_kwargs", "often", "must be a mapping, or a file of JSON"),
        ("optim", "adam", "must be one of adamw_torch"),
        ("train_sampling_strategy", "randm", "did you mean random?"),
        ("log_level", "loud", "must be one of detail, debug"),
        ("eval_on_start", "yes", "true needs evaluations by the Trainer"),
        ("dataloader_drop_last", "perhaps", "true or false"),
        ("optim_args", 3, "must be a text"),
        ("report_to", {"a": 1}, "a text or a list of texts"),
        ("parallelism_config", {}, "cannot be given in a recipe"),
        ("push_to_hub", True, "a recipe publishes nothing"),
        ("hub_model_id", "somebody/stolen", "a recipe publishes nothing"),
        ("hub_strategy", "end", "a recipe publishes nothing"),
        ("hub_private_repo", True, "a recipe publishes nothing"),
        ("trackio_space_id", "somebody/stolen", "a recipe publishes nothing"),
        ("hub_token", "abc", "HF_TOKEN"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_the_rule(
    name: str, given: Any, rule: str
) -> None:
    assert rule in (type_problem(name, given) or "")
    with pytest.raises(RecipeError, match=rf"train\.arguments\.{name}"):
        parse(
            RECIPE,
            [f"train.arguments={{{name}: null}}"]
            if given is None
            else ["train.arguments={" + f"{name}: {_yaml(given)}" + "}"],
        )


def _yaml(value: Any) -> str:
    import json

    return json.dumps(value)


def test_every_default_of_transformers_is_understood() -> None:
    for field in dataclasses.fields(TrainingArguments):
        if field.default is dataclasses.MISSING or field.name in OWN:
            continue
        default = DEFAULTS.get(field.name, field.default)
        assert understood(field.name, default) == default, field.name


def test_every_field_that_names_the_hub_is_known_to_publish() -> None:
    naming = {f.name for f in dataclasses.fields(TrainingArguments) if "hub" in f.name}
    assert naming
    assert all(name.startswith(PUBLISHING) for name in naming)


def test_a_recipe_keeps_what_was_understood() -> None:
    arguments = "train.arguments={learning_rate: '5e-5', per_device_train_batch_size: 4.0}"
    recipe = parse(RECIPE, [arguments])
    assert recipe.train.arguments == {"learning_rate": 5e-5, "per_device_train_batch_size": 4}
    assert type(recipe.train.arguments["per_device_train_batch_size"]) is int
    assert parse(recipe.to_yaml()).public() == recipe.public()


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("per_device_train_batch_size: {low: 2.0, high: 6.0}", (2, 6)),
        ("weight_decay: {low: 0, high: 1}", (0.0, 1.0)),
        ("warmup_ratio: {low: 0, high: 1}", (0.0, 1.0)),
        ("warmup_steps: {low: 0, high: 500}", (0, 500)),
        ("warmup_steps: {low: 0, high: 0.3}", (0, 0.3)),
        ("learning_rate: {low: '1e-5', high: '1e-4'}", (1e-5, 1e-4)),
    ],
)
def test_bounds_are_of_their_field_s_type(space: str, expected: tuple[Any, Any]) -> None:
    (found,) = parse(RECIPE, [f"search.space={{{space}}}"]).search.space.values()
    assert (found.low, found.high) == expected
    assert type(found.low) is type(expected[0])
    assert type(found.high) is type(expected[1])


def test_choices_are_of_their_field_s_type() -> None:
    space = "search.space={per_device_train_batch_size: {choices: ['4', 4.0, 8]}}"
    (found,) = parse(RECIPE, [space]).search.space.values()
    assert found.choices == [4, 8]


@pytest.mark.parametrize(
    ("space", "rule"),
    [
        ("lr_scheduler_type: {choices: [linear, cosin]}", r"lr_scheduler_type: .*cosin"),
        ("per_device_train_batch_size: {low: 2.0, high: 3.5}", r"\.high: must be a whole"),
        ("per_device_train_batch_size: {low: 0, high: 8}", r"\.low: must be above 0"),
        ("per_device_train_batch_size: {low: 2, high: 8, step: 1.5}", "so must step be"),
        ("learning_rate: {low: -1e-5, high: 1e-4}", r"\.low: must be at least 0"),
        ("learning_rate: {choices: [1e-5, null]}", "got null"),
        ("warmup_ratio: {low: 0.1, high: 2}", r"\.high: must be at most 1"),
        ("warmup_steps: {low: 0.1, high: 20}", "bounds of one kind"),
        ("warmup_steps: {low: 0, high: 1}", "bounds of one kind"),
        ("lr_scheduler_type: {low: 1, high: 2}", "must be one of linear"),
        ("gradient_checkpointing: {low: 0, high: 1}", "is no number; give choices"),
        ("save_strategy: {choices: [epoch, best]}", "needs evaluations by the Trainer"),
        ("push_to_hub: {choices: [false, true]}", "publishes nothing"),
        ("weight_decay: {choices: [0.0, true]}", "must be a number, got true"),
        ("weight_decay: {low: false, high: true}", "should be a number"),
    ],
)  # fmt: skip
def test_a_space_is_checked_as_strictly_as_the_arguments(space: str, rule: str) -> None:
    with pytest.raises(RecipeError, match=rule):
        parse(RECIPE, [f"search.space={{{space}}}"])


@pytest.mark.parametrize(
    "override", ["compare.learning_rates=[1e-5, -1]", "compare.learning_rates=[-1e-5]"]
)
def test_the_grid_of_a_comparison_has_learning_rates(override: str) -> None:
    with pytest.raises(RecipeError, match=r"compare\.learning_rates\.\d: must be at least 0"):
        parse(RECIPE, [override])


def test_a_step_is_left_to_a_field_of_real_numbers() -> None:
    assert range_problem("max_grad_norm", 0.5, 2.0, 0.5) is None
    assert range_problem("nothing", 1, 2, None) is None


def test_a_warm_up_of_the_whole_training_is_no_single_step(tmp_path: Any) -> None:
    for ratio, steps in ((1.0, 40), (0.5, 20), (0.0, 0)):
        settings = build(tmp_path, {"warmup_ratio": ratio}, epochs=1, seed=1)
        assert settings.get_warmup_steps(40) == steps
