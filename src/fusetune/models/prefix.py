"""The frozen prefix of a light variant: what enters its first trained layer is constant.

Embeddings and lower layers that neither train nor drop anything out give the same hidden
states for the same text, in every epoch of every trial. They are computed once
(`hidden_states`), kept (`prefix_cache.PrefixCache`) and put in the place of the frozen layers
(`attach`). The embeddings still run, so that masks and positions are made as always.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fusetune.models.light import Frozen

ROWS = "prefix_rows"
"""Name of the model input that says which examples a batch holds: `b`, int64."""

# How far logits may be from those of the whole model, relative to the largest one: rounding
# in batches of other widths, and in the precision that the cache is kept in.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}


class PrefixError(Exception):
    """A model whose frozen prefix cannot be replaced; the text says why."""


class States(Protocol):
    """Where hidden states come from."""

    def gather(self, rows: Tensor, mask: Tensor) -> Tensor:
        """The states of some examples, `b x t x h`, placed as the attention mask says."""
        ...


class _ReachedError(Exception):
    """Ends a forward pass at the last frozen layer, with what that layer gave."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def hidden_states(model: PreTrainedModel, frozen: Frozen, inputs: Mapping[str, Any]) -> Tensor:
    """What enters the first trained layer, `b x t x h`; the layers above do not run.

    Args:
        model: A light variant.
        frozen: What `freeze_layers` said of it.
        inputs: A batch with "input_ids" and "attention_mask".

    Raises:
        PrefixError: If there is no one state for each token.
    """

    def stop(module: nn.Module, given: object, output: object) -> NoReturn:
        raise _ReachedError(output)

    handle = _layers(model, frozen)[-1].register_forward_hook(stop)
    try:
        model(**_without_labels(inputs))
    except _ReachedError as reached:
        output = reached.output
    else:
        raise PrefixError(f"{type(model).__name__} does not call {frozen.stack} in order")
    finally:
        handle.remove()
    states, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, ())
    if any(part is not None for part in rest):
        raise PrefixError(
            f"the layers of {type(model).__name__} hand on more than hidden states"
        )
    if not isinstance(states, Tensor) or states.shape[:2] != inputs["input_ids"].shape:
        raise PrefixError(f"{frozen.stack} gives no hidden state for each token")
    return states


def require_constant(
    model: PreTrainedModel, frozen: Frozen, inputs: Mapping[str, Any]
) -> Tensor:
    """The hidden states of a batch, if training never changes them.

    Raises:
        PrefixError: If they depend on parameters that train, or on dropout.
    """
    was_training = model.training
    with torch.enable_grad(), torch.random.fork_rng():
        model.train()
        first, second = (hidden_states(model, frozen, inputs) for _ in range(2))
        model.train(was_training)
    if first.requires_grad:
        raise PrefixError(f"the frozen layers of {type(model).__name__} use trained parameters")
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-3 * float(first.abs().mean())):
        raise PrefixError(f"the frozen layers of {type(model).__name__} are random in training")
    return first


def attach(model: PreTrainedModel, frozen: Frozen, states: States) -> None:
    """Let batches that carry `ROWS` start at the first trained layer, in place.

    Batches without it run through the whole network as before. Names of parameters and
    modules do not change, so that the model is saved as ever.

    Args:
        model: A light variant.
        frozen: What `freeze_layers` said of it.
        states: The hidden states of every example, by row.
    """
    current: list[Tensor] = []  # of the batch that is in the model

    def receive(
        module: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        current.clear()
        rest = dict(inputs)
        rows = rest.pop(ROWS, None)
        if rows is not None:
            current.append(states.gather(rows, rest["attention_mask"]))
        return args, rest

    model.register_forward_pre_hook(receive, with_kwargs=True)
    model.register_forward_hook(lambda *_: current.clear(), always_call=True)
    layers = _layers(model, frozen)
    for i, layer in enumerate(layers):
        _replace(layer, current, last=i == len(layers) - 1)


def check(
    model: PreTrainedModel, inputs: Mapping[str, Any], rows: Tensor, stored: torch.dtype
) -> None:
    """Compare the logits of a few examples with and without the cached states.

    No random number is drawn, and the model's mode stays what it was.

    Args:
        model: As `attach` left it.
        inputs: A padded batch, best of short and long texts.
        rows: `b`; which examples it holds.
        stored: The precision of the states.

    Raises:
        PrefixError: If they differ by more than rounding.
    """
    given = _without_labels(inputs)
    with evaluation_mode(model), torch.no_grad():
        whole = model(**given).logits.float()
        short = model(**given, **{ROWS: rows}).logits.float()
    lower = torch.is_autocast_enabled(whole.device.type)
    computed = torch.get_autocast_dtype(whole.device.type) if lower else model.dtype
    tolerance = max(TOLERANCES.get(dtype, 0.0) for dtype in (stored, computed))
    difference = float((whole - short).abs().max())
    allowed = tolerance * max(1.0, float(whole.abs().max()))
    if not difference <= allowed:
        raise PrefixError(
            f"logits from stored states differ by {difference:.1e}, allowed are {allowed:.1e}"
        )


def fingerprint(model: nn.Module, frozen: Frozen) -> str:
    """sha256 of all that does not train, and of how many layers that is."""
    digest = hashlib.sha256(f"{type(model).__name__} {frozen.stack} {frozen.layers}".encode())
    parts = [(n, p) for n, p in model.named_parameters() if not p.requires_grad]
    for name, tensor in (*parts, *model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model without dropout, and afterwards in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _layers(model: PreTrainedModel, frozen: Frozen) -> Sequence[nn.Module]:
    stack = model.get_submodule(frozen.stack)
    assert isinstance(stack, nn.ModuleList)
    return list(stack)[: frozen.layers]


def _replace(layer: nn.Module, current: list[Tensor], *, last: bool) -> None:
    """Give the layer a `forward` that hands on, or in the last one sets, the states."""
    original = layer.forward
    tuples: list[bool] = []  # whether the layer gives a tuple: known once it has run

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not current:
            output = original(*args, **kwargs)
            tuples[:] = [isinstance(output, tuple)]
            return output
        given = args[0] if args else kwargs["hidden_states"]
        states = current[0] if last else given
        return (states, None) if tuples == [True] else states

    layer.forward = forward


def _without_labels(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in ("labels", ROWS)}
