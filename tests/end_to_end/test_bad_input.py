"""Mistakes of a user: one clear message before any long work, nothing lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fusetune.errors import FusetuneError, MemberError, StageError
from fusetune.members import disk
from fusetune.pipeline import run
from fusetune.recipe_file import parse

Rows = list[dict[str, Any]]


def change(folder: Path, split: str, edit: Callable[[Rows], Iterable[Any]]) -> None:
    path = folder / f"{split}.jsonl"
    rows = [json.loads(line) for line in path.open()]
    path.write_text("".join(json.dumps(row) + "\n" for row in edit(rows)))


def no_file(data: Path, model: Path) -> None:
    (data / "train.jsonl").unlink()


def empty_split(data: Path, model: Path) -> None:
    (data / "validation.jsonl").write_text("")


def no_column(data: Path, model: Path) -> None:
    change(data, "train", lambda rows: ({"sentence": r["text"], "label": "a"} for r in rows))


def strange_label(data: Path, model: Path) -> None:
    change(data, "validation", lambda rows: [{**rows[0], "label": "so-so"}, *rows[1:]])


def number_as_text(data: Path, model: Path) -> None:
    change(data, "train", lambda rows: ({**r, "text": 3} for r in rows))


def one_class(data: Path, model: Path) -> None:
    change(data, "train", lambda rows: ({**r, "label": "good"} for r in rows))


def no_weights(data: Path, model: Path) -> None:
    (model / "model.safetensors").unlink()


def cut_weights(data: Path, model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_file, "train"),
        (empty_split, "validation"),
        (no_column, "text.*sentence"),
        (strange_label, "so-so"),
        (number_as_text, r"text.*3|row 0"),
        (one_class, "two or more labels"),
        (no_weights, "no weights"),
        (cut_weights, "damaged or cut off"),
    ],
)
def test_is_found_before_any_training(
    spoil: Callable[[Path, Path], None],
    message: str,
    tiny_recipe: str,
    sentiment: Path,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    data = shutil.copytree(sentiment, tmp_path / "data")
    model = shutil.copytree(tiny_model, tmp_path / "model")
    spoil(data, model)
    recipe = parse(tiny_recipe, [f"task.data={data}", f"model.name={model}"])
    with pytest.raises(FusetuneError, match=f"(?s){message}"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run/trials.journal").exists()
    assert not (tmp_path / "run/members").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.options={positiv: good}", "has no positiv"),
        ("task.metrics=[pearson]", "pearson"),
        ("task.metrics=[acuracy]", "accuracy"),
        ("search.variant={freeze_layers: 2}", "at least one must train"),
        ("train.members=500", "fuse.evaluations: 20 is less than train.members: 500"),
        ("train.epochs=0.1", "5 members need at least 5 steps"),
        ("train.arguments={lr_scheduler_type: zigzag}", "TrainingArguments refuses"),
        ("task.split={hold_out: 400}", "hold_out"),
        ("fuse.constraint='loss <= 1, max f1'", "no objective 'f1'"),
        ("fuse.constraint='loss'", "bounds and one goal"),
        ("fuse.choose=constraint", r"needs fuse\.constraint"),
        ("fuse.methods=[oracle]", "at least one method whose weights may be chosen"),
    ],
)
def test_settings_that_cannot_work(
    override: str, message: str, tiny_recipe: str, tmp_path: Path
) -> None:
    with pytest.raises(FusetuneError, match=message):
        run(parse(tiny_recipe, [override]), tmp_path / "run")
    assert not (tmp_path / "run/trials.journal").exists()


def test_too_small_a_disk(
    tiny_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        total: int
        used: int
        free: int

    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 1000))
    with pytest.raises(StageError, match=r"needs .* bytes, but 1,000 bytes are free"):
        run(parse(tiny_recipe), tmp_path / "run")


def test_trials_that_all_diverge_end_the_search_with_their_reason(
    tiny_recipe: str, tmp_path: Path
) -> None:
    recipe = parse(
        tiny_recipe,
        [
            "search.space={learning_rate: {low: 1.0e+30, high: 1.0e+35, log: true}}",
            "train.arguments={max_grad_norm: 0, logging_steps: 1}",
        ],
    )
    with pytest.raises(StageError, match=r"All 4 trials .* failed.*DivergedError"):
        run(recipe, tmp_path / "run")


def test_a_trial_that_diverges_is_not_the_end(tiny_recipe: str, tmp_path: Path) -> None:
    recipe = parse(
        tiny_recipe,
        [
            "search.space={learning_rate: {choices: [1.0e+35, 1.0e-3]}}",
            "search.variant=full",
            "train.arguments={max_grad_norm: 0, logging_steps: 1}",
        ],
    )
    folder = run(recipe, tmp_path / "run", stage="search")
    record = folder.done("search")
    assert record is not None
    assert record["params"] == {"learning_rate": 1e-3}


SHORT = ["search.trials=0", "train.epochs=2", "fuse.evaluations=8", "fuse.sampler=random"]


def test_members_that_are_all_the_same(tiny_recipe: str, tmp_path: Path) -> None:
    recipe = parse(tiny_recipe, [*SHORT, "train.arguments={learning_rate: 0.0}"])
    with pytest.raises(MemberError, match=r"All 5 members are the same, step-.*learning rate"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run/methods").exists()


def test_one_class_on_validation_is_said_and_not_the_end(
    tiny_recipe: str, sentiment: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(sentiment, tmp_path / "data")
    change(data, "validation", lambda rows: ({**r, "label": "good"} for r in rows))
    settings = [*SHORT, f"task.data={data}", "task.metrics=[matthews_correlation]",
                "train.arguments={learning_rate: 1.0e-3}"]  # fmt: skip
    folder = run(parse(tiny_recipe, settings), tmp_path / "run")
    results = json.loads(folder.results.read_text())
    assert results["methods"]["random"]["validation"]["matthews_correlation"]["value"] == 0.0
    expected = "All 120 labels of validation are the same; matthews_correlation not defined"
    assert any(note.startswith(expected) for note in results["notes"])
