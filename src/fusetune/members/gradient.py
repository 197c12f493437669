"""The gradient with respect to θ̄, where a backward pass left it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Let every floating-point parameter collect a gradient, dropout off.

    Afterwards the model is as it was: its mode, which parameters are trained, and no
    gradient is left to take memory.
    """
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    trained = [p.requires_grad for p in parameters]
    was_training = model.training
    model.eval()
    _clear(parameters)
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        _clear(parameters)
        for parameter, was in zip(parameters, trained, strict=True):
            parameter.requires_grad_(was)
        model.train(was_training)


def part_of_gradient(targets: Sequence[Tensor], part: slice) -> Tensor | None:
    """Elements `part` of the gradient, flattened; None if no target has one.

    Args:
        targets: The model's tensors that take one value; their gradients add up.
        part: Elements, counted in row-major order.
    """
    parts = [t.grad.reshape(-1)[part] for t in targets if t.is_leaf and t.grad is not None]
    return sum(parts[1:], start=parts[0]) if parts else None


def gradients(targets: Mapping[str, Sequence[Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The gradient of each tensor that has one, in the tensor's shape.

    Args:
        targets: Name → the model's tensors that take its value, as `bind` gives.
    """
    for name, tensors in targets.items():
        parts = [t.grad for t in tensors if t.is_leaf and t.grad is not None]
        if parts:
            yield name, sum(parts[1:], start=parts[0])


def _clear(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
