"""What can be known to be wrong before any long work starts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from transformers import PreTrainedModel, TrainingArguments

from fusetune.errors import RecipeError
from fusetune.members.base import Base
from fusetune.members.base_member import check_base_tensors, state_of
from fusetune.members.blocks import find_blocks
from fusetune.members.disk import require_space
from fusetune.members.fit import check_can_be_collected
from fusetune.members.member import Member
from fusetune.members.pool import check_fit_base
from fusetune.models.lora import require_peft
from fusetune.models.quantised import merged_bytes, quantised_layers
from fusetune.optimization import RIVALS, rivals
from fusetune.pipeline import existing, notes, starts, tracking
from fusetune.pipeline.context import Context
from fusetune.pipeline.space import corners
from fusetune.recipe_checks import quantisation_problems
from fusetune.tasks.task import OfModel
from fusetune.training import arguments
from fusetune.training.collect import plan_steps
from fusetune.training.trajectory import rehearse


def check(context: Context) -> None:
    """Find what is wrong before any long work starts.

    Raises:
        FusetuneError: If the data, the model, an argument, the number of members or
            the disk does not fit.
    """
    recipe = context.recipe
    _ = context.code  # before anything is loaded
    context.source.check(adapters=recipe.model.lora is not None)
    if problems := quantisation_problems(context.source.quantised, recipe):
        raise RecipeError(f"{context.source.label} is quantised: {'; '.join(problems)}.")
    _ = context.device, context.precision, context.tokenizer
    _ = context.constraint
    starts.check(context)
    tracking.check(context)
    if recipe.storage is not None:
        _ = context.storage
    if context.folder.done("fuse") is None:  # what follows does not use it
        _check_executor(context)
    inner = recipe.search.objective.removeprefix("fused:")
    for method in {*recipe.fuse.rows, recipe.fuse.sampler, inner}:
        if method in RIVALS:
            rivals.require(method)
    trains = recipe.train.checkpoints is None
    members = () if trains else existing.check(context)
    if isinstance(context.task, OfModel):  # what does not fit the model shows in encoding
        for split in context.task.splits:
            _ = context.train_data if split == "train" else context.encode(split)
    code = notes.of_code(recipe.model.trust_remote_code)
    slow = notes.of_precision(context.precision, context.device)
    for note in (*code, *slow, *context.task.notes):
        context.display.warn(note)
    model, size, kept = _check_model(context, members)
    if trains:
        _check_training(context, model, size, kept)
    elif context.folder.done("fuse") is None:
        other = [m for m in members if any(f.suffix != ".safetensors" for f in m.files)]
        copies = sum(member.nbytes for member in other) + recipe.fuse.base_member * size
        require_space(context.folder.path, size + copies)


def _check_executor(context: Context) -> None:
    """Join the cluster; refuse what cannot be the same in every run, where that is wanted."""
    executor, pruner = context.executor, context.recipe.search.pruner
    if executor.ordered and executor.capacity > 1 and pruner == "hyperband":
        raise RecipeError(
            "executor.deterministic: the pruner hyperband looks at trials that run side by "
            "side, whose order is chance.",
            "Take search.pruner: median or none, or leave out executor.deterministic.",
        )


def _check_training(context: Context, model: PreTrainedModel, size: int, kept: int) -> None:
    """The arguments and steps of every training that may come, and the disk.

    Args:
        context: Of a run that trains.
        model: That is trained.
        size: Bytes of the model's weights.
        kept: Bytes of what a member keeps of them.
    """
    recipe = context.recipe
    search, train = recipe.search, recipe.train
    fuses = search.trials > 0 and search.objective.startswith("fused")
    lengths = {train.epochs, search.epochs or train.epochs} if fuses else {train.epochs}
    for params in corners(recipe):
        given = {**context.training_arguments(params), "report_to": "none"}
        settings = arguments.build(
            context.folder.work,
            given,
            epochs=train.epochs,
            seed=recipe.seed,
            device=context.device.type,
            precision=context.precision,
        )
        for epochs in lengths:
            steps = _steps(settings, len(context.task.splits["train"]), epochs)
            plan_steps(steps, train.members_each, train.collect_from)
        if context.folder.done("train") is None:
            steps = _steps(settings, len(context.task.splits["train"]), train.epochs)
            rehearse(model, context.train_data, context.collate, given, settings, steps)
    if context.folder.done("train") is None:
        # Members, two checkpoints with optimiser state (3 x each), and the fused model.
        copies = recipe.train.members + 6
        if recipe.trains_in_trials:  # those of the trial that goes on, beside the best
            copies += recipe.train.members_each
        require_space(context.folder.path, copies * kept + size)


def _steps(settings: TrainingArguments, rows: int, epochs: float) -> int:
    """Optimiser steps of a training over so many rows."""
    if settings.max_steps > 0:
        return int(settings.max_steps)
    batch: int = settings.train_batch_size * settings.gradient_accumulation_steps
    return math.ceil(math.ceil(rows / (batch * int(settings.world_size))) * epochs)


def _check_model(
    context: Context, members: Sequence[Member]
) -> tuple[PreTrainedModel, int, int]:
    """Build the model once; with the bytes of its weights, and of what a member keeps of them.

    Args:
        context: Of the run.
        members: Checkpoints that exist already, which a base model has to fit.
    """
    recipe = context.recipe
    if recipe.model.lora is not None:
        require_peft()
    exist = recipe.train.checkpoints is not None
    light = recipe.search.trials and recipe.model.lora is None
    make = context.model_maker(recipe.search.variant if light else "full")
    model = context.base() if exist else make()
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    size = merged_bytes(model)
    if "otfusion" in recipe.fuse.rows:
        plain = model if context.lora is None or exist else context.base()
        shapes = {name: tuple(p.shape) for name, p in plain.state_dict().items()}
        if quantised_layers(plain):
            shapes = {name: spec.shape for name, spec in Base(plain).specs.items()}
        find_blocks(plain.config.to_dict(), shapes)
    if recipe.fuse.base_member and members and context.lora is None:
        specs = members[0].tensors
        check_base_tensors(specs, state_of(model, tuple(specs)), list(specs))
    if context.lora is None and not exist:
        check_can_be_collected(model)
    if members and context.lora is not None:
        check_fit_base(members, model, recipe.model.allow_pickle)
    trained = sum(nbytes for nbytes, trains in sizes if trains)
    return model, size, size if context.lora is None else trained
