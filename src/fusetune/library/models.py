"""The one model into which averages are put."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from torch import nn

from fusetune.errors import ModelError
from fusetune.members.member import architectures
from fusetune.members.pool import MemberPool
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
) -> nn.Module:
    """A model of the members' kind.

    Args:
        pool: The members; their config.json names the class if there is no `model_init`.
        model_init: Makes a model of the members' architecture; its values do not matter.
        device: Where it is evaluated; by default where `model_init` puts it, else the best
            there is.

    Raises:
        ModelError: If the class is not known, or weights cannot be loaded.
    """
    if model_init is not None and pool.adapters is None:
        model = made(model_init)
        return model if device is None else model.to(device)
    if pool.adapters is not None:  # averages are written into their base
        base = pool.adapters.base.model
        return base if device is None else base.to(device)
    first = pool.members[0]
    names = architectures(first.config)
    known = [name for name in names if hasattr(transformers, name)]
    if not known:
        said = ", ".join(names) or "no architecture"
        raise ModelError(
            f"What model the weights of {first.path} belong to is unknown: its config.json is "
            f"missing, or names {said}, which transformers does not have.",
            "Give model_init, a function that makes a model of the members' kind.",
        )
    source = resolve(str(first.loadable))
    built: nn.Module = source.build(getattr(transformers, known[0]).from_pretrained)
    return built.to(device=choose_device("auto") if device is None else device)
