"""fusetune: the checkpoints of one fine-tuning run → one better model."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusetune.errors import FusetuneError
    from fusetune.library.average import Averaged, average
    from fusetune.library.fusion import fuse
    from fusetune.library.result import Candidate, Fused
    from fusetune.library.search import Fusion
    from fusetune.library.trainers import evaluate_with
    from fusetune.members.export import export
    from fusetune.members.pool import MemberPool
    from fusetune.members.weights import FusionWeights
    from fusetune.objective import Objective
    from fusetune.training.collect import MemberCollector

__version__ = version("fusetune")

__all__ = [
    "Averaged",
    "Candidate",
    "Fused",
    "FusetuneError",
    "Fusion",
    "FusionWeights",
    "MemberCollector",
    "MemberPool",
    "Objective",
    "__version__",
    "average",
    "evaluate_with",
    "export",
    "fuse",
]

_HOMES = {
    "Averaged": "fusetune.library.average",
    "Candidate": "fusetune.library.result",
    "Fused": "fusetune.library.result",
    "FusetuneError": "fusetune.errors",
    "Fusion": "fusetune.library.search",
    "FusionWeights": "fusetune.members.weights",
    "MemberCollector": "fusetune.training.collect",
    "MemberPool": "fusetune.members.pool",
    "Objective": "fusetune.objective",
    "average": "fusetune.library.average",
    "evaluate_with": "fusetune.library.trainers",
    "export": "fusetune.members.export",
    "fuse": "fusetune.library.fusion",
}


def __getattr__(name: str) -> Any:
    # On demand: importing torch and transformers takes seconds, `fusetune --help` does not.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
