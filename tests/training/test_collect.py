"""MemberCollector by itself, in a Trainer that knows nothing else of fusetune."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
)

import fusetune
from fusetune.errors import StageError
from fusetune.members.average import ResidentAverage
from tests import tiny


def rows(n: int) -> list[dict[str, object]]:
    return [{"input_ids": [1 + i % 20, 2, 3], "labels": i % 2} for i in range(n)]


def trainer(folder: Path, collector: fusetune.MemberCollector, **arguments: object) -> Trainer:
    model = tiny.bert(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        intermediate_size=16,
    )
    settings = TrainingArguments(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=4,
        num_train_epochs=2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        **arguments,  # type: ignore[arg-type]
    )
    return Trainer(model, settings, train_dataset=rows(40), callbacks=[collector])  # type: ignore[arg-type]


def test_members_of_any_trainer_can_be_fused(tmp_path: Path) -> None:
    collector = fusetune.MemberCollector(tmp_path / "members", members=4, collect_from=0.25)
    trainer(tmp_path, collector).train()
    pool = fusetune.MemberPool.open(tmp_path / "members")
    assert [m.step for m in pool.members] == [9, 13, 16, 20]
    model = AutoModelForSequenceClassification.from_pretrained(pool.members[0].path)
    average = ResidentAverage(pool, model)
    average.into_model(fusetune.FusionWeights.one_hot(3, 4))
    last = AutoModelForSequenceClassification.from_pretrained(pool.members[3].path)
    for name, parameter in last.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))


def test_gradient_accumulation_counts_optimiser_steps(tmp_path: Path) -> None:
    collector = fusetune.MemberCollector(tmp_path / "members", members=3)
    trainer(tmp_path, collector, gradient_accumulation_steps=2).train()
    steps = [m.step for m in fusetune.MemberPool.open(tmp_path / "members").members]
    assert steps == [7, 8, 10]


def test_too_many_members_for_the_training(tmp_path: Path) -> None:
    collector = fusetune.MemberCollector(tmp_path / "members", members=15)
    with pytest.raises(StageError, match="15 members need at least 15 steps"):
        trainer(tmp_path, collector).train()


def test_trajectories_share_a_folder_and_leave_one_another_alone(tmp_path: Path) -> None:
    members = tmp_path / "members"
    for number in (1, 2):
        collector = fusetune.MemberCollector(members, members=2, trajectory=number)
        trainer(tmp_path, collector).train()
    again = fusetune.MemberCollector(members, members=2, trajectory=1)
    (members / ".trajectory-1-step-000015.new").mkdir()  # a member that a kill cut off
    untouched = (members / "trajectory-2-step-000015/member.json").stat().st_mtime_ns
    trainer(tmp_path, again).train()
    pool = fusetune.MemberPool.open(members)
    assert [(m.trajectory, m.step) for m in pool.members] == [
        (1, 15),
        (1, 20),
        (2, 15),
        (2, 20),
    ]
    assert again.names == ("trajectory-1-step-000015", "trajectory-1-step-000020")
    assert (members / "trajectory-2-step-000015/member.json").stat().st_mtime_ns == untouched
    assert not list(members.glob(".*"))
