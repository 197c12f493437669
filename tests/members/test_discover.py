"""Which paths are members, which were not written to their end, and what is said of these."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fusetune.errors import MemberError
from fusetune.members.discover import find_members
from fusetune.members.pool import MemberPool, inspect
from fusetune.members.runs import runs
from fusetune.pipeline.asking import shortest

Change = Callable[[Path], object]


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()


def only(folder: Path, *names: str) -> None:
    shutil.rmtree(folder)
    touch(folder, *names)


UNFINISHED: dict[str, tuple[Change, str]] = {
    "shards": (
        lambda f: only(f, "config.json", "model-00001-of-00002.safetensors"),
        "shards without their index",
    ),
    "pickled shards": (
        lambda f: only(f, "config.json", "pytorch_model-00001-of-00002.bin"),
        "shards without their index",
    ),
    "state": (
        lambda f: only(f, "optimizer.pt", "scheduler.pt", "rng_state.pth"),
        "the state of a training, and no weights",
    ),
    "trainer": (lambda f: only(f, "trainer_state.json"), "the state of a training"),
    "configuration": (lambda f: only(f, "config.json"), "a configuration, and no weights"),
    "adapter": (lambda f: only(f, "adapter_config.json"), "a configuration, and no weights"),
    "empty": (only, "it holds no weights"),
    "temporary file": (
        lambda f: only(f, "config.json", "model.safetensors.tmp"),
        "a file that is still being written (model.safetensors.tmp)",
    ),
    "temporary folder": (
        lambda f: f.rename(f.parent / "tmp-checkpoint-30"),
        "its name is that of a checkpoint that is still being written",
    ),
    "other temporary folder": (
        lambda f: f.rename(f.parent / "checkpoint-30.tmp"),
        "still being written",
    ),
    "hidden folder": (
        lambda f: f.rename(f.parent / ".checkpoint-30.new"),
        "still being written",
    ),
    "broken link": (
        lambda f: (shutil.rmtree(f), f.symlink_to("gone", target_is_directory=True)),
        "it is a link to nothing",
    ),
}


@pytest.fixture
def out(bert_members: Path, tmp_path: Path) -> Path:
    for step in (10, 20, 30):
        shutil.copytree(bert_members / f"step-{step}", tmp_path / "out" / f"checkpoint-{step}")
    return tmp_path / "out"


@pytest.mark.parametrize("form", UNFINISHED)
def test_what_was_cut_off_is_left_out_with_a_word(form: str, out: Path) -> None:
    change, reason = UNFINISHED[form]
    change(out / "checkpoint-30")
    (out / "runs/events").mkdir(parents=True)  # no checkpoint at all
    patterns = [out] if form == "hidden folder" else [out, f"{out}/*"]
    for paths in patterns:
        found = inspect(paths)
        assert [member.name for member in found.members] == ["checkpoint-10", "checkpoint-20"]
        assert [path.name for path in found.incomplete] == [
            path.name for path in out.iterdir() if "30" in path.name
        ]
        assert reason in found.notes[0]
    # Alone, it is refused, and the reason is the same.
    with pytest.raises(MemberError, match="No checkpoint in") as raised:
        find_members([f"{out}/*30*", f"{out}/.*30*"])
    assert reason in str(raised.value)


@pytest.mark.parametrize("form", ["shards", "pickled shards", "state", "configuration"])
def test_given_by_its_own_path_it_is_refused(form: str, out: Path) -> None:
    change, reason = UNFINISHED[form]
    change(out / "checkpoint-30")
    found = inspect([out / f"checkpoint-{step}" for step in (10, 20, 30)])
    assert not found.compatible
    assert "checkpoint-30 is no whole checkpoint: it holds" in found.problems[0]
    assert reason in found.problems[0]


def test_single_files(tmp_path: Path) -> None:
    states = [nn.Linear(2, 3).state_dict() for _ in range(3)]
    for epoch, state in enumerate(states):
        save_file(state, tmp_path / f"epoch{epoch}.safetensors")
    (tmp_path / "optimizer.safetensors").touch()
    (tmp_path / "epoch3.safetensors.tmp").touch()
    names = [f"epoch{epoch}.safetensors" for epoch in range(3)]
    for paths in (
        tmp_path,
        f"{tmp_path}/epoch*.safetensors",
        [tmp_path / name for name in names],
    ):
        pool = MemberPool.open(paths)
        assert list(pool.names) == names
        assert [member.step for member in pool.members] == [0, 1, 2]
        for index, state in enumerate(states):
            assert torch.equal(pool.load_tensor(index, "weight"), state["weight"])
    assert [path.name for path in inspect(tmp_path).incomplete] == ["epoch3.safetensors.tmp"]


def test_files_with_a_usual_name_mean_their_folder(out: Path) -> None:
    pool = MemberPool.open(f"{out}/*/model.safetensors")
    assert pool.names == ("checkpoint-10", "checkpoint-20", "checkpoint-30")
    assert pool.config  # which lies beside the file
    one = find_members(out / "checkpoint-10/model.safetensors")
    assert one.folders == (out / "checkpoint-10",)


def test_files_in_a_model_s_folder_are_no_members(out: Path) -> None:
    torch.save({"w": torch.ones(2)}, out / "checkpoint-10/scores_step5.bin")
    assert find_members(out / "checkpoint-10").folders == (out / "checkpoint-10",)


def test_the_last_model_beside_checkpoints_is_none_of_them(out: Path) -> None:
    shutil.copytree(out / "checkpoint-30", out, dirs_exist_ok=True)
    shutil.rmtree(out / "checkpoint-30")
    for paths in (out, f"{out}/*"):
        assert [path.name for path in find_members(paths).folders] == [
            "checkpoint-10",
            "checkpoint-20",
        ]


def test_a_usual_name_among_others_is_one_file_of_several(tmp_path: Path) -> None:
    for name in ("model", "epoch1", "epoch2"):
        save_file(nn.Linear(2, 3).state_dict(), tmp_path / f"{name}.safetensors")
    names = {path.name for path in find_members(f"{tmp_path}/*.safetensors").folders}
    assert names == {"model.safetensors", "epoch1.safetensors", "epoch2.safetensors"}


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "net.bin"])
def test_one_file_of_any_name_in_a_checkpoint(name: str, tmp_path: Path) -> None:
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        touch(folder, "optimizer.bin", "config.txt")
        state = nn.Linear(2, 3).state_dict()
        if name.endswith("safetensors"):
            save_file(state, folder / name)
        else:
            torch.save(state, folder / name)
    assert MemberPool.open(tmp_path, allow_pickle=True).names == (
        "checkpoint-1",
        "checkpoint-2",
    )


def save_adapters(tmp_path: Path, *names: str) -> Path:
    for step in (5, 10):
        model = peft.get_peft_model(
            nn.Sequential(nn.Linear(3, 3)), peft.LoraConfig(target_modules=["0"]), names[0]
        )
        for name in names[1:]:
            model.add_adapter(name, peft.LoraConfig(target_modules=["0"]))
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        model.save_pretrained(tmp_path / f"out/checkpoint-{step}")
        touch(tmp_path / f"out/checkpoint-{step}", "optimizer.pt")
    return tmp_path / "out"


def test_an_adapter_with_a_name(tmp_path: Path) -> None:
    out = save_adapters(tmp_path, "sft")
    shutil.copytree(out / "checkpoint-10/sft", out / "sft")  # as a Trainer saves the last one
    folders = [out / "checkpoint-5", out / "checkpoint-10"]
    for paths in (out, f"{out}/checkpoint-*", f"{out}/checkpoint-*/sft", folders):
        found = inspect(paths)
        assert [member.name for member in found.members] == ["checkpoint-5", "checkpoint-10"]
        assert [member.step for member in found.members] == [5, 10]
        assert found.members[0].path == out / "checkpoint-5/sft"
    (out / "checkpoint-5/trainer_state.json").write_text('{"global_step": 7}')
    members = inspect(out).members
    assert members[0].step == 7
    assert runs(members) == [list(members)]
    assert shortest(members) == [f"{out}/checkpoint-*"]


def test_of_several_adapters_one_has_to_be_named(tmp_path: Path) -> None:
    out = save_adapters(tmp_path, "policy", "reference")
    for paths in (out, f"{out}/checkpoint-*", out / "checkpoint-5"):
        with pytest.raises(MemberError, match=r"holds 2 adapters: policy, reference"):
            inspect(paths)
    assert len(inspect(f"{out}/*/policy").members) == 2


QUANTISED = {
    "bitsandbytes": {"layer.weight": torch.uint8, "layer.weight.absmax": torch.float32},
    "8 bits": {"layer.weight": torch.int8, "layer.SCB": torch.float32},
    "GPTQ": {"layer.qweight": torch.int32, "layer.scales": torch.float16},
}


@pytest.mark.parametrize("form", QUANTISED)
def test_quantised_states_are_refused_when_they_are_listed(form: str, tmp_path: Path) -> None:
    for step in (1, 2):
        state = {n: torch.full((2, 2), step).to(t) for n, t in QUANTISED[form].items()}
        touch(tmp_path / f"checkpoint-{step}")
        save_file(state, tmp_path / f"checkpoint-{step}/model.safetensors")
    found = inspect(tmp_path)
    assert "holds quantised weights (layer." in found.problems[0]
    for step in (1, 2):
        file = tmp_path / f"checkpoint-{step}/model.safetensors"
        torch.save(load_file(file), tmp_path / f"{step}.pt")
    found = inspect(f"{tmp_path}/*.pt", allow_pickle=True)
    assert "holds quantised weights (layer." in found.problems[0]
