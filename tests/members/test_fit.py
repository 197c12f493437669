"""What `fusetune members` and the start of a training say is what the fusion then does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)
from typer.testing import CliRunner

from fusetune.cli import app
from fusetune.errors import MemberError
from fusetune.members.average import ResidentAverage
from fusetune.members.fit import check_can_be_collected, check_fits_its_model
from fusetune.members.pool import MemberPool, inspect
from fusetune.training.collect import MemberCollector

SMALL = {
    "vocab_size": 19,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 8,
}


def mixtral() -> PreTrainedModel:
    return MixtralForCausalLM(
        MixtralConfig(**SMALL, num_key_value_heads=1, num_local_experts=2)
    )


def test_the_class_that_members_fit_is_named(save_members: Callable[..., Path]) -> None:
    inspection = inspect(save_members(mixtral), own_model=True)
    assert inspection.model == "MixtralForCausalLM"
    assert inspection.compatible


def test_a_lost_head_is_said_before_and_in_the_fusion(
    save_members: Callable[..., Path], edit: Callable[..., None]
) -> None:
    folder = save_members()
    for member in folder.iterdir():
        edit(member, lambda t: [t.pop(n) for n in list(t) if n.startswith("classifier")])
    said = inspect(folder, own_model=True).problems[0]
    assert "does not fit BertForSequenceClassification" in said
    missing = r"2 of the model not in the members \(classifier\.\w+, classifier\.\w+\)"
    pool = MemberPool.open(folder)
    with pytest.raises(MemberError, match=missing):
        check_fits_its_model(pool.members[0])
    model = BertForSequenceClassification.from_pretrained(pool.members[0].path)
    with pytest.raises(MemberError, match=missing):
        ResidentAverage(pool, model)
    result = CliRunner().invoke(app, ["members", str(folder)])
    assert result.exit_code == 2
    assert "can be fused" not in result.output


def test_members_without_a_configuration_wait_for_a_model(
    save_members: Callable[..., Path],
) -> None:
    folder = save_members()
    for member in folder.iterdir():
        (member / "config.json").unlink()
    assert inspect(folder, own_model=True).model == ""
    result = CliRunner().invoke(app, ["members", str(folder)])
    assert result.exit_code == 0
    assert "checked when you give it" in result.output


def test_a_configuration_that_makes_no_model_is_named(
    save_members: Callable[..., Path],
) -> None:
    folder = save_members()
    for member in folder.iterdir():
        config = json.loads((member / "config.json").read_text())
        config["num_attention_heads"] = 3
        (member / "config.json").write_text(json.dumps(config))
    assert "config.json describes cannot be made" in inspect(folder, own_model=True).problems[0]


@pytest.mark.parametrize("build", [mixtral, lambda: BertModel(BertConfig(**SMALL))])
def test_what_can_be_collected_can_be_fused(
    build: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    model = build()
    collector = MemberCollector(tmp_path, members=2, total_steps=2, collect_from=0.0)
    for _ in range(2):
        with torch.no_grad():
            next(model.parameters()).add_(1.0)
        collector.step(model)
    assert inspect(tmp_path, own_model=True).compatible


class Lossy(BertForSequenceClassification):
    """Saves all but its head."""

    _keys_to_ignore_on_load_missing = ()

    def state_dict(self, *args: object, **kwargs: object) -> dict[str, torch.Tensor]:
        state = super().state_dict(*args, **kwargs)  # type: ignore[misc]
        return {n: t for n, t in state.items() if kwargs or not n.startswith("classifier")}


def test_a_model_that_is_not_saved_whole_is_refused_before_the_first_step(
    tmp_path: Path,
) -> None:
    collector = MemberCollector(tmp_path / "out", members=2, total_steps=2, collect_from=0.0)
    with pytest.raises(MemberError, match=r"could not be fused after the training.*classifier"):
        collector.step(Lossy(BertConfig(**SMALL)))
    assert not (tmp_path / "out").exists()


def test_any_other_module_is_written_under_its_own_names() -> None:
    check_can_be_collected(nn.Linear(2, 2))
