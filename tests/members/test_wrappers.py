"""Names that wrappers of a network leave in files, and networks inside of wrappers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from fusetune import MemberCollector
from fusetune.errors import MemberError
from fusetune.members.average import plan
from fusetune.members.checkpoints.wrappers import own_names, without_wrappers
from fusetune.members.manifest import write_manifest
from fusetune.members.pool import MemberPool
from fusetune.members.weights import FusionWeights

State = dict[str, Tensor]


class Net(nn.Module):
    """A network with parts that have the names of wrappers' own."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
        self.model = nn.Linear(4, 2)


class OnlyModule(nn.Module):
    """Its names look as if DistributedDataParallel had written them."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(3, 2)


def compiled_inside() -> nn.Module:
    net = Net()
    net.module[1] = torch.compile(net.module[1])  # type: ignore[assignment]
    return net


def checkpointed() -> nn.Module:
    net = Net()
    net.module = checkpoint_wrapper(net.module)
    return net


WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "plain": Net,
    "compiled": lambda: torch.compile(Net()),  # type: ignore[return-value]
    "compiled inside": compiled_inside,
    "DataParallel": lambda: nn.DataParallel(Net()),
    "averaged": lambda: AveragedModel(Net()),
    "averaged, compiled": lambda: AveragedModel(torch.compile(compiled_inside())),  # type: ignore[arg-type]
    "checkpointed": checkpointed,
}


def mean_of(pool: MemberPool, model: nn.Module) -> None:
    plan(pool, model).into_model(FusionWeights.uniform(len(pool)))


@pytest.mark.parametrize("kind", WRAPPED)
def test_the_collector_keeps_the_network_whole(kind: str, tmp_path: Path) -> None:
    collector = MemberCollector(tmp_path, members=2, collect_from=0, total_steps=2)
    model, names = WRAPPED[kind](), set(Net().state_dict())
    before = list(model.state_dict())
    for _ in range(2):
        folder = collector.step(model)
        assert folder is not None
        assert set(load_file(folder / "model.safetensors")) == names
        nn.init.normal_(next(model.parameters()))
    assert list(model.state_dict()) == before  # the wrappers are back
    pool = MemberPool.open(tmp_path)
    mean_of(pool, WRAPPED[kind]())  # whatever of them is wrapped when they are averaged
    mean_of(pool, Net())


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("ending", ["safetensors", "pt", "folder", "shards"])
def test_files_lose_what_wrappers_added(kind: str, ending: str, tmp_path: Path) -> None:
    models = [WRAPPED[kind]() for _ in range(2)]
    for step, model in enumerate(models):
        state = model.state_dict()
        place = tmp_path / f"step-{step}"
        if ending == "pt":
            torch.save({"model": state, "epoch": step}, place.with_suffix(".pt"))
        elif ending == "safetensors":
            save_file(state, place.with_suffix(".safetensors"))
        else:
            place.mkdir()
            save_file(state, place / "model.safetensors")
        if ending == "shards":
            split(place)
    pool = MemberPool.open(tmp_path, allow_pickle=True)
    assert set(pool.tensors) == set(Net().state_dict())
    assert [member.step for member in pool.members] == [0, 1]
    for member in pool.members:
        assert set(load_of(member.loadable)) == set(pool.tensors)
    mean_of(pool, mean := Net())
    plain = []
    for model in models:
        with without_wrappers(model) as network:
            plain.append(network.state_dict())
    for name, value in mean.state_dict().items():
        torch.testing.assert_close(value, (plain[0][name] + plain[1][name]) / 2)


def split(folder: Path) -> None:
    """One file as two shards with their index."""
    import json

    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, name in enumerate(state):
        weight_map[name] = f"model-0000{number % 2 + 1}-of-00002.safetensors"
    for file in set(weight_map.values()):
        save_file({n: state[n] for n in state if weight_map[n] == file}, folder / file)
    index = {"weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def load_of(folder: Path) -> State:
    found: State = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def test_names() -> None:
    flat = ["module.module.a._orig_mod.weight", "module.module.b", "module.n_averaged"]
    assert own_names(flat) == {flat[0]: "a.weight", flat[1]: "b"}
    # Of a network, not of a wrapper.
    mixed = ["module.a", "head.b", "n_averaged"]
    assert own_names(mixed) == {name: name for name in mixed}
    assert own_names(["module.a"], collected=True) == {"module.a": "module.a"}
    lightning = ["_forward_module.model._orig_mod.a", "_forward_module.model.b"]
    assert list(own_names(lightning, lightning=True).values()) == ["a", "b"]
    fsdp = ["_fsdp_wrapped_module.a._fsdp_wrapped_module._checkpoint_wrapped_module.b"]
    assert list(own_names(fsdp).values()) == ["a.b"]
    with pytest.raises(MemberError, match=r"x.pt has '_orig_mod.a' and 'a': .* both are 'a'"):
        own_names(["_orig_mod.a", "a"], where="x.pt")
    with pytest.raises(MemberError, match="one flat tensor of FSDP"):
        own_names(["_fsdp_wrapped_module._flat_param"])


@pytest.mark.parametrize("collected", [True, False])
def test_a_network_with_module_as_its_only_part(collected: bool, tmp_path: Path) -> None:
    for step in range(2):
        folder = tmp_path / f"step-{step}"
        folder.mkdir()
        save_file(OnlyModule().state_dict(), folder / "model.safetensors")
        if collected:
            write_manifest(folder, step=step, epoch=None)
    pool = MemberPool.open(tmp_path)
    mean_of(pool, OnlyModule())
    assert set(pool.tensors) == {"module.weight", "module.bias"}  # what is saved has them too


def lightning_file(file: Path, state: State, step: int) -> None:
    content = {"pytorch-lightning_version": "2.6.0", "global_step": step, "state_dict": state}
    torch.save(content, file)


def test_what_stands_beside_a_network_in_lightning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    networks = [Net() for _ in range(2)]
    for step, net in enumerate(networks):
        state = {f"model.{name}": tensor for name, tensor in net.state_dict().items()}
        state["criterion.weight"] = torch.rand(2)
        lightning_file(tmp_path / f"{step}.ckpt", state, step)
    pool = MemberPool.open(f"{tmp_path}/*.ckpt", allow_pickle=True)
    mean_of(pool, mean := Net())
    assert set(pool.tensors) == set(mean.state_dict())
    assert "criterion.weight stand beside the model" in caplog.text
    states = [net.state_dict() for net in networks]
    for name, value in mean.state_dict().items():
        torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2)


def test_a_network_that_stands_twice_is_not_guessed(tmp_path: Path) -> None:
    for step in range(2):
        state = {f"{n}.{k}": t for n in ("model", "ema") for k, t in Net().state_dict().items()}
        lightning_file(tmp_path / f"{step}.ckpt", state, step)
    pool = MemberPool.open(f"{tmp_path}/*.ckpt", allow_pickle=True)
    with pytest.raises(MemberError, match=r"more than once: under 'ema\.' and under 'model\.'"):
        mean_of(pool, Net())


def test_a_trained_head_beside_the_model_is_not_dropped(tmp_path: Path) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 1)

    for step in range(2):
        torch.save(Whole().state_dict(), tmp_path / f"{step}.pt")
    pool = MemberPool.open(tmp_path, allow_pickle=True)
    with pytest.raises(MemberError, match="do not fit the model"):
        mean_of(pool, nn.Linear(3, 3))
