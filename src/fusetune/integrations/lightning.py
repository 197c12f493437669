"""Members from a Lightning training, and evaluating with Lightning. Needs `lightning`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import lightning.pytorch as pl
except ImportError:  # the same code under its older name
    import pytorch_lightning as pl
from torch import nn
from transformers import PreTrainedTokenizerBase

from fusetune.errors import StageError
from fusetune.training import collect


class MemberCollector(pl.Callback):
    """Keeps k checkpoints of a Lightning training; see `fusetune.MemberCollector`.

    What is kept is the network, not the `LightningModule` around it: the module's attribute
    `model` if that holds all its parameters, else the module itself. `network` gives it.

        trainer = L.Trainer(callbacks=[MemberCollector("members", members=15)])

    Args:
        folder: Where the members go.
        members: k, how many.
        collect_from: Share of the training before the first member, 0 ≤ x < 1.
        tokenizer: Saved with each member if given.

    Raises:
        StageError: At the start of the training, if its number of steps is not known, the
            window is too short for k members, or the disk too small.
    """

    def __init__(
        self,
        folder: str | Path,
        members: int = 15,
        collect_from: float = 0.5,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.collector = collect.MemberCollector(folder, members, collect_from, tokenizer)
        self._last = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Plan the steps, drop members of a cut-off trajectory, check the disk."""
        total = trainer.estimated_stepping_batches
        if total in (float("inf"), -1):
            raise StageError(
                "A training without an end has no last part to collect members from.",
                "Give the Trainer max_epochs or max_steps.",
            )
        self.collector.plan(int(total))
        self._last = trainer.global_step
        if trainer.is_global_zero:
            self.collector.prepare(network(pl_module), trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Keep the network if an optimiser step was made, and it is a planned one."""
        step = trainer.global_step
        if step != self._last and step in self.collector.steps and trainer.is_global_zero:
            self.collector.save(network(pl_module), step, float(trainer.current_epoch))
        self._last = step


def network(module: pl.LightningModule) -> nn.Module:
    """What of a `LightningModule` is fused: its `model` if that holds all parameters."""
    inner = getattr(module, "model", None)
    if isinstance(inner, nn.Module):
        own = {id(p) for p in module.parameters()}
        if own and own == {id(p) for p in inner.parameters()}:
            return inner
    whole: nn.Module = module
    return whole


def evaluate_with(
    trainer: pl.Trainer, module: pl.LightningModule, **data: Any
) -> Callable[[nn.Module], dict[str, Any]]:
    """`trainer.validate` as a function of the network, which must be the module's own.

    Args:
        trainer: After the training.
        module: Give `fuse` `model_init=lambda: network(module)`.
        data: `dataloaders` or `datamodule`, if the module has no `val_dataloader`.

    Returns:
        A function whose result has what `validation_step` logged.
    """

    def evaluate(model: nn.Module) -> dict[str, Any]:
        # Lightning moves the module to its device and back; these are the tensors to keep.
        places = [(parameter, parameter.data) for parameter in model.parameters()]
        found: dict[str, Any] = {}
        for values in trainer.validate(module, verbose=False, **data):
            found |= values
        for parameter, data_before in places:
            parameter.data = data_before
        return found

    return evaluate
