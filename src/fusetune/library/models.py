"""The one model into which averages are put."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import nn

from fusetune.errors import ModelError
from fusetune.members.binding import SHOWN
from fusetune.members.configuration import config_differences
from fusetune.members.member import Member, architectures, read_json
from fusetune.members.pool import MemberPool
from fusetune.members.saved_layout import is_chain
from fusetune.models.device import choose_device
from fusetune.models.load import resolve


def made(model_init: Callable[[], nn.Module]) -> nn.Module:
    """What `model_init` makes.

    Raises:
        ModelError: If that is no module.
    """
    model = model_init()
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model_init must return a torch.nn.Module, not a {type(model).__name__}."
        )
    return model


def build_model(
    pool: MemberPool,
    model_init: Callable[[], nn.Module] | None,
    device: str | torch.device | None,
    trust_remote_code: bool = False,
) -> nn.Module:
    """A model of the members' kind.

    Args:
        pool: The members; their config.json names the class if there is no `model_init`.
        model_init: Makes a model of the members' architecture; its values do not matter.
        device: Where it is evaluated; by default where `model_init` puts it, else the best
            there is.
        trust_remote_code: Consent to a class that comes with the members.

    Raises:
        ModelError: If the class is not known, its configuration makes another function of the
            members' weights, or weights cannot be loaded.
    """
    if pool.adapters is not None:  # averages are written into their base
        base = pool.adapters.base.model
        return base if device is None else base.to(device)
    if model_init is not None:
        model = made(model_init)
        _check_modules(model, pool.last)
        _check_configuration(model, pool.last)
        return model if device is None else model.to(device)
    last = pool.last
    if any(info.key for info in last.tensors.values()):
        return _sentence_model(pool, device, trust_remote_code)
    make = class_of(last.config, trust_remote_code)
    if make is None:
        said = ", ".join(architectures(last.config)) or "no architecture"
        code = "auto_map" in last.config
        raise ModelError(
            f"What model the weights of {last.path} belong to is unknown: its config.json is "
            f"missing, or names {said}, which transformers does not have.",
            "Give model_init, a function that makes a model of the members' kind"
            + (", or trust_remote_code=True for the code beside them." if code else "."),
        )
    source = resolve(str(last.loadable), trust_remote_code=trust_remote_code)
    built: nn.Module = source.build(make.from_pretrained, dtype=pool.dtype)
    return built.to(device=choose_device("auto") if device is None else device)


def class_of(config: Mapping[str, Any], trust_remote_code: bool) -> Any:
    """The class that loads a checkpoint: of Transformers or, by consent, of its own code."""
    names = architectures(config)
    mapping = config.get("auto_map")
    if trust_remote_code and isinstance(mapping, Mapping):
        for auto_class, place in mapping.items():
            if str(place).rpartition(".")[2] in names and hasattr(transformers, auto_class):
                return getattr(transformers, auto_class)
    known = [name for name in names if hasattr(transformers, name)]
    return getattr(transformers, known[0]) if known else None


def _sentence_model(
    pool: MemberPool, device: str | torch.device | None, trust_remote_code: bool
) -> nn.Module:
    """The model of sentence-transformers whose modules the members have folders of."""
    place = pool.last.loadable
    try:
        import sentence_transformers
    except ImportError as error:
        raise ModelError(
            f"{place} has modules of sentence-transformers with weights of their own.",
            "Install sentence-transformers, or give model_init.",
        ) from error
    settings = place / "config_sentence_transformers.json"
    kind = read_json(settings).get("model_type") if settings.is_file() else None
    make = getattr(sentence_transformers, str(kind), sentence_transformers.SentenceTransformer)
    try:
        model: nn.Module = make(
            str(place),
            device=str(choose_device("auto") if device is None else device),
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            model_kwargs={"dtype": pool.dtype, "use_safetensors": True},
        )
    except Exception as error:  # damaged files make the library raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{place} cannot be loaded by sentence-transformers: {reason}", "Give model_init."
        ) from error
    return model


def _check_modules(model: nn.Module, member: Member) -> None:
    """Refuse a model that is one module of a chain of which others were trained, too."""
    inner = {info.file for info in member.tensors.values() if info.key}
    if inner and not is_chain(model):
        raise ModelError(
            f"{', '.join(sorted(map(str, inner)))} holds weights of the checkpoints that a "
            f"{type(model).__name__} has no place for: they would be left as they are.",
            "Give the whole model, as model_init=lambda: trainer.model of a "
            "SentenceTransformerTrainer, or leave out model_init.",
        )


def _check_configuration(model: nn.Module, member: Member) -> None:
    """Refuse a model that would make another function of the weights than the saved one."""
    config = getattr(model, "config", None)
    if not isinstance(config, transformers.PreTrainedConfig):
        return
    found = config_differences(member.config, json.loads(config.to_json_string()), loose=True)
    if found:
        raise ModelError(
            "The model of model_init computes another function than the checkpoints', so that "
            "the saved model would not be the evaluated one (the former != the latter):\n"
            + "\n".join(f"  {line}" for line in found[:SHOWN])
            + "\n",
            f"Make it with the configuration of {member.loadable}.",
        )
