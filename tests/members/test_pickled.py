"""Members that are files of `torch.save`: by consent only, without running anything of them."""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertForSequenceClassification

from fusetune.errors import MemberError
from fusetune.members.average import plan
from fusetune.members.pool import MemberPool, inspect
from fusetune.members.weights import FusionWeights
from tests import tiny

State = dict[str, Tensor]


class Tied(nn.Module):
    """A decoder that shares the weight of its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.decoder = nn.Linear(3, 5)
        self.decoder.weight = self.embedding.weight


def states(count: int = 2) -> list[State]:
    return [Tied().state_dict() for _ in range(count)]


def half(pool: MemberPool, model: nn.Module) -> State:
    plan(pool, model).into_model(FusionWeights.uniform(len(pool)))
    return model.state_dict()


FORMS: dict[str, tuple[str, Callable[[State, int], Any]]] = {
    "a state dict": ("pytorch_model.bin", lambda state, step: state),
    "of FSDP": ("pytorch_model_fsdp.bin", lambda state, step: {"model": state}),
    "of DeepSpeed": ("model.pt", lambda state, step: {"module": state, "global_steps": step}),
    "of a loop": (
        "model.pth",
        lambda state, step: {
            "model_state_dict": state,
            "optimizer": {"state": {}},
            "step": step,
        },
    ),
    "of DistributedDataParallel": (
        "model.pt",
        lambda state, step: {f"module._orig_mod.{name}": t for name, t in state.items()},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_average(form: str, tmp_path: Path) -> None:
    name, wrap = FORMS[form]
    found = states()
    for step, state in enumerate(found):
        (tmp_path / f"out/checkpoint-{step}").mkdir(parents=True)
        torch.save(wrap(state, step), tmp_path / f"out/checkpoint-{step}" / name)
        torch.save({"state": 1}, tmp_path / f"out/checkpoint-{step}/optimizer.pt")
    with pytest.raises(MemberError, match="consent with --allow-pickle"):
        MemberPool.open(tmp_path / "out")
    pool = MemberPool.open(tmp_path / "out", allow_pickle=True, copies=tmp_path / "copies")
    assert [m.step for m in pool.members] == [0, 1]
    assert pool.names == ("checkpoint-0", "checkpoint-1")
    averaged = half(pool, Tied())
    for key in averaged:
        torch.testing.assert_close(averaged[key], (found[0][key] + found[1][key]) / 2)
    # Tied tensors stand once, and the copy is made once.
    copies = sorted((tmp_path / "copies").iterdir())
    assert [set(load_file(c / "model.safetensors")) for c in copies] == [
        {"embedding.weight", "decoder.bias"}
    ] * 2
    before = [(c / "model.safetensors").stat().st_mtime_ns for c in copies]
    again = MemberPool.open(tmp_path / "out", allow_pickle=True, copies=tmp_path / "copies")
    assert [(c / "model.safetensors").stat().st_mtime_ns for c in copies] == before
    assert again.fingerprint == pool.fingerprint
    # Looking alone makes no copy, and knows the same.
    looked = inspect(tmp_path / "out", allow_pickle=True)
    assert [m.sha256 for m in looked.members] == [m.sha256 for m in pool.members]
    assert {n: t.shape for n, t in looked.members[0].tensors.items()} == {
        n: t.shape for n, t in pool.tensors.items()
    }


def test_files_of_lightning(tmp_path: Path) -> None:
    found = states(3)
    for epoch, state in enumerate(found):
        content = {
            "pytorch-lightning_version": "2.6.0",
            "epoch": epoch,
            "global_step": 10 * (epoch + 1),
            "state_dict": {f"model.{name}": tensor for name, tensor in state.items()},
            "hyper_parameters": {"lr": 0.1},
        }
        torch.save(content, tmp_path / f"epoch={epoch}-x.ckpt")
    pool = MemberPool.open(str(tmp_path / "*.ckpt"), allow_pickle=True)
    assert [m.step for m in pool.members] == [10, 20, 30]
    assert pool.names[0] == "epoch=0-x.ckpt"
    key = "decoder.bias"
    mean = torch.stack([state[key] for state in found]).mean(dim=0)
    torch.testing.assert_close(half(pool, Tied())[key], mean)
    # What weights_only refuses says what to do.
    torch.save({"hyper_parameters": argparse.Namespace(lr=1)}, tmp_path / "epoch=3-x.ckpt")
    with pytest.raises(MemberError, match=r"holds argparse.Namespace, which.*save_hyperparam"):
        MemberPool.open(tmp_path, allow_pickle=True)


def test_shards_and_a_configuration(tmp_path: Path) -> None:
    config = tiny.bert_config(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        intermediate_size=8,
        max_position_embeddings=8,
    )
    models = [BertForSequenceClassification(config) for _ in range(2)]
    for step, model in enumerate(models):
        folder = tmp_path / f"out/checkpoint-{step}"
        model.config.save_pretrained(folder)
        items = list(model.state_dict().items())
        shards = {"1": dict(items[::2]), "2": dict(items[1::2])}
        weight_map = {}
        for number, part in shards.items():
            name = f"pytorch_model-0000{number}-of-00002.bin"
            torch.save(part, folder / name)
            weight_map |= dict.fromkeys(part, name)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    # As zero_to_fp32.py leaves it: shards in a folder, the configuration around it.
    inner = tmp_path / "out/checkpoint-1/pytorch_model.bin"
    inner.mkdir()
    for path in list(inner.parent.glob("pytorch_model*-*")) + list(
        inner.parent.glob("*.index*")
    ):
        path.rename(inner / path.name)
    pool = MemberPool.open(tmp_path / "out", allow_pickle=True)
    # The copy is a folder that Transformers loads.
    loaded = BertForSequenceClassification.from_pretrained(pool.members[1].loadable)
    for name, tensor in models[1].state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor)
    shard = tmp_path / "out/checkpoint-0/pytorch_model-00002-of-00002.bin"
    shard.unlink()
    with pytest.raises(MemberError, match="lacks 1 of its shards"):
        MemberPool.open(tmp_path / "out", allow_pickle=True)


class Evil:
    """What a pickle can do when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, zipped: bool) -> None:
    mark = tmp_path / "mark"
    for step in range(2):
        (tmp_path / f"out/checkpoint-{step}").mkdir(parents=True)
        file = tmp_path / f"out/checkpoint-{step}/pytorch_model.bin"
        content = {"weight": torch.ones(2), "x": Evil(mark)}
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(MemberError, match=r"holds posix\.system.*Nothing of it was run"):
        MemberPool.open(tmp_path / "out", allow_pickle=True)
    with pytest.raises(MemberError, match="can run any code"):
        MemberPool.open(tmp_path / "out")
    assert not mark.exists()
    torch.load(file, weights_only=False)  # it would have
    assert mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nn.Linear(1, 1), r"holds torch\.nn\.modules\.linear\.Linear.*model\.state_dict\(\)"),
        ({"epoch": 1}, "holds no weights: neither tensors under their names"),
        ({"a": torch.eye(2).to_sparse()}, "'a' as a Tensor of layout torch.sparse_coo"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "'a' as torch.complex64"),
        (None, "cannot be read as a file of torch.save|is damaged"),
    ],
)
def test_what_is_no_state_dict(content: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    if content is None:
        file.write_bytes(b"no pickle")
    else:
        torch.save(content, file)
    with pytest.raises(MemberError, match=message):
        MemberPool.open(tmp_path, allow_pickle=True)


@pytest.mark.parametrize(
    ("files", "command"),
    [
        (
            ["global_step5/zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_to_fp32.py"],
            r"python {0}/zero_to_fp32.py {0} {0} --safe_serialization",
        ),
        (
            ["pytorch_model_fsdp_0/__0_0.distcp"],
            "accelerate merge-weights {0}/pytorch_model_fsdp_0 {0}",
        ),
        (["__0_0.distcp", "meta.pt"], "lightning.pytorch.utilities.consolidate_checkpoint {0}"),
        (["pytorch_model_fsdp_rank1.bin"], "FULL_STATE_DICT"),
    ],
)
def test_parts_are_refused_with_what_joins_them(
    files: list[str], command: str, tmp_path: Path
) -> None:
    for step in (5, 6):
        for name in files:
            path = tmp_path / f"out/checkpoint-{step}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    with pytest.raises(MemberError) as raised:
        MemberPool.open(f"{tmp_path}/out/checkpoint-*", allow_pickle=True)
    assert command.format(tmp_path / "out/checkpoint-5") in str(raised.value)


def test_pickled_adapters(tmp_path: Path) -> None:
    config = tiny.bert_config(
        vocab_size=20, hidden_size=8, num_hidden_layers=1,
        intermediate_size=8, max_position_embeddings=8,
    )  # fmt: skip
    base = BertForSequenceClassification(config)
    settings = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    for step in range(2):
        adapted = peft.get_peft_model(copy.deepcopy(base), settings)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter)
        adapted.save_pretrained(tmp_path / f"safe/step-{step}")
        folder = tmp_path / f"pickled/step-{step}"
        shutil.copytree(tmp_path / f"safe/step-{step}", folder)
        tensors = load_file(folder / "adapter_model.safetensors")
        (folder / "adapter_model.safetensors").unlink()
        torch.save(tensors, folder / "adapter_model.bin")
    pools = [
        MemberPool.open(tmp_path / name, base=copy.deepcopy(base), allow_pickle=True)
        for name in ("safe", "pickled")
    ]
    assert pools[1].adapters is not None
    assert pools[1].last.path == tmp_path / "pickled/step-1"
    for name in pools[0].tensors:
        for i in range(2):
            assert torch.equal(*(pool.load_tensor(i, name) for pool in pools))


RECORDS: dict[str, Any] = {
    "epoch": 3,
    "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []},
    "loss": torch.tensor(0.5),
    "rng_state": torch.get_rng_state(),
}


@pytest.mark.parametrize("key", ["model_state_dict", "net"])
def test_the_loss_beside_the_weights_is_not_the_model(key: str, tmp_path: Path) -> None:
    for epoch, state in enumerate(states()):
        torch.save({**RECORDS, key: state}, tmp_path / f"epoch_{epoch}.pt")
    pool = MemberPool.open(tmp_path, allow_pickle=True)
    assert set(pool.tensors) == {"embedding.weight", "decoder.bias"}
    half(pool, Tied())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (RECORDS, r"of tensors it has only loss, rng_state, which are no model's"),
        ({"loss": torch.tensor(0.5)}, "of tensors it has only loss"),
        ({"generator": {"w": torch.ones(2)}, "epoch": 1}, "tensors stand under generator, and"),
        (
            {"model": {"w": torch.ones(2)}, "state_dict": {"w": torch.ones(2)}},
            "holds weights in several places: under state_dict, model",
        ),
        ({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}, "holds no weights"),
        ({"cpu": torch.get_rng_state()}, "holds no weights"),
    ],
)
def test_files_without_a_whole_model_are_said(
    content: Any, message: str, tmp_path: Path
) -> None:
    for step in range(2):
        torch.save(content, tmp_path / f"{step}.pt")
    found = inspect(tmp_path, allow_pickle=True)
    assert len(found.errors) == 2
    assert message in found.problems[0]


def test_a_state_that_pytorch_quantised(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    packed = {"0._packed_params._packed_params": (torch.ones(2), None)}
    for step in range(2):
        torch.save({**network.state_dict(), **packed}, tmp_path / f"{step}.pt")
    found = inspect(tmp_path, allow_pickle=True)
    assert "holds quantised weights (0._packed_params" in found.problems[0]
