"""Which tensors of a model each tensor of the members goes into."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fusetune.errors import MemberError
from fusetune.members.dispatched import offloaded
from fusetune.members.fully_sharded import own_state
from fusetune.members.header import TensorSpec
from fusetune.members.points import Blend
from fusetune.members.saved_layout import (
    Conversion,
    SavedLayout,
    is_ignored_in_files,
    is_left_out_of_files,
    saved_layout,
)
from fusetune.models.quantised import describe, of_weight, quantised_layers

SHOWN = 10
HINT = "Load the model from one of the members, with the class that they were trained with."


QUANTISED = (
    "Load the model in float32, bfloat16 or float16, or make the average of adapters with "
    "fusetune.members.average.plan."
)


class Binding:
    """Where each tensor of the members' files goes in a model, and the way there.

    A tied tensor stands once in the files and under several names in the model; it is one
    target. If the files have it under several names, the first takes the value. Names of
    non-persistent buffers, which old checkpoints have, go nowhere, and so do tensors that
    Transformers itself ignores on loading. Of a model on several devices, targets are where its
    tensors lie; of one that is spread over processes, they are this one's rows.

    Tensors that Transformers converts on loading (see `saved_layout`) have no target of their
    own. They wait until all that belong together are there, and are converted then.

    Args:
        model: What will be filled.
        tensors: Of the members' files.
        takes_quantised: Whether the caller gives quantised layers their value in a way of its
            own; their weights have no targets.
        own_names: Whether the tensors have the model's own names and layout already, as those
            of adapters that are laid on a base have.

    Attributes:
        targets: Name in the files → the model's tensors that take its value; none where the
            tensor is converted, or goes nowhere.
        tied: Groups of two or more names in the files that are one tensor in the model.
        converted: The conversions, each with the model's tensors that it fills.

    Raises:
        MemberError: If files and model do not name the same tensors, or shapes differ, or
            the model is quantised.
    """

    def __init__(
        self,
        model: nn.Module,
        tensors: Mapping[str, TensorSpec],
        takes_quantised: bool = False,
        own_names: bool = False,
    ) -> None:
        layers = quantised_layers(model)
        if layers and not takes_quantised:
            raise MemberError(
                f"The model's weights are quantised ({describe(layers)}): an average written "
                "into them would be rounded to their few levels.",
                QUANTISED,
            )
        check_keeps_its_weights(model)
        elsewhere = {f"{name}.weight" for name in layers}
        state: dict[str, Tensor] = {
            name: value
            for name, value in own_state(model).items()
            if isinstance(value, Tensor) and not of_weight(name, layers)
        } | offloaded(model)
        layout = (
            SavedLayout({name: name for name in tensors})
            if own_names
            else saved_layout(model, tensors, [*state, *elsewhere])
        )
        results = [(conversion, conversion.specs(tensors)) for conversion in layout.conversions]
        shapes = {layout.names[name]: tensors[name].shape for name in layout.names}
        shapes |= {name: spec.shape for _, specs in results for name, spec in specs.items()}
        storages: dict[tuple[object, ...], list[str]] = {}
        for name, value in state.items():
            storages.setdefault(_identity(value), []).append(name)
        tied = {name: names for names in storages.values() for name in names}
        missing = [
            name
            for name in state
            if not any(other in shapes for other in tied[name])
            and not is_left_out_of_files(model, name)
        ]
        known = {*state, *(name for name, _ in model.named_buffers()), *elsewhere}
        in_files = {target: name for name, target in layout.names.items()}
        unexpected = [
            in_files.get(name, name)
            for name in shapes
            if name not in known and not is_ignored_in_files(model, name)
        ]
        differing = [
            f"{in_files.get(name, name)} ({tuple(state[name].shape)} in the model, "
            f"{tuple(shape)} in the members)"
            for name, shape in shapes.items()
            if name in state and tuple(state[name].shape) != tuple(shape)
        ]
        problems = [
            *_listed("of the model not in the members", missing),
            *_listed("of the members not in the model", unexpected),
            *_listed("with another shape", differing),
        ]
        if problems:
            raise MemberError(
                "The members do not fit the model: " + "; ".join(problems) + ".", HINT
            )
        places = {
            name: tuple({id(state[n]): state[n] for n in tied[name]}.values())
            for name in shapes
            if name in state
        }
        self.targets: dict[str, tuple[Tensor, ...]] = dict.fromkeys(tensors, ())
        self.tied: list[tuple[str, ...]] = []
        for names in storages.values():
            if given := [in_files[name] for name in names if name in in_files]:
                self.targets[given[0]] = places[layout.names[given[0]]]
                self.tied += [tuple(given)] if len(given) > 1 else []
        self.converted: dict[Conversion, dict[str, tuple[Tensor, ...]]] = {
            conversion: {name: places[name] for name in specs if name in places}
            for conversion, specs in results
        }
        self._conversions = {name: c for c in self.converted for name in c.sources}
        self._shapes = {name: tensors[name].shape for name in self._conversions}
        self._waiting: dict[Conversion, dict[str, Tensor]] = {}
        self._partly: dict[str, Tensor] = {}

    @property
    def waits_for_others(self) -> Collection[str]:
        """Names in the files of the tensors that are converted."""
        return self._conversions.keys()

    def begin(self) -> None:
        """Forget what was left waiting by a round that did not come to its end."""
        self._waiting.clear()
        self._partly.clear()

    @torch.no_grad()
    def put(self, name: str, value: Tensor) -> None:
        """Give the model's tensors the value of a whole tensor of the files.

        A tensor that is converted is not copied before the others of its conversion are there:
        it must not change until then.
        """
        for target in self.targets[name]:
            target.copy_(value)
        if (conversion := self._conversions.get(name)) is None:
            return
        waiting = self._waiting.setdefault(conversion, {})
        waiting[name] = value
        if len(waiting) == len(conversion.sources):
            for converted, result in conversion(self._waiting.pop(conversion)).items():
                for target in self.converted[conversion].get(converted, ()):
                    target.copy_(result)

    @torch.no_grad()
    def write(self, name: str, part: slice, values: Tensor) -> None:
        """Set elements `part` of a tensor of the files, counted in row-major order.

        The parts of one tensor come in order, and the last one ends it.
        """
        for target in self.targets[name]:
            write(target, part, values)
        if name not in self._conversions:
            return
        shape = self._shapes[name]
        if name not in self._partly:
            self._partly[name] = torch.empty(shape, dtype=values.dtype, device=values.device)
        whole = self._partly[name]
        whole.view(-1)[part].copy_(values)
        if part.stop == whole.numel():
            self.put(name, self._partly.pop(name))


def write(target: Tensor, part: slice, values: Tensor) -> None:
    """Set elements `part` of a tensor, counted in row-major order."""
    if target.is_contiguous():
        target.view(-1)[part].copy_(values)
    else:
        index = torch.arange(part.start, part.stop, device=target.device)
        target[torch.unravel_index(index, target.shape)] = values.to(target)


def check_length(weights: Blend, k: int) -> None:
    """Raise `ValueError` unless there is one weight per member."""
    if len(weights) != k:
        raise ValueError(f"{k} members need {k} weights; got {len(weights)}.")


def listed(items: Sequence[str], shown: int = SHOWN) -> str:
    """The first items and a count of the rest."""
    rest = len(items) - shown
    return ", ".join(items[:shown]) + (f", … and {rest} more" if rest > 0 else "")


def same_bits(tensors: Iterable[Tensor]) -> bool:
    """Whether all tensors have the same dtype and the same elements (NaN equals NaN)."""
    first, *others = tensors
    return all(
        first.dtype == other.dtype
        and torch.equal(
            first.contiguous().flatten().view(torch.uint8),
            other.contiguous().flatten().view(torch.uint8),
        )
        for other in others
    )


def check_keeps_its_weights(model: nn.Module) -> None:
    """Refuse RWKV as Transformers computes it: what is written would not be what is evaluated.

    In evaluation mode it divides weights by powers of two once, in place, and remembers that.
    """
    for module in model.modules():
        every = getattr(getattr(module, "config", None), "rescale_every", 0)
        if hasattr(module, "layers_are_rescaled") and every > 0:
            raise MemberError(
                f"{type(module).__name__} multiplies its own weights while it computes "
                f"(rescale_every is {every} in its configuration): averages "
                "cannot be written into them.",
                "Set rescale_every to 0 in config.json, of the model and of its checkpoints.",
            )


def _identity(value: Tensor) -> tuple[object, ...]:
    # Empty tensors and those on the meta device have no address; only the object tells.
    if value.data_ptr() == 0:
        return (id(value),)
    return (value.device, value.data_ptr(), value.shape, value.stride())


def _listed(what: str, names: Sequence[str]) -> list[str]:
    return [f"{len(names)} {what} ({listed(names)})"] if names else []
