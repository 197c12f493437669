"""Recipes that are broken, absurd, or made to do harm."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fusetune.cli import app
from fusetune.errors import FusetuneError, RecipeError
from fusetune.recipe import Recipe
from fusetune.recipe_file import load, parse
from fusetune.recipe_yaml import MAX_BYTES, MAX_DEPTH, MAX_VALUES, read_yaml
from fusetune.tasks.prompts import PromptTemplate

Attempt = Callable[[Callable[[], Any]], tuple[Any, FusetuneError | None]]
MINIMAL = """
task: {data: somewhere, text: sentence, metrics: accuracy}
model: {name: minilm}
search: {trials: 0}
"""
LAUGHS = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "aliases are written out"),
        ("a: &a [*a]\n", "inside of what it stands for"),
        ("a: &a {b: {c: *a}}\n", "inside of what it stands for"),
        ("".join(f"a{i}: &a{i} 1\n" for i in range(1_000_000)), "more than 200,000 bytes"),
        ("".join(f"a{i}: &a{i} 1\n" for i in range(12_000)), "more than 10,000 values"),
        ("a: &a 1\n" + "b: [" + "*a," * 12_000 + "]", "more than 10,000 values"),
        ("[" * 5000, "levels deep"),
        ("[" * 33 + "]" * 33, "levels deep"),
        ("{a: " * 5000, "levels deep"),
        ("- " * 5000, "levels deep"),
        ("? " * 5000, "levels deep"),
        (f"a: &a {'[' * 17}1{']' * 17}\nb: {'[' * 17}*a{']' * 17}", "levels deep"),
        ("seed: " + "9" * 5000, "not valid YAML"),
        ("seed: 0x" + "f" * 50_000, "whole number in line 1"),
        ("seed: 2026-99-99", 'valid whole number (got "2026-99-99")'),
        ("seed: 2026-02-30T99:99:99Z", "valid whole number"),
        ("!!int x: 1", "not valid YAML"),
        ("a: !!float x", "not valid YAML"),
        ("a: !!bool x", "not valid YAML"),
        ("a: !!timestamp x", "not valid YAML"),
        ("a: !!binary '='", "error"),
        ("a: !!python/object/apply:os.system ['touch harm']", "not valid YAML"),
        ("a: !!python/name:os.system", "not valid YAML"),
        ("!!python/object/new:os.system [touch harm]", "not valid YAML"),
        ("? [1, 2]\n: 3", "not valid YAML"),
        ("? {a: 1}\n: 3", "not valid YAML"),
        ("<<: 3", "not valid YAML"),
        ("a: *nothing", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("\x00", "not valid YAML"),
        ("\x1b[2J: 1", "not valid YAML"),
        ('"\\e[2J": 1', r"\x1b[2J"),
        ("\ud800: 1", "not valid YAML"),
        ("", "mapping"),
        ("null", "mapping"),
        ("- 1", "mapping"),
        ("3", "mapping"),
        ("1: 2", "error"),
        ("null: 2\n1.5: 3\ntrue: 4\n2026-01-01: 5", "error"),
        ("%TAG ! tag:x,2000:\n--- !y z", "not valid YAML"),
        ("@", "not valid YAML"),
        ("a: 'unfinished", "not valid YAML"),
        ("\t- a", "not valid YAML"),
    ],
    ids=lambda value: value[:24].encode("unicode_escape", "backslashreplace").decode(),
)  # fmt: skip
def test_texts_that_are_no_recipe(
    text: str, message: str, attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, error = attempt(lambda: parse(text))
    assert isinstance(error, RecipeError)
    assert message in str(error)
    assert not os.listdir(tmp_path)


def test_limits_leave_room_for_large_recipes() -> None:
    places = [f"runs/a/checkpoint-{i}" for i in range(MAX_VALUES - 100)]
    text = yaml.safe_dump({"train": {"checkpoints": places[:5000]}})
    assert len(text) < MAX_BYTES
    assert len(read_yaml(text, "recipe")["train"]["checkpoints"]) == 5000
    deep = "[" * (MAX_DEPTH - 1) + "1" + "]" * (MAX_DEPTH - 1)
    assert read_yaml(deep, "recipe")
    shared = "a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}"
    assert read_yaml(shared, "recipe") == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}


# Settings of every section with values of every kind; what is wrong is said by its path.
WRONG = [
    "seed=-1", "seed=1.5", "seed=x", "seed=[]", "seed=4294967296", "seed=1e400", "seed=.inf",
    "seed=2026-01-01", "seed={}", "seed=null",
    "task.data=3", "task.data=[]", "task.data={other: x}", "task.data=null", "task.data={}",
    "task.text=[3]", "task.text={a: b}", "task.metrics=[]", "task.metrics=[1]",
    "task.metrics=.nan", "task.label=[a]", "task.kind=7", "task.split=often",
    "task.split={halve: everything}", "task.split={hold_out: -3}", "task.split={seed: 1}",
    "task.options=[1]", "task.options={a: .nan}", "task.options={a: [.inf]}",
    "task.options={a: {b: -.inf}}", "task.options={a: 99999999999999999999}",
    "model.name=3", "model.name=[x]", "model.max_length=1", "model.max_length=x",
    "model.precision=float8", "model.trust_remote_code=perhaps", "model.lora=-1",
    "model.lora=99999999999", "model.lora={rank: 1.5}", "model.lora={dropout: .nan}",
    "model.lora={alpha: .inf}", "model.lora={rank_pattern: {a: 0}}", "model.lora={x: 1}",
    "model=minilm", "model=[]", "model=null",
    "search.trials=-1", "search.trials=.nan", "search.trials=many", "search.epochs=0",
    "search.epochs=.nan", "search.epochs=.inf", "search.epochs=-.inf", "search.space=3",
    "search.space={learning_rate: 3}", "search.space={learning_rate: {low: .nan, high: 1}}",
    "search.space={learning_rate: {low: 0, high: .inf}}",
    "search.space={learning_rate: {choices: []}}",
    "search.space={learning_rate: {choices: [.nan]}}",
    "search.space={learning_rate: {choices: [[1]]}}",
    "search.space={learning_rate: {low: 1, high: 0}}",
    "search.space={learning_rate: {low: a, high: b}}",
    "search.space={per_device_train_batch_size: {choices: [many]}}",
    "search.variant={freeze_layers: 0}", "search.variant={freeze_layers: .nan}",
    "search.variant=light", "search.pruner=none_at_all", "search.objective=3",
    "search.prefix_cache={limit_gb: .nan}", "search.prefix_cache=-1",
    "train.epochs=1e308", "search.epochs=1e308", f"model.name={'x' * 300}",
    f"task.data=data/{'x' * 300}", f"task.data={{train: {'x' * 300}}}", 'model.name="a\\0b"',
    f"train.checkpoints=[{'x' * 300}]", f"fuse.start=[{'x' * 300}]",
    "train.arguments={dataloader_num_workers: 9007199254740992}",
    "train.epochs=0", "train.epochs=.nan", "train.epochs=1e999", "train.members=1",
    "train.members=1.5", "train.members=10000000000000000000000", "train.collect_from=1",
    "train.collect_from=.nan", "train.arguments=[]", "train.arguments={1: 2}",
    "train.arguments={learning_rate: .nan}", "train.arguments={learning_rate: often}",
    "train.arguments={learning_rate: [1]}", "train.arguments={weight_decay: {a: 1}}",
    "train.arguments={logging_steps: many}", "train.arguments={fp16: perhaps}",
    "train.arguments={max_steps: 1.5}", "train.arguments={nothing: 1}",
    "train.arguments={output_dir: ../../..}", "train.arguments={seed: 3}",
    "train.arguments={push_to_hub_token: abcdefgh}", "train.checkpoints=[]",
    "train.checkpoints=3", "train.checkpoints=[{a: 1}]", "train.trajectories=0",
    "train.trajectories={count: x}", "train.trajectories=.nan",
    "fuse.evaluations=1", "fuse.evaluations=.inf", "fuse.methods=[nothing]",
    "fuse.methods=[]", "fuse.methods=[[swa]]", "fuse.methods=3", "fuse.sampler=dice",
    "fuse.constraint='loss <= '", "fuse.constraint=3", "fuse.constraint='loss <= nan, max f1'",
    "fuse.choose=fate", "fuse.export=../x", "fuse.export='adapter-svd:0'",
    "fuse.export='adapter-svd:-1'", "fuse.export='adapter-svd:99999999999999999999999'",
    "fuse.candidates_per_pass=.5", "fuse.averaging=all",
    "compare.learning_rates=[]", "compare.learning_rates=[.nan]", "compare.learning_rates=[x]",
    "executor=3", "executor.kind=[]", "executor={workers: .nan}", "storage=3", "storage=[]",
    "unknown=1", "task.unknown=1", "=1", ".=1", "a..b=1", "seed", "seed=[", "seed=*a",
    "seed=!!python/name:os.system",
]  # fmt: skip


@pytest.mark.parametrize("override", WRONG)
def test_wrong_settings_are_named(override: str, attempt: Attempt) -> None:
    _, error = attempt(lambda: parse(MINIMAL, [override]))
    assert isinstance(error, RecipeError), override


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["<script>", "../..", "\x00", "auto", "none", 10**30, -1, "1e999"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def keys(section: type, prefix: str = "") -> list[str]:
    found = []
    for name, field in section.model_fields.items():  # type: ignore[attr-defined]
        found.append(prefix + name)
        if hasattr(field.annotation, "model_fields"):
            found += keys(field.annotation, f"{prefix}{name}.")
    return found


@settings(max_examples=80)
@given(changes=st.dictionaries(st.sampled_from(keys(Recipe)), values, min_size=1, max_size=3))
def test_settings_of_any_value(changes: dict[str, Any], attempt: Attempt) -> None:
    tree = yaml.safe_load(MINIMAL)
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = tree
        for parent in parents:
            child = place.setdefault(parent, {})
            place = child if isinstance(child, dict) else place
        place[last] = value
    found, error = attempt(lambda: parse(yaml.safe_dump(tree)))
    if error is None:  # what is accepted can be kept and read again
        assert parse(found.to_yaml()).public() == found.public()
    else:
        assert isinstance(error, RecipeError)


@settings(max_examples=100)
@given(
    text=st.text(
        alphabet=st.sampled_from("ab:&*[]{},-!?|>'\"#%@`~ \n\t<=0123.e\x00é"), max_size=60
    )
)
def test_texts_of_yaml_s_own_signs(text: str, attempt: Attempt) -> None:
    _, error = attempt(lambda: parse(text))
    assert isinstance(error, RecipeError)


def test_thousands_of_errors_are_not_all_told(attempt: Attempt) -> None:
    many = "train.arguments={" + ", ".join(f"learning_ratex{i}: 1" for i in range(3000)) + "}"
    _, error = attempt(lambda: parse(MINIMAL, [many]))
    assert "3000 error(s)" in str(error)
    assert "and 2,960 more" in str(error)
    long = "x" * 150_000
    _, error = attempt(lambda: parse(MINIMAL, [f"fuse.sampler={long}", f"{long[:50_000]}=1"]))
    assert len(str(error)) < 9_000


def test_files_that_are_no_recipes(tmp_path: Path, attempt: Attempt) -> None:
    (tmp_path / "binary.yaml").write_bytes(os.urandom(5000) + b"\xff\xfe")
    (tmp_path / "long.yaml").write_bytes(b"a" * 50_000_000)
    (tmp_path / "utf16.yaml").write_text(MINIMAL, encoding="utf-16")
    for name in ("binary.yaml", "long.yaml", "utf16.yaml", ".", "absent.yaml"):
        _, error = attempt(lambda name=name: load(tmp_path / name))  # type: ignore[misc]
        assert isinstance(error, RecipeError), name
    (tmp_path / "marked.yaml").write_text(MINIMAL, encoding="utf-8-sig")
    found, error = attempt(lambda: load(tmp_path / "marked.yaml"))
    assert error is None
    assert found.model.name == "minilm"


@pytest.mark.parametrize("name", ["...yaml", "..yaml", "a\x1b[2J.yaml"])
def test_a_recipe_s_file_name_cannot_lead_out_of_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(MINIMAL)
    for command in ("run", "train", "compare"):
        result = CliRunner().invoke(app, [command, name])
        assert result.exit_code == 2
        assert "gives no name for a run folder" in result.output
        assert "\x1b[2J" not in result.output
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    "source",
    [
        "{{ a.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__ }}{{ a }}",
        "{{ a }}{{ cycler.__init__.__globals__.os.system('touch harm') }}",
        "{{ a }}{{ lipsum.__globals__['os'].system('touch harm') }}",
        "{{ a }}{{ self._TemplateReference__context }}",
        "{{ a }}{% include '/etc/passwd' %}",
        "{{ a }}{% import 'os' as os %}",
        "{{ a }}{{ ''.format.__globals__ }}",
        "{{ a }}{{ '{0.__class__}'.format(a) }}",
        "{{ a }}{{ range(10**9) }}",
        "{{ a }}{% for i in range(10**9) %}{% endfor %}",
        "{{ a.append(1) }}",
        "{{ a.encode('zzz') }}",
        "{{ a.center(10**14) }}",
        "{{ a|xmlattr }}",
        "{{ a }}{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ " + "(" * 3000 + "a" + ")" * 3000 + " }}",
        "{{ a",
        "{% if %}",
        "no field",
    ],
)
def test_a_prompt_of_a_recipe_reads_its_rows_and_nothing_else(
    source: str, attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import Dataset

    from fusetune.tasks.splitting import Part

    monkeypatch.chdir(tmp_path)
    part = Part(Dataset.from_dict({"a": ["text"]}), "train", np.arange(1))
    found, error = attempt(lambda: PromptTemplate(source).prompts(part))
    assert error is not None or "class" not in str(found)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "metric", ["os:system", "subprocess:run", "builtins:eval", "importlib.util:find_spec",
               "x:y",
               ":", "a:", ":b", "..:x", "sys:path", "shutil:rmtree"],
)  # fmt: skip
def test_a_metric_by_name_is_no_way_into_python(metric: str, attempt: Attempt) -> None:
    from fusetune.tasks.own_metric import OwnMetric

    _, error = attempt(lambda: OwnMetric.load(metric))
    assert isinstance(error, RecipeError)
