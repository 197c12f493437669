"""The callback in a real Lightning training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fusetune
from fusetune.errors import StageError

lightning = pytest.importorskip("lightning", reason="an extra of its own")

from fusetune.integrations.lightning import (  # noqa: E402
    MemberCollector,
    evaluate_with,
    network,
)


class Line(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """y = 2x + 1, learned; the states of each optimiser step are remembered."""

    def __init__(self, *, inside: bool = True) -> None:
        super().__init__()
        if inside:
            self.model = nn.Linear(1, 1)
        else:
            self.slope, self.bias = nn.Linear(1, 1, bias=False), nn.Linear(1, 1)
        self.inside = inside
        self.save_hyperparameters()

    def predict(self, x: Tensor) -> Tensor:
        found: Tensor = self.model(x) if self.inside else self.slope(x) + self.bias(0 * x)
        return found

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return (self.predict(batch[0]) - batch[1]).square().mean()

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("loss", (self.predict(batch[0]) - batch[1]).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def data(n: int = 24) -> DataLoader[tuple[Tensor, ...]]:
    x = torch.linspace(-1, 1, n)[:, None]
    return DataLoader(TensorDataset(x, 2 * x + 1), batch_size=2)


def trainer(folder: Path, **options: object) -> lightning.Trainer:  # type: ignore[name-defined]
    return lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{"enable_checkpointing": False, **options},
    )


def test_members_are_those_steps_of_the_network(tmp_path: Path) -> None:
    module, states = Line(), {}

    class Remember(lightning.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_end(self, trainer: object, module: Line, *rest: object) -> None:
            step = trainer.global_step  # type: ignore[attr-defined]
            states[step] = {n: t.clone() for n, t in module.model.state_dict().items()}

    collector = MemberCollector(tmp_path / "members", members=3)
    # 12 batches, 2 to an optimiser step, 2 epochs: 12 steps.
    fit = trainer(
        tmp_path, max_epochs=2, accumulate_grad_batches=2, callbacks=[Remember(), collector]
    )
    fit.fit(module, data())
    pool = fusetune.MemberPool.open(tmp_path / "members")
    assert [m.step for m in pool.members] == [8, 10, 12]
    for member in pool.members:
        found = load_file(member.path / "model.safetensors")
        assert found.keys() == {"weight", "bias"}
        assert member.step is not None
        for name, tensor in found.items():
            assert torch.equal(tensor, states[member.step][name])

    last = fit.validate(module, data(), verbose=False)[0]["loss"]
    result = fusetune.fuse(
        pool,
        evaluate=evaluate_with(fit, module, dataloaders=data()),
        objectives=["loss"],
        model_init=lambda: network(module),
        budget=8,
    )
    ends = [c.values["loss"] for c in result.candidates if c.weights.values[2] == 1.0]
    assert ends == [pytest.approx(last)]
    assert result.values["loss"] <= last


def test_a_module_that_is_the_network_itself(tmp_path: Path) -> None:
    module = Line(inside=False)
    collector = MemberCollector(tmp_path / "members", members=2)
    trainer(tmp_path, max_steps=4, callbacks=[collector]).fit(module, data())
    assert network(module) is module
    names = load_file(tmp_path / "members/step-000004/model.safetensors").keys()
    assert names == {"slope.weight", "bias.weight", "bias.bias"}


def test_its_own_checkpoints_are_members_by_consent(tmp_path: Path) -> None:
    module = Line()
    keep = lightning.pytorch.callbacks.ModelCheckpoint(
        tmp_path / "kept", save_top_k=-1, every_n_train_steps=2
    )
    fit = trainer(tmp_path, max_steps=4, callbacks=[keep], enable_checkpointing=True)
    fit.fit(module, data())
    pool = fusetune.MemberPool.open(str(tmp_path / "kept/*.ckpt"), allow_pickle=True)
    assert [m.step for m in pool.members] == [2, 4]
    for name, tensor in module.model.state_dict().items():
        assert torch.equal(pool.load_tensor(1, name), tensor)


def test_a_training_without_an_end(tmp_path: Path) -> None:
    collector = MemberCollector(tmp_path / "members", members=2)
    endless = trainer(tmp_path, max_epochs=-1, callbacks=[collector])
    with pytest.raises(StageError, match="without an end"):
        endless.fit(Line(), data())


class Weighted(Line):
    """Its loss keeps a tensor beside the network, which is compiled, and one that changes."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.compile(nn.Linear(1, 1), backend="eager")  # type: ignore[assignment]
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("seen", torch.tensor(0.0))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        self.seen += 1
        return super().training_step(batch, index) * self.scale


def test_checkpoints_of_lightning_fill_the_network(tmp_path: Path) -> None:
    module = Weighted()
    keep = lightning.pytorch.callbacks.ModelCheckpoint(
        tmp_path,
        "{epoch}-{step}-{loss:.2f}",
        save_top_k=-1,
        every_n_train_steps=4,
        save_last=True,
    )
    fit = trainer(tmp_path, max_epochs=1, callbacks=[keep], enable_checkpointing=True)
    fit.fit(module, data())
    found = fusetune.fuse(
        f"{tmp_path}/*.ckpt",
        evaluate=lambda model: {"loss": float(sum(p.sum() for p in model.parameters()))},
        objectives=["loss"],
        budget=4,
        model_init=lambda: network(module),
        allow_pickle=True,
        device="cpu",
    )
    assert [member.step for member in found.pool.members] == [4, 8, 12]  # last.ckpt is a copy
    assert set(found.pool.tensors) == {"weight", "bias"}
