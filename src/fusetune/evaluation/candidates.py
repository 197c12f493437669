"""Several models in one pass over the batches, where one is too small to keep a device busy.

The c models are one stack, every parameter `c x …`; `torch.func.vmap` runs them side by side,
so that each product of a layer becomes one batched product of all c.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fusetune.evaluation.batching import GPU_TOKENS, IndexedBatch
from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.scorer import Scorer
from fusetune.members.memory import total_bytes
from fusetune.members.points import Point
from fusetune.members.weights import FusionWeights
from fusetune.models.quantised import quantised_layers
from fusetune.tasks.task import Batch, Outputs

MOST = 16
"""Models per pass that are chosen by themselves; more fill no device better."""

SHARE = 0.25
"""Of the memory, that a stack may take. Of all memory, not of what is free just now: a run
that was killed has to stack as many when it goes on."""

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Absolute and relative, by which predictions of a stack may differ from those one by one."""


@runtime_checkable
class Stackable(Protocol):
    """A task whose outcomes follow from predictions that are a pure function of tensors."""

    def logits(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        """The predictions of a batch, `b x m`."""
        ...

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each of n examples, `n`, from predictions `n x m`."""
        ...


class IntoModel(Protocol):
    """What puts a point into the model; see `members.average`."""

    def into_model(self, point: Point) -> None:
        """Make the model's parameters those of the point, in place."""
        ...


class StackError(RuntimeError):
    """A task or a model that does not compute the same in a stack."""


def starting_points(k: int) -> list[FusionWeights]:
    """Every single member, then the uniform average: what most methods begin with.

    The same list everywhere, so that the same models are evaluated together.
    """
    return [*(FusionWeights.one_hot(i, k) for i in range(k)), FusionWeights.uniform(k)]


def plan(wanted: int | Literal["auto"], model: nn.Module, scorer: Scorer) -> tuple[int, str]:
    """How many models each pass takes, and a note if these are fewer than wanted.

    It follows from the recipe, the model, the data and the machine alone.

    Args:
        wanted: A number, or "auto": one on a CPU, where more do not pay; on a GPU as many
            as its memory and a batch's budget of tokens hold, at most `MOST`.
        model: One of those that will be stacked.
        scorer: Its batches and its device count.
    """
    if quantised_layers(model):  # averages stand beside its layers, not in its tensors
        return 1, "" if wanted in (1, "auto") else "a quantised base holds one candidate"
    if wanted == 1 or (wanted == "auto" and scorer.device.type != "cuda"):
        return 1, ""
    if not isinstance(scorer.task, Stackable):
        note = "this kind of task is evaluated one candidate after another"
        return 1, "" if wanted == "auto" else note
    size = sum(tensor.nbytes for tensor in _tensors(model).values())
    room = SHARE * total_bytes(scorer.device)
    fits = max(1, int(room // max(1, size)))
    if wanted == "auto":
        largest = max(max(t.numel() for t in b.inputs.values()) for b in scorer.batches)
        return min(MOST, fits, max(1, GPU_TOKENS // largest)), ""
    if fits >= wanted:
        return wanted, ""
    return fits, (
        f"{wanted} models of {size / 1e9:.2f} GB need more than the {room / 1e9:.1f} GB that "
        f"may be used for them; each pass takes {fits}"
    )


def evaluate(
    points: Sequence[Point], average: IntoModel, model: nn.Module, scorer: Scorer
) -> list[Evaluation]:
    """The values of several points, in their order, from one pass over the split.

    Each evaluation counts its share of the seconds. The model is the last point's afterwards.

    Args:
        points: c of them; c times the model's memory is needed.
        average: Fills `model`.
        model: Gives the architecture.
        scorer: Of the split; its task is `Stackable`.

    Raises:
        StackError: If the stack predicts something else for the last point than its model.
    """
    started = time.perf_counter()
    stack = {
        name: torch.empty((len(points), *t.shape), dtype=t.dtype, device=t.device)
        for name, t in _tensors(model).items()
    }
    for place, point in enumerate(points):
        average.into_model(point)
        for name, tensor in _tensors(model).items():
            stack[name][place].copy_(tensor)
    averaging = (time.perf_counter() - started) / len(points)
    outputs = outcomes(stack, model, scorer)
    values = [scorer.task.score(found, scorer.encoded.labels) for found in outputs]
    seconds = (time.perf_counter() - started) / len(points)
    return [
        Evaluation(value, found, seconds, averaging)
        for value, found in zip(values, outputs, strict=True)
    ]


def outcomes(stack: Mapping[str, Tensor], model: nn.Module, scorer: Scorer) -> list[Outputs]:
    """Per-example outcomes of each of c models.

    Args:
        stack: Name of each parameter or floating-point buffer → `c x …`.
        model: Gives the architecture, and is the last one of the stack: on the first batch
            both have to say the same.
        scorer: Of the split.

    Raises:
        StackError: If they do not.
    """
    was_training = model.training
    model.eval()
    try:
        parts = [(b.rows, *_batch_outcomes(stack, model, scorer, b)) for b in scorer.batches]
        _require_same(parts[0][2][-1], model, scorer)
    finally:
        model.train(was_training)
    c, n = len(parts[0][1]), len(scorer.encoded)
    loss = np.empty((c, n), dtype=np.float32)
    predictions = np.empty((c, n, parts[0][2].shape[2]), dtype=np.float32)
    for rows, some_losses, some_predictions in parts:
        loss[:, rows] = some_losses
        predictions[:, rows] = some_predictions
    return [Outputs(a, b) for a, b in zip(loss, predictions, strict=True)]


def _batch_outcomes(
    stack: Mapping[str, Tensor], model: nn.Module, scorer: Scorer, batch: IndexedBatch
) -> tuple[Any, Any]:
    """Losses `c x b` and predictions `c x b x m` of one batch."""
    task, labels = scorer.task, batch.inputs["labels"]
    assert isinstance(task, Stackable)  # `plan` has seen to it

    def one(state: dict[str, Tensor]) -> Tensor:
        def call(**inputs: Any) -> Any:
            return functional_call(model, state, (), inputs)

        return task.logits(call, batch.inputs)

    with torch.inference_mode(), scorer.autocast(), warnings.catch_warnings():
        # Attention has no parameters: run model by model, it costs what it always does.
        warnings.filterwarnings("ignore", message=".*batching rule.*")
        logits = vmap(one, randomness="error")(dict(stack))
        c = logits.shape[0]
        every = labels.repeat(c, *[1] * (labels.ndim - 1))
        losses = task.losses(logits.flatten(0, 1), every).view(c, -1)
    return losses.float().cpu().numpy(), logits.float().cpu().numpy()


def _require_same(predictions: Any, model: nn.Module, scorer: Scorer) -> None:
    with torch.inference_mode(), scorer.autocast():
        alone = scorer.task.outputs(model, scorer.batches[0].inputs).predictions
    limit = TOLERANCE[scorer.dtype]
    if alone.shape != predictions.shape or not np.allclose(
        alone, predictions, rtol=limit, atol=limit, equal_nan=True
    ):
        raise StackError("the predictions of a stack are not those of its models")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and floating-point buffers; a tied one under its first name."""
    state: dict[str, Tensor] = {
        name: value
        for name, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    first = {id(value): name for name, value in reversed(list(state.items()))}
    return {name: value.detach() for name, value in state.items() if first[id(value)] == name}
