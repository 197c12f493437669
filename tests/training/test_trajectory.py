from __future__ import annotations

import copy
import itertools
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForSequenceClassification, PreTrainedModel, TrainerCallback

from fusetune.errors import RecipeError, RunError, StageError
from fusetune.evaluation.evaluation import Evaluation
from fusetune.tasks.task import Encoded
from fusetune.training.arguments import build
from fusetune.training.collect import MemberCollector, plan_steps
from fusetune.training.trajectory import rehearse, train
from fusetune.training.watch import DivergedError, ValidationWatch
from tests import tiny


def data(n: int = 48) -> Encoded:
    random = np.random.default_rng(0)
    features = tuple(
        {
            "input_ids": random.integers(1, 64, size=8).tolist(),
            "attention_mask": [1] * 8,
            "labels": int(i % 2),
        }
        for i in range(n)
    )
    return Encoded(features, np.array([f["labels"] for f in features]), "tiny")


def collate(features: Any) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([f[name] for f in features]) for name in features[0]}


class StopAt(TrainerCallback):
    """Ends the process's training abruptly, as a kill would, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def run(
    folder: Path,
    *callbacks: TrainerCallback,
    make: Callable[[], PreTrainedModel] = tiny.bert,
    **arguments: Any,
) -> int:
    return train(
        make,
        data(),
        collate,
        folder / "work",
        {"per_device_train_batch_size": 8, "learning_rate": 1e-3, **arguments},
        epochs=4,
        seed=41,
        device="cpu",
        precision="float32",
        callbacks=callbacks,
    )


def weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {
        path.parent.name: load_file(path)
        for path in sorted((folder / "members").glob("step-*/model.safetensors"))
    }


def test_plan_is_even_and_ends_with_the_training() -> None:
    assert plan_steps(100, 5, 0.5) == (60, 70, 80, 90, 100)
    assert plan_steps(7, 3, 0.0) == (2, 5, 7)


def test_too_short_a_window_is_refused_with_the_counts() -> None:
    with pytest.raises(StageError, match=r"5 members need at least 5 steps.*8 steps.*4 after"):
        plan_steps(8, 5, 0.5)


def test_collects_members_that_differ_and_load(tmp_path: Path) -> None:
    steps = run(tmp_path, MemberCollector(tmp_path / "members", members=4))
    kept = weights(tmp_path)
    assert steps == 24
    assert list(kept) == ["step-000015", "step-000018", "step-000021", "step-000024"]
    head = [m["classifier.weight"] for m in kept.values()]
    assert not any(torch.equal(head[0], other) for other in head[1:])
    model = BertForSequenceClassification.from_pretrained(tmp_path / "members/step-000015")
    assert torch.equal(model.classifier.weight.detach(), head[0])


@pytest.mark.parametrize("schedule", ["linear", "cyclic"])
def test_a_cut_off_training_ends_with_the_members_of_a_whole_one(
    tmp_path: Path, schedule: str
) -> None:
    options = {"lr_scheduler_type": schedule, "warmup_ratio": 0.2}
    run(tmp_path / "whole", MemberCollector(tmp_path / "whole/members", 4), **options)
    cut = tmp_path / "cut"
    for step in (5, 16, 22):
        with pytest.raises(KeyboardInterrupt):
            run(cut, MemberCollector(cut / "members", 4), StopAt(step), **options)
    # What a kill in the middle of a write leaves behind.
    (cut / "work/checkpoint-99").mkdir()
    (cut / "members/.step-000099").mkdir()
    run(cut, MemberCollector(cut / "members", 4), **options)
    whole, resumed = weights(tmp_path / "whole"), weights(cut)
    assert list(whole) == list(resumed)
    for name, member in whole.items():
        for key, tensor in member.items():
            assert torch.equal(tensor, resumed[name][key]), (name, key)


def test_the_cyclic_schedule_rises_again(tmp_path: Path) -> None:
    rates: list[float] = []

    class Rates(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            rates.append(kwargs["lr_scheduler"].get_last_lr()[0])

    run(tmp_path, Rates(), lr_scheduler_type="cyclic", lr_scheduler_kwargs={"cycles": 4})
    rises = sum(b > a for a, b in itertools.pairwise(rates))
    assert max(rates) == pytest.approx(1e-3)
    assert rises == 4


def test_divergence_ends_the_training_with_its_reason(tmp_path: Path) -> None:
    def broken() -> PreTrainedModel:
        model = tiny.bert()
        torch.nn.init.constant_(model.classifier.weight, float("nan"))
        return model

    with pytest.raises(DivergedError, match="training loss became nan at step"):
        run(tmp_path, make=broken, logging_steps=1)


def test_watch_evaluates_evenly_and_stops_on_request(tmp_path: Path) -> None:
    seen: list[int] = []

    def report(step: int, evaluation: Evaluation) -> bool:
        seen.append(step)
        return step >= 12

    watch = ValidationWatch(lambda model: Evaluation({"loss": 1.0}, None, 0.0), 6, report)
    assert run(tmp_path, watch) == 12
    assert seen == [4, 8, 12]
    assert watch.stopped


@pytest.mark.parametrize(
    "arguments",
    [
        {"logging_steps": 500},
        {"logging_strategy": "no"},
        {"logging_steps": 500, "logging_nan_inf_filter": True},
    ],
)
def test_a_training_that_diverged_is_called_so_though_nothing_was_logged(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    with pytest.raises(DivergedError):
        run(tmp_path, learning_rate=1e30, **arguments)


def test_weights_that_are_no_numbers_are_seen_whatever_the_loss_was(tmp_path: Path) -> None:
    class Break(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == state.max_steps:
                with torch.no_grad():
                    kwargs["model"].classifier.bias.fill_(math.nan)

    with pytest.raises(DivergedError, match=r"classifier\.bias.*after step 24"):
        run(tmp_path, Break())


@pytest.mark.parametrize(
    "arguments",
    [
        {"lr_scheduler_type": "cosine_with_min_lr"},  # needs its lowest rate
        {"lr_scheduler_type": "cyclic", "lr_scheduler_kwargs": {"unknown": 1}},
        {"adam_beta1": 1.5},
        {"torch_compile_backend": "nothing"},
        {"dataloader_prefetch_factor": 2},  # of no workers
        {"optim": "lomo"},  # of a package that is not there
    ],
    ids=lambda given: next(iter(given)),
)
def test_what_the_trainer_refuses_is_refused_in_the_rehearsal(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match=r"train\.arguments|TrainingArguments"):
        rehearsal(tmp_path, arguments)


def test_a_rehearsal_trains_nothing(tmp_path: Path) -> None:
    model = tiny.bert()
    before = copy.deepcopy(model.state_dict())
    rehearsal(tmp_path, {"lr_scheduler_type": "step", "warmup_ratio": 0.1}, model)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def rehearsal(
    folder: Path, arguments: dict[str, Any], model: PreTrainedModel | None = None
) -> None:
    settings = build(folder, arguments, epochs=1, seed=41)
    rehearse(model or tiny.bert(), data(), collate, arguments, settings, 6)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("trainer_state.json", b"{}"), ("trainer_state.json", b"{"),
        ("trainer_state.json", b'{"global_step": 4, "max_steps": 8, "epoch": 1.0}'),
        ("trainer_state.json", None), ("optimizer.pt", b"x"), ("scheduler.pt", b""),
        ("rng_state.pth", b"no pickle"), ("model.safetensors", b"torn"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_one_message_and_the_advice_works(
    file: str, content: bytes | None, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, StopAt(16), save_strategy="steps", save_steps=4)
    last = max((tmp_path / "work").glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
    (last / file).unlink()
    if content is not None:
        (last / file).write_bytes(content)
    with pytest.raises((RunError, StageError), match=rf"{last.name}.*Remove this folder"):
        run(tmp_path, save_strategy="steps", save_steps=4)
    shutil.rmtree(last)
    assert run(tmp_path, save_strategy="steps", save_steps=4) == 24


@pytest.mark.parametrize(
    "arguments", [{"neftune_noise_alpha": 1e308}, {"torch_compile_mode": "evil"}]
)
def test_a_first_step_that_cannot_be_done_is_a_message(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    with pytest.raises(StageError, match="cannot do its first step"):
        run(tmp_path, **arguments)
