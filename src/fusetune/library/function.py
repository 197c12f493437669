"""A caller's `evaluate(model) -> dict`, checked, as the score that evaluators call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fusetune.errors import EvaluateError, FusetuneError
from fusetune.evaluation.evaluation import Evaluation
from fusetune.objective import Objective

Evaluate = Callable[[nn.Module], Mapping[str, Any]]


class FunctionScore:
    """Calls `evaluate` on a model in evaluation mode and checks what it does.

    An error in the first call is the caller's mistake and ends everything; in a later one it
    is that of one candidate, which then has failed. Values that are not finite are
    handed on: the search records such a candidate as failed.

    Args:
        evaluate: Model → at least the objectives by name.
        objectives: What is taken of its result.
    """

    def __init__(self, evaluate: Evaluate, objectives: Sequence[Objective]) -> None:
        self.evaluate = evaluate
        self.objectives = tuple(objectives)
        self._called = False

    def __call__(self, model: nn.Module) -> Evaluation:
        """Evaluate.

        Raises:
            EvaluateError: If the first call raises; if a result is no mapping, lacks an
                objective or holds something else than numbers; if the model was changed.
        """
        started = time.perf_counter()
        model.eval()
        before = _state(model)
        found = self._found(model)
        if changed := [
            name for name, state in _state(model).items() if before.get(name) != state
        ]:
            raise EvaluateError(
                f"evaluate changed {len(changed)} of the model's parameters, as {changed[0]}: "
                "the next candidate would not be what it is said to be.",
                "Work on a copy: copy.deepcopy(model).",
            )
        values = {o.name: self._number(o.name, found) for o in self.objectives}
        self._called = True
        return Evaluation(values, None, time.perf_counter() - started)

    def _found(self, model: nn.Module) -> Mapping[str, Any]:
        try:
            found = self.evaluate(model)
        except FusetuneError:
            raise
        except Exception as error:
            if self._called:
                raise
            raise EvaluateError(
                f"evaluate raised {type(error).__name__} on the first model: {error}",
                "Try it on a model of your own first: evaluate(model).",
            ) from error
        if not isinstance(found, Mapping):
            raise EvaluateError(
                f"evaluate must return a mapping from objective to number; it returned a "
                f"{type(found).__name__}.",
                f"Return {{{', '.join(f'{o.name!r}: …' for o in self.objectives)}}}.",
            )
        return found

    def _number(self, name: str, found: Mapping[str, Any]) -> float:
        if name not in found:
            raise EvaluateError(
                f"evaluate did not return the objective {name!r}; it returned "
                f"{', '.join(map(str, found)) or 'nothing'}."
            )
        value = found[name]
        single = value.numel() == 1 if isinstance(value, Tensor) else True
        try:
            return float(value) if single else _refused(name, value)
        except (TypeError, ValueError):
            return _refused(name, value)


def _refused(name: str, value: Any) -> float:
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    raise EvaluateError(
        f"evaluate must return numbers; {name!r} is a {type(value).__name__}{shape}.",
        "Return its mean over the whole split.",
    )


def _state(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """What tells whether a parameter was written to, replaced, cast or moved.

    Buffers are left out: statistics of a batch normalisation may be estimated anew.
    """
    return {
        name: (-1 if p.is_inference() else p._version, p.data_ptr(), p.dtype, p.device)
        for name, p in model.named_parameters()
    }
