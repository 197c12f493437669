"""fusetune: the checkpoints of one fine-tuning run → one better model."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusetune.errors import FusetuneError
    from fusetune.members.export import export
    from fusetune.members.pool import MemberPool
    from fusetune.members.weights import FusionWeights
    from fusetune.objective import Objective
    from fusetune.training.collect import MemberCollector

__version__ = version("fusetune")

__all__ = [
    "FusetuneError",
    "FusionWeights",
    "MemberCollector",
    "MemberPool",
    "Objective",
    "__version__",
    "export",
]

_HOMES = {
    "FusetuneError": "fusetune.errors",
    "FusionWeights": "fusetune.members.weights",
    "MemberCollector": "fusetune.training.collect",
    "MemberPool": "fusetune.members.pool",
    "Objective": "fusetune.objective",
    "export": "fusetune.members.export",
}


def __getattr__(name: str) -> Any:
    # On demand: importing torch and transformers takes seconds, `fusetune --help` does not.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
