"""The order of an epoch's batches, the same after a break in its middle.

The Trainer goes on within an epoch by skipping the batches that were seen. A sampler that has
a seed of its own draws the same order again; one that groups rows by length draws from
PyTorch's random state, which is another one by then. So that state is kept in each checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

FILE = "epoch-order.safetensors"
STATE = "random-state"


class KnownOrder(Sampler[int]):
    """A sampler whose order can be drawn again.

    Args:
        sampler: Draws from PyTorch's random state whenever it is iterated.

    Attributes:
        state: Before the last order was drawn.
        given: To be taken for the next order alone.
    """

    def __init__(self, sampler: Sampler[int]) -> None:
        self.sampler = sampler
        self.state: torch.Tensor | None = None
        self.given: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        if self.given is not None:
            torch.set_rng_state(self.given)
        self.given, self.state = None, torch.get_rng_state()
        yield from self.sampler


class OrderKeeper(TrainerCallback):
    """Keeps the state of a sampler in checkpoints, and gives it back.

    Args:
        resumed: The checkpoint that the training goes on from, if any.
    """

    def __init__(self, resumed: str | None) -> None:
        self.order: KnownOrder | None = None
        self.file = Path(resumed) / FILE if resumed else None

    def known(self, sampler: Sampler[int]) -> KnownOrder:
        """The sampler of the training, as one whose order is kept."""
        self.order = KnownOrder(sampler)
        return self.order

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Of the epoch that was broken off; later ones begin as they do without a break."""
        file, self.file = self.file, None
        within = state.epoch is not None and not float(state.epoch).is_integer()
        if self.order is not None and within and file is not None and file.is_file():
            self.order.given = load_file(file)[STATE]

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Write the state of the current epoch into the checkpoint."""
        assert args.output_dir is not None
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        drawn = None if self.order is None else self.order.state
        if state.is_world_process_zero and folder.is_dir() and drawn is not None:
            save_file({STATE: drawn}, folder / FILE)
