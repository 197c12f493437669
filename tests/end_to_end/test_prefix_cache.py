"""Trials that start at the first trained layer give what whole trials give."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from fusetune.pipeline import run
from fusetune.pipeline.context import Context
from fusetune.pipeline.display import Display
from fusetune.pipeline.light import RowCollate, trial_parts
from fusetune.recipe_file import parse
from fusetune.run import RunFolder
from fusetune.training.trajectory import train
from fusetune.training.watch import ValidationWatch


class Losses(TrainerCallback):
    """The training loss after each step."""

    def __init__(self) -> None:
        self.curve: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if "loss" in kwargs["logs"]:
            self.curve.append(kwargs["logs"]["loss"])


class Messages(Display):
    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def context(recipe: str, folder: Path, *overrides: str) -> Context:
    return Context(parse(recipe, overrides), RunFolder(folder), Messages())


def curves(made: Context, folder: Path) -> tuple[list[float], list[float]]:
    """Training losses of 40 steps, and validation losses at four of them."""
    parts = trial_parts(made)
    losses, watch = Losses(), ValidationWatch(parts.score, 4, lambda step, value: False)
    train(
        parts.make_model,
        parts.data,
        parts.collate,
        folder,
        made.training_arguments(
            {
                "learning_rate": 1e-3,
                "per_device_train_batch_size": 8,
                "logging_steps": 1,
                "train_sampling_strategy": "group_by_length",
            }
        ),
        epochs=1,
        seed=3,
        device="cpu",
        precision="float32",
        callbacks=[losses, watch],
        keep_checkpoints=False,
    )
    return losses.curve, [evaluation.values["loss"] for _, evaluation in watch.history]


def test_the_loss_curve_is_that_of_the_uncached_trial(tiny_recipe: str, tmp_path: Path) -> None:
    cached = context(tiny_recipe, tmp_path / "cached")
    plain = context(tiny_recipe, tmp_path / "plain", "search.prefix_cache=false")
    assert isinstance(trial_parts(cached).collate, RowCollate)
    assert not isinstance(trial_parts(plain).collate, RowCollate)
    train_loss, validation_loss = curves(cached, tmp_path / "a")
    expected_train, expected_validation = curves(plain, tmp_path / "b")
    assert len(train_loss) == 40
    assert len(validation_loss) == 4
    # Rounding in batches of other widths, which the steps of the optimiser carry on.
    assert train_loss == pytest.approx(expected_train, abs=1e-5)
    assert validation_loss == pytest.approx(expected_validation, abs=1e-5)


def test_the_cache_is_kept_for_the_next_start_and_made_anew_for_other_data(
    tiny_recipe: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "work" / "prefix"
    trial_parts(context(tiny_recipe, tmp_path / "run"))
    (first,) = folder.iterdir()
    written = first.stat().st_mtime_ns
    trial_parts(context(tiny_recipe, tmp_path / "run"))
    assert first.stat().st_mtime_ns == written
    content = first.read_bytes()
    trial_parts(context(tiny_recipe, tmp_path / "run", "model.max_length=8"))
    (second,) = folder.iterdir()
    assert second != first
    assert second.stat().st_size < len(content)
    trial_parts(context(tiny_recipe, tmp_path / "run"))
    (third,) = folder.iterdir()
    assert third == first
    assert third.read_bytes() == content  # the same bits when it is made again


@pytest.mark.parametrize("damage", ["cut off", "other states"])
def test_a_damaged_cache_is_made_again(tiny_recipe: str, tmp_path: Path, damage: str) -> None:
    trial_parts(context(tiny_recipe, tmp_path))
    (path,) = (tmp_path / "work" / "prefix").iterdir()
    content = path.read_bytes()
    path.write_bytes(
        content[:-4] if damage == "cut off" else os.urandom(64) * (len(content) // 64)
    )
    made = context(tiny_recipe, tmp_path)
    assert isinstance(trial_parts(made).collate, RowCollate)
    assert path.read_bytes() == content


def test_the_limit_is_kept(tiny_recipe: str, tmp_path: Path) -> None:
    made = context(tiny_recipe, tmp_path, "search.prefix_cache=1e-6")
    assert not isinstance(trial_parts(made).collate, RowCollate)
    assert isinstance(made.display, Messages)
    assert "each trial computes its frozen layers" in made.display.said[0]
    assert "search.prefix_cache allows 1e-06" in made.display.said[0]
    assert not (tmp_path / "work").exists()


def test_trials_that_read_little_compute_what_they_read(
    tiny_recipe: str, tmp_path: Path
) -> None:
    short = context(tiny_recipe, tmp_path, "search.trials=1", "search.epochs=0.5")
    assert not isinstance(trial_parts(short).collate, RowCollate)
    assert isinstance(short.display, Messages)
    assert "fewer than the 440 whose activations would be kept" in short.display.said[0]
    twice = context(tiny_recipe, tmp_path, "search.trials=2", "search.epochs=0.5")
    assert isinstance(trial_parts(twice).collate, RowCollate)


def test_a_search_finds_the_same(tiny_recipe: str, tmp_path: Path) -> None:
    found = []
    for name, option in (("cached", "4"), ("plain", "false")):
        folder = run(
            parse(tiny_recipe, [f"search.prefix_cache={option}"]),
            tmp_path / name,
            stage="search",
        )
        record = folder.done("search")
        assert record is not None
        found.append(record)
        assert not folder.work.exists()
    assert found[0]["params"] == pytest.approx(found[1]["params"])
    assert found[0]["value"] == pytest.approx(found[1]["value"])
