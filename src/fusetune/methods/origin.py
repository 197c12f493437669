"""What the members come from: θ_0 and the training data. No method itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fusetune.errors import StageError
from fusetune.evaluation.scorer import Scorer


@dataclass(frozen=True, slots=True)
class Origin:
    """Both are made when they are asked for: most methods need neither.

    Attributes:
        initial: θ_0, the tensors that the training started with, by the members' names.
        training: The training split, in batches, with the task's loss.
    """

    initial: Callable[[], Mapping[str, Tensor]]
    training: Callable[[], Scorer]


def required(origin: Origin | None, method: str, what: str) -> Origin:
    """The origin, for a method that cannot do without.

    Raises:
        StageError: If there is none.
    """
    if origin is None:
        raise StageError(
            f"The method {method} needs {what}, and only the members are known.",
            hint="Give `origin`, a fusetune.methods.origin.Origin, or leave the method out.",
        )
    return origin
