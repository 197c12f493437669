"""One fine-tuning run: λ → a trajectory, watched and collected by callbacks."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.training_args import ParallelMode

from fusetune.errors import FusetuneError, RecipeError, StageError
from fusetune.files.record import Shape, read_record
from fusetune.members.disk import is_disk_full
from fusetune.tasks.task import Collate, Encoded
from fusetune.training.arguments import build
from fusetune.training.order import OrderKeeper
from fusetune.training.schedules import SCHEDULES, scheduler
from fusetune.training.sharded import from_first
from fusetune.training.tracking import own_runs, write_into
from fusetune.training.watch import MARKER, CheckpointMarker, DivergedError, DivergenceGuard

REMOVE_CHECKPOINT = (
    "Remove this folder and run the same command again: the training goes on from the "
    "checkpoint before it, or begins anew, with the same result."
)


class _Trainer(Trainer):
    """The Trainer, with the papers' schedules and orders that outlive a break."""

    def __init__(
        self, *args: Any, schedule: str | None, order: OrderKeeper, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.schedule = schedule
        self.order = order

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):  # it has no seed of its own
            return self.order.known(sampler)
        return sampler

    def create_scheduler(
        self, num_training_steps: int, optimizer: Optimizer | None = None
    ) -> LRScheduler:
        if self.schedule is None or self.schedule not in SCHEDULES:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            chosen = optimizer or self.optimizer
            assert chosen is not None
            self.lr_scheduler = scheduler(
                self.schedule,
                chosen,
                self.args.get_warmup_steps(num_training_steps),
                num_training_steps,
                cast("dict[str, Any]", self.args.lr_scheduler_kwargs or {}),
            )
        return self.lr_scheduler


def rehearse(
    model: PreTrainedModel,
    data: Encoded,
    collate: Collate,
    arguments: Mapping[str, Any],
    settings: TrainingArguments,
    steps: int,
) -> None:
    """Make all that a training needs but do no step of it.

    The Trainer, its data loader, the optimiser and the schedule each check what they are
    given, so that what they refuse is known before the first training.

    Args:
        model: Of the training; it is not trained, but may be moved to the device.
        data: The training split.
        collate: Pads features into batches.
        arguments: λ and all other `TrainingArguments`.
        settings: Made of them.
        steps: Optimiser steps of the training.

    Raises:
        RecipeError: If something is refused.
    """
    if (
        settings.parallel_mode == ParallelMode.DISTRIBUTED
    ):  # the other processes do not rehearse
        return
    try:
        trainer = _Trainer(
            model=model,
            args=settings,
            train_dataset=data,
            data_collator=collate,
            schedule=arguments.get("lr_scheduler_type"),
            order=OrderKeeper(None),
        )
        trainer.get_train_dataloader()
        trainer.create_optimizer_and_scheduler(steps)
    except Exception as error:  # whatever the libraries behind an argument raise
        raise RecipeError(
            f"train.arguments: the Trainer cannot be made with them: {error}",
            "Check train.arguments and search.space.",
        ) from error


def train(
    make_model: Callable[[], PreTrainedModel],
    data: Encoded,
    collate: Collate,
    folder: Path,
    arguments: Mapping[str, Any],
    *,
    epochs: float,
    seed: int,
    device: str,
    precision: str,
    callbacks: Sequence[TrainerCallback] = (),
    keep_checkpoints: bool = True,
    head_seed: int | None = None,
    logs: Path | None = None,
) -> int:
    """Fine-tune one model; what is kept of it is the callbacks' business.

    A training that was killed goes on from its last complete checkpoint in `folder`, with
    the same random state, so that the trajectory is the one of an undisturbed training.

    Args:
        make_model: Builds the pretrained model with its new head; called after seeding.
        data: The training split.
        collate: Pads features into batches.
        folder: For the Trainer's checkpoints; the caller removes it when all is recorded.
        arguments: λ and all other `TrainingArguments`.
        epochs: Length of the training.
        seed: Of head, data order and dropout.
        device: As PyTorch names it.
        precision: "float32", "bfloat16" or "float16".
        callbacks: Collectors and watchers.
        keep_checkpoints: Whether the training can be resumed; a short trial need not.
        head_seed: Of the head, where it is another than that of data order and dropout:
            trajectories that share it start from the same model.
        logs: Where TensorBoard writes, if `report_to` names it.

    Returns:
        The number of optimiser steps.

    Raises:
        DivergedError: If the loss is no longer finite.
    """
    if not keep_checkpoints:
        arguments = {**arguments, "save_strategy": "no"}
    settings = build(
        folder, arguments, epochs=epochs, seed=seed, device=device, precision=precision
    )
    set_seed(seed if head_seed is None else head_seed)
    model = make_model()
    resumed = from_first(lambda: _resumable(folder))
    order = OrderKeeper(resumed)
    trainer = _Trainer(
        model=model,
        args=settings,
        train_dataset=data,
        data_collator=collate,
        callbacks=[DivergenceGuard(), *callbacks, order, CheckpointMarker()],
        schedule=arguments.get("lr_scheduler_type"),
        order=order,
    )
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ == "PrinterCallback":  # it prints to standard output
            trainer.remove_callback(callback)
    if logs is not None:
        write_into(trainer.callback_handler.callbacks, logs)
    with own_runs(settings, trainer.callback_handler.callbacks):
        _train(trainer, resumed)
    steps = trainer.state.global_step
    del trainer
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    return steps


def _train(trainer: Trainer, resumed: str | None) -> None:
    """Train; what the library raises before the first step is done becomes one message.

    Raises:
        StageError: If the training cannot go on from its checkpoint, or do its first step.
    """
    begun = _Begun()
    trainer.add_callback(begun)
    try:
        trainer.train(resume_from_checkpoint=resumed)
    except Exception as error:
        own = isinstance(
            error, FusetuneError | DivergedError | MemoryError | torch.OutOfMemoryError
        )
        trained = begun.begun if resumed is not None else trainer.state.global_step > 0
        if trained or own or is_disk_full(error) or "memory" in str(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if resumed is None:
            raise StageError(
                f"The training cannot do its first step: {reason}.",
                "Check train.arguments and search.space.",
            ) from error
        raise StageError(f"{resumed} is damaged: {reason}.", REMOVE_CHECKPOINT) from error


class _Begun(TrainerCallback):
    """Whether a training has come to a step: until then, all that is read is a checkpoint."""

    begun = False

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Note the first step."""
        self.begun = True


class _State(Shape):
    """trainer_state.json, as far as a training needs it to go on."""

    global_step: int
    max_steps: int
    epoch: float
    log_history: list[dict[str, Any]]


def _require_state(checkpoint: Path) -> None:
    """Check that a checkpoint knows its step: with another, the training would be another.

    Raises:
        RunError: If not.
    """

    def parse(content: Any) -> int:
        state = _State.model_validate(content)
        if checkpoint.name != f"checkpoint-{state.global_step}":
            raise ValueError(f"its step is {state.global_step}")
        return state.global_step

    file = checkpoint / "trainer_state.json"
    if read_record(file, parse, REMOVE_CHECKPOINT, finite=False) is None:
        raise StageError(f"{file} is gone.", REMOVE_CHECKPOINT)


def parameters_sha256(model: PreTrainedModel) -> str:
    """Hexadecimal sha256 of all parameters, in the order of their names."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _resumable(folder: Path) -> str | None:
    """The last complete checkpoint; incomplete ones are removed."""
    complete: list[Path] = []
    for path in folder.glob("checkpoint-*"):
        if not path.name.removeprefix("checkpoint-").isdecimal():
            continue
        if (path / MARKER).is_file():
            complete.append(path)
        else:
            shutil.rmtree(path)
    complete.sort(key=lambda path: int(path.name.rpartition("-")[2]))
    if not complete:
        return None
    _require_state(complete[-1])
    return str(complete[-1])
