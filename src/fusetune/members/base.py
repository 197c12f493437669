"""The base model that adapters are laid on: loaded when it is first needed, kept once."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property, partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.errors import MemberError
from fusetune.members.adapter import AdaptedModule, AdapterMember
from fusetune.members.adapter_keys import PREFIX, base_name
from fusetune.members.base_load import fit_vocabulary, load_base, renamed, unread_names
from fusetune.members.base_tensors import BaseTensors, identity
from fusetune.members.binding import listed, same_bits
from fusetune.members.files import FileSource
from fusetune.members.header import DTYPES, TensorSpec
from fusetune.models.quantised import (
    describe,
    of_weight,
    quantised_layers,
    state_of_layer,
    steady,
    transposed,
)

logger = logging.getLogger(__name__)

BaseModel = nn.Module | Callable[[], nn.Module]
"""The model without adapters, or a function that loads it."""


class Base:
    """The weights W under adapters.

    The model that was loaded is also the one that averages are written into, so that there
    is no second copy of what no adapter changes. `keep` copies what is going to be
    overwritten.

    What the adapters' files hold of the base itself (embeddings with added tokens, the copies
    of adapted embeddings, nearly all of a whole PEFT model's state) is laid into the model,
    where it is the same in all of them.

    Args:
        source: The model without adapters, or a function that loads it.
        adapters: The members that are laid on it; none if the model is only looked at.
        given: Whether somebody chose the model on purpose, so that tensors of it that stand
            in no file may be as they should be.
    """

    def __init__(
        self,
        source: BaseModel,
        adapters: Sequence[AdapterMember] = (),
        *,
        given: bool = False,
    ) -> None:
        self._source = source
        self._adapters = tuple(adapters)
        self._given = given

    @cached_property
    def model(self) -> nn.Module:
        """The model; averages may change its parameters.

        Raises:
            MemberError: If its weights are not those that the adapters were trained on, or
                some of them stand in no file.
        """
        model = self._source if isinstance(self._source, nn.Module) else self._source()
        self._adapters = tuple(renamed(member, model) for member in self._adapters)
        fit_vocabulary(model, self._adapters)
        if not self.empty(model):
            self._lay(model)
            self._check_digests(model)
        if self._adapters and not self._digests:
            self._check_read(model)
        return steady(model)

    @staticmethod
    def empty(model: nn.Module) -> bool:
        """Whether a model has no values at all: then names and shapes are looked at alone."""
        return all(parameter.is_meta for parameter in model.parameters())

    @cached_property
    def constants(self) -> Mapping[str, Tensor]:
        """What the adapters' files hold of the base and what training did not change.

        A tensor that is equal, bit by bit, in all members that have it.

        Raises:
            MemberError: If copies of an adapted weight differ.
        """
        files, found = FileSource(self._adapters), {}
        keys = [{**member.whole, **member.copies} for member in self._adapters]
        for name in dict.fromkeys(name for own in keys for name in own):
            having = [(i, own[name]) for i, own in enumerate(keys) if name in own]
            if same_bits_of(files, having):
                found[name] = files.load_tensor(*having[0])
            elif any(name in member.copies for member in self._adapters):
                raise MemberError(
                    f"{name}, which the adapters leave as it is, differs between "
                    f"{self._adapters[having[0][0]].path} and other members.",
                    hint="Fuse adapters of one run, which have one base model.",
                )
        return found

    @cached_property
    def laid(self) -> Mapping[str, Tensor]:
        """Those of the constants that the base model, as it was loaded, has otherwise."""
        _ = self.model
        return self._laid

    def _lay(self, model: nn.Module) -> None:
        """Give the model what the adapters' files hold of it."""
        state = model.state_dict()
        self._laid: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, value in self.constants.items():
                target = state.get(name)
                if target is None or target.shape != value.shape:
                    continue  # the comparison with the base has a message for it
                if torch.equal(target.cpu(), value.to(target.dtype)):
                    continue
                for member in self._adapters:
                    if name not in member.whole and name not in member.copies:
                        raise MemberError(
                            f"{member.path} leaves {name} to the base model, where it is "
                            "another than in other members.",
                            hint="Fuse adapters of one run, which have one base model.",
                        )
                target.copy_(value)
                self._laid[name] = value

    @cached_property
    def _digests(self) -> frozenset[str]:
        """sha256 of the base's weights as the members' manifests have it."""
        return frozenset(m.base_digest for m in self._adapters if m.base_digest is not None)

    def _check_digests(self, model: nn.Module) -> None:
        if not self._digests:
            return
        first = self._adapters[0]
        held = {*first.whole, *first.rows}  # what was trained, or only saved with the rest
        own = {base_sha256(model, held), base_sha256(model, held - self.constants.keys())}
        if not self._digests <= own:
            raise MemberError(
                "The base model has not the weights that the adapters were trained on.",
                hint="Give the model (and revision) that the training began with.",
            )

    def _check_read(self, model: nn.Module) -> None:
        """Refuse weights that stand neither in the adapters nor in the base's files."""
        first = self._adapters[0]
        tied = _tied_names(model, {})
        held = {n for name in (*first.whole, *first.copies) for n in tied.get(name, (name,))}
        names = sorted(unread_names(model) - held)
        if not names:
            return
        what = (
            f"{listed(names, 4)} of {type(model).__name__} stand neither in {first.path} nor "
            f"in {getattr(model, 'name_or_path', 'the base model')}"
        )
        if self._given and (isinstance(self._source, nn.Module) or self._again(model, names)):
            logger.warning("%s: they are taken as the model that was given has them.", what)
            return
        raise MemberError(
            f"{what}: they would be drawn at random, other ones than the training had.",
            hint="Give the model that the training ended with (model_init, or --model FOLDER), "
            "or save such layers with the adapters: modules_to_save, or PEFT's task_type.",
        )

    def _again(self, model: nn.Module, names: Sequence[str]) -> bool:
        """Whether the function that made the model gives these tensors the same values."""
        assert not isinstance(self._source, nn.Module)
        state, other = model.state_dict(), self._source().state_dict()
        return all(n in other and torch.equal(state[n].cpu(), other[n].cpu()) for n in names)

    @cached_property
    def layers(self) -> Mapping[str, nn.Module]:
        """The layers whose weights are quantised, by their paths."""
        return quantised_layers(self.model)

    @property
    def quantisation(self) -> str:
        """How they are, as "4bit nf4, double"; empty if there are none."""
        return describe(self.layers)

    @cached_property
    def tensors(self) -> BaseTensors:
        """Name → W, as loaded, on the CPU; of a quantised layer, as it multiplies."""
        if any(value.is_meta for value in self.model.state_dict().values()):
            raise MemberError(
                "model.device_map: layers of the base model are not on a device, and adapters "
                "cannot be averaged into them.",
                "Take more or larger devices, or a smaller precision.",
            )
        return self._all

    @cached_property
    def _all(self) -> BaseTensors:
        return BaseTensors(self.model, self.layers)

    @cached_property
    def tied(self) -> dict[str, tuple[str, ...]]:
        """Every name that shares its tensor with others → all those names."""
        return _tied_names(self.model, self.layers)

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Name → dtype and shape.

        Raises:
            MemberError: If a weight is quantised otherwise than by bitsandbytes, or in a
                dtype that no file could hold.
        """
        specs = {name: self._all.spec(name) for name in self._all}
        strange = [n for n, spec in specs.items() if spec.dtype not in DTYPES.values()]
        packed = [n for n, spec in specs.items() if _packed(n, spec)]
        if strange or packed:
            name = (strange or packed)[0]
            raise MemberError(
                f"The base model is quantised ({name} is {specs[name].dtype}) in a way that is "
                "not known here: what its layers compute with cannot be told.",
                hint="Give the base model in float32, bfloat16 or float16, or quantised by "
                "bitsandbytes.",
            )
        return specs

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json of the model, without how its weights were packed."""
        config = getattr(self.model, "config", None)
        if config is None:
            return {}
        found = dict(json.loads(config.to_json_string()))
        found.pop("quantization_config", None)
        return {"architectures": [type(self.model).__name__]} | found

    def transposed(self, module: str) -> bool:
        """Whether a module keeps its weight as `in x out`: GPT-2's Conv1D, embeddings."""
        from transformers.pytorch_utils import Conv1D  # takes seconds: for adapters alone

        if module in self.layers:
            return transposed(self.layers[module])
        return isinstance(self.submodule(module), Conv1D | nn.Embedding)

    def flipped(self, module: str, adapted: AdaptedModule) -> bool:
        """Whether a stored weight is `in x out`, of every expert if it has some."""
        if adapted.experts is not None:
            owner = self.submodule(module.rpartition(".")[0])
            return bool(getattr(owner, "is_transposed", False))
        return adapted.parameter is None and self.transposed(module)

    def submodule(self, path: str) -> nn.Module | None:
        """A module by its path; None if there is none."""
        try:
            return self.model.get_submodule(path)
        except AttributeError:
            return None

    def keep(self, names: Iterable[str]) -> None:
        """Copy tensors that the model still shares, before it is written into."""
        state = self.model.state_dict()
        plain = self.tensors.plain
        for name in names:
            if name in plain and plain[name].data_ptr() == state[name].data_ptr():
                plain[name] = plain[name].clone()

    def kept(self, name: str, device: torch.device) -> Tensor | Callable[[], Tensor]:
        """W on a device, or what makes it there from the levels of a quantised layer."""
        if name in self.tensors.plain:
            return self.tensors[name].to(device)
        return partial(self.tensors.on_device, name)


def _tied_names(
    model: nn.Module, layers: Mapping[str, nn.Module]
) -> dict[str, tuple[str, ...]]:
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if value.numel() and not of_weight(name, layers):
            groups.setdefault(identity(value), []).append(name)
    shared = [tuple(names) for names in groups.values() if len(names) > 1]
    return {name: names for names in shared for name in names}


def base_of(adapters: Sequence[AdapterMember], source: BaseModel | None) -> Base:
    """The base of compatible adapters; without a source, the one that the first one names."""
    if source is None:
        return Base(lambda: load_base(adapters[0]), adapters)
    return Base(source, adapters, given=True)


def same_bits_of(files: FileSource, keys: Sequence[tuple[int, str]]) -> bool:
    """Whether tensors of several members, each by its index and key, are equal bit by bit."""
    (index, key), *others = keys
    first = files.load_tensor(index, key)
    return all(
        first.shape == other.shape and same_bits([first, other])
        for other in (files.load_tensor(*place) for place in others)
    )


def base_sha256(model: nn.Module, replaced: Collection[str] = ()) -> str:
    """Hexadecimal sha256 of the weights that adapters leave alone.

    Gives the same for a model as PEFT trains it and for the plain one: modules to save,
    trained biases and LoRA's own tensors do not count. Of quantised layers the levels and
    their scales count: other weights, or the same ones quantised otherwise, have another.

    Args:
        model: A `PeftModel`, or the base model by itself.
        replaced: Of the base model, the tensors that adapters bring themselves.
    """
    wrapped = is_peft(model)
    digest = hashlib.sha256()
    steady(model)
    scales = [
        (f"{_base_name(layer)}.weight.{name}", value)
        for layer, module in quantised_layers(model).items()
        for name, value in state_of_layer(module)
    ]
    found = [*_base_parameters(model, wrapped), *scales]
    for name, tensor in sorted(found, key=itemgetter(0)):
        if name in replaced or (wrapped and tensor.requires_grad):
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _base_name(name: str) -> str:
    """Of a tensor or a layer under PEFT's wrappers: its name without them."""
    return base_name(name.removeprefix(PREFIX))


def _base_parameters(model: nn.Module, wrapped: bool) -> list[tuple[str, Tensor]]:
    if not wrapped:
        return list(model.named_parameters())
    own = ("lora_", ".modules_to_save.", ".original_module.", ".token_adapter.")
    return [
        (_base_name(name), parameter)
        for name, parameter in model.named_parameters()
        if not any(part in name for part in own)
    ]


def is_peft(model: nn.Module) -> bool:
    """Whether a model is PEFT's wrapper of another."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def _packed(name: str, spec: TensorSpec) -> bool:
    return spec.dtype in (torch.uint8, torch.int8) and name.endswith(".weight")
