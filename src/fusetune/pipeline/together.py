"""A run in several processes that a launcher started: `torchrun -m fusetune run …`.

The first process runs the pipeline. Trainings and evaluations it does along with the others,
which wait for them in between, know the run from its recipe and hold what they need: data,
and their part of the model and of the members.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from fusetune.errors import RecipeError
from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.lockstep import Lockstep
from fusetune.evaluation.scorer import Scorer
from fusetune.executors.group import Group, current, launched
from fusetune.members.averaging_plan import SHARE
from fusetune.members.memory import available_bytes
from fusetune.models.device import choose_device
from fusetune.models.quantised_load import NONE
from fusetune.models.sharded import shard
from fusetune.pipeline.context import Context
from fusetune.pipeline.remote import Place
from fusetune.recipe import Recipe

T = TypeVar("T")
Along = Callable[..., object]

GRADIENTS = ("learned", "twa", "fisher")
"""Methods that follow gradients of one whole model."""


@dataclass(frozen=True)
class _Call:
    """What the followers do: `function(context, *arguments)`.

    Attributes:
        place: Of the run.
        function: Of a module, found there by its name.
        arguments: Small.
    """

    place: Place
    function: Along
    arguments: tuple[Any, ...]


@contextmanager
def joined(recipe: Recipe) -> Iterator[bool]:
    """Whether this process runs the pipeline; the others work along until that has ended.

    Raises:
        RecipeError: If the recipe has what several processes cannot do.
    """
    if launched() == 1:
        yield True
        return
    _check(recipe)
    group = Group.join(choose_device(recipe.model.device).type)
    if group.rank:
        _follow(group)
        yield False
    else:
        try:
            yield True
        except KeyboardInterrupt:  # the others may be in the middle of something
            raise
        except BaseException:
            group.dismiss()
            raise
        group.dismiss()
    group.leave()


def together(context: Context, work: Callable[[], T], along: Along, *arguments: Any) -> T:
    """Do a piece of work in every process of the group; without a group, just here.

    Args:
        context: Of the run.
        work: What the first process does.
        along: What the others do meanwhile, a function of a module: it is called as
            `along(context, *arguments)` and takes part in the same trainings and evaluations.
        arguments: For it.
    """
    group = current()
    if group is None:
        return work()
    return group.lead(_Call(Place.of(context), along, arguments), work)


def spreads(recipe: Recipe) -> bool:
    """Whether models are spread over the processes, too large for one device."""
    return current() is not None and bool(recipe.train.arguments.get("fsdp"))


def spread(context: Context, build: Callable[[], nn.Module]) -> nn.Module:
    """A model of which each process has its rows. Collective."""
    group = current()
    assert group is not None
    return shard(build, context.device, _layers(context.recipe), group.in_turn)


def lockstep(score: Callable[[nn.Module], Evaluation]) -> Callable[[nn.Module], Evaluation]:
    """The same evaluation, shared by the group, if there is one."""
    group = current()
    if group is None:
        return score
    assert isinstance(score, Scorer)
    return Lockstep(score, group)


def memory_limit(context: Context) -> int:
    """Bytes that all members may take, where each process keeps a part, or all, of them."""
    group = current()
    assert group is not None
    free = SHARE * available_bytes(context.device)
    if context.device.type == "cpu":  # one memory for all of this machine
        free /= group.on_this_machine
    return int(free * (group.size if spreads(context.recipe) else 1))


def _layers(recipe: Recipe) -> list[str]:
    """The classes of layers that FSDP gathers as one, if the recipe names them."""
    settings = recipe.train.arguments.get("fsdp_config")
    given = (
        settings.get("transformer_layer_cls_to_wrap") if isinstance(settings, dict) else None
    )
    return [given] if isinstance(given, str) else list(given or ())


def _follow(group: Group) -> None:
    for name in ("transformers", "accelerate", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)  # the first process says it
    contexts: dict[str, Context] = {}

    def work(call: _Call) -> None:
        key = f"{call.place.folder} {call.place.recipe.model_dump_json()}"
        if key not in contexts:
            contexts.clear()
            call.place.require_folder()
            contexts[key] = call.place.open()
        call.function(contexts[key], *call.arguments)

    group.follow(work)


def _check(recipe: Recipe) -> None:
    """Refuse what one process alone can do.

    Raises:
        RecipeError: With all that does not go together.
    """
    fsdp = bool(recipe.train.arguments.get("fsdp"))
    needed = sorted(set(GRADIENTS) & set(recipe.fuse.rows)) if fsdp else []
    problems = [
        (recipe.executor.kind != "serial", f"executor.kind: {recipe.executor.kind}"),
        (recipe.model.device_map is not None, "model.device_map"),
        (recipe.model.quantization != NONE, "model.quantization"),
        (recipe.search.trials > 0 and recipe.search.objective != "best_member",
         f"search.objective: {recipe.search.objective}"),
        (fsdp and recipe.model.lora is not None, "model.lora under FSDP"),
        (bool(needed), f"fuse.methods: {', '.join(needed)} under FSDP"),
    ]  # fmt: skip
    found = [text for wrong, text in problems if wrong]
    if found:
        raise RecipeError(
            f"{launched()} processes were launched, and not everything can be done by several: "
            f"{'; '.join(found)}.",
            "Leave that out, or run one process.",
        )
