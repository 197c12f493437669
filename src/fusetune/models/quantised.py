"""Layers that bitsandbytes has quantised: found by their classes' names, and read.

Nothing here imports bitsandbytes: where it is absent, there is no such layer.

.. [Dettmers2023] T. Dettmers et al. QLoRA: Efficient Finetuning of Quantized LLMs. NeurIPS
   2023: 4-bit NormalFloat, double quantisation.
.. [Dettmers2022] T. Dettmers et al. LLM.int8(): 8-bit Matrix Multiplication for Transformers
   at Scale. NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

PACKAGE = "bitsandbytes"
FOUR, EIGHT = "Linear4bit", "Linear8bitLt"
BY_NAME: Mapping[str, str] = {FOUR: "4bit", EIGHT: "8bit"}


def quantised_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Path of each quantised linear layer → the layer."""
    return {name: module for name, module in model.named_modules() if kind(module)}


def kind(module: nn.Module) -> str:
    """How a layer is quantised: "4bit" or "8bit"; "" of one that is not."""
    for cls in type(module).__mro__:
        if cls.__name__ in BY_NAME and cls.__module__.startswith(PACKAGE):
            return BY_NAME[cls.__name__]
    return ""


def describe(layers: Mapping[str, nn.Module]) -> str:
    """How layers are quantised, as "4bit nf4, double"; empty if there are none."""
    found: dict[str, None] = {}
    for layer in layers.values():
        text = kind(layer)
        state: Any = getattr(layer.weight, "quant_state", None)
        if state is not None:
            text += f" {state.quant_type}{', double' if state.nested else ''}"
        found[text] = None
    return "; ".join(found)


def dense(layer: nn.Module) -> Tensor:
    """The weight that a quantised layer computes with, in the layout of the plain layer.

    Of 4 bits it is what the layer multiplies by; of 8 bits the layer rounds its input too.

    Returns:
        `out x in`, or `in x out` where the layer stands for GPT-2's Conv1D; in a dtype of
        bitsandbytes' choice, on the layer's device.
    """
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    packed: Any = layer.weight
    with torch.no_grad():
        weight: Tensor = dequantize_bnb_weight(packed, getattr(layer, "state", None))
        return weight.t().contiguous() if transposed(layer) else weight.detach()


def transposed(layer: nn.Module) -> bool:
    """Whether the plain layer keeps its weight as `in x out`."""
    return getattr(getattr(layer, "source_cls", None), "__name__", "") == "Conv1D"


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """The shape of `dense`."""
    sizes: tuple[Any, Any] = (layer.out_features, layer.in_features)
    return sizes[::-1] if transposed(layer) else sizes


def state_of_layer(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What tells one quantised weight from another beside its levels: scales, by name."""
    state: Any = getattr(layer.weight, "quant_state", None)
    if state is not None:
        yield from sorted(state.as_dict(packed=True).items())
        return
    scales = getattr(layer.weight, "SCB", None)
    if scales is None:  # after the first call they stand beside the weight
        scales = getattr(getattr(layer, "state", None), "SCB", None)
    if scales is not None:
        yield "SCB", scales


def of_weight(name: str, layers: Mapping[str, nn.Module]) -> bool:
    """Whether a key of a model's state dict belongs to the weight of a quantised layer."""
    head, _, tail = name.rpartition(".")
    if head in layers and tail in ("weight", "SCB", "weight_format"):
        return True
    module, found, _ = name.partition(".weight.")
    return bool(found) and module in layers


def plain_dtype(model: nn.Module) -> torch.dtype:
    """That of the first weight that is not quantised; float32 if all are."""
    first = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(first, torch.float32)


def merged_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights once they are no longer quantised."""
    size = plain_dtype(model).itemsize
    layers = quantised_layers(model)
    packed = {id(layer.weight) for layer in layers.values()}
    plain = sum(p.nbytes for p in model.parameters() if id(p) not in packed)
    return plain + sum(a * b * size for a, b in map(shape_of, layers.values()))


def steady(model: nn.Module) -> nn.Module:
    """The same model, whose layers stay packed as they are.

    On a CPU with instructions for bfloat16, a 4-bit layer packs its weight anew when it is
    first evaluated, and rounds its scales anew when that is undone: levels and results would
    depend on what was called before.
    """
    layers: Iterable[Any] = quantised_layers(model).values()
    for layer in layers:
        if getattr(layer, "support_avx512bf16_for_cpu", False):
            layer.support_avx512bf16_for_cpu = False
    return model
