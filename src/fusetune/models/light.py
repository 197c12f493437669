"""Light variants: the same network with fewer layers to train.

A better λ for the light variant is, as a rule, a better λ for the full model (BOMF,
section on hyper-parameter transfer), so that the search can run on the cheap one.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from fusetune.errors import RecipeError

RELATIVE = "rel_embeddings"


@dataclass(frozen=True, slots=True)
class Frozen:
    """What `freeze_layers` froze.

    Attributes:
        stack: Name of the layer stack, such as "bert.encoder.layer".
        layers: How many of its layers are frozen.
        of: How many it has.
        trainable: Number of parameters that still train.
        total: Number of parameters.
    """

    stack: str
    layers: int
    of: int
    trainable: int
    total: int


def layer_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The longest list of equal layers; the encoder's where there is a decoder too.

    Works for BERT, RoBERTa, DeBERTa, DistilBERT, LLaMA, T5 and their relatives without
    knowing their names for it.

    Raises:
        RecipeError: If the model has no such stack.
    """
    best: tuple[str, nn.ModuleList] | None = None
    for name, module in model.named_modules():
        same = isinstance(module, nn.ModuleList) and len({type(layer) for layer in module}) == 1
        if (
            same
            and isinstance(module, nn.ModuleList)
            and (best is None or len(module) > len(best[1]))
        ):  # strictly longer, so that an encoder, which comes first, stays
            best = (name, module)
    if best is None:
        raise RecipeError(
            f"{type(model).__name__} has no stack of layers that could be frozen.",
            "Write search.variant: full.",
        )
    return best


def freeze_layers(model: PreTrainedModel, count: int) -> Frozen:
    """Freeze the embeddings and the first `count` layers, in place.

    Frozen modules stay in evaluation mode, whatever `model.train()` says: without dropout
    their activations depend on the text alone.

    Args:
        model: Any Transformers model with a layer stack.
        count: At least one layer must stay trainable.

    Raises:
        RecipeError: If the model has no stack, or not more than `count` layers.
    """
    name, stack = layer_stack(model)
    if count >= len(stack):
        raise RecipeError(
            f"search.variant.freeze_layers is {count}, but {name} has {len(stack)} layers "
            "and at least one must train.",
            f"Give at most {len(stack) - 1}.",
        )
    for module in (*_embeddings(model, name), *list(stack)[:count]):
        module.requires_grad_(False)
        _stay_in_evaluation(module)
    parameters = list(model.parameters())
    return Frozen(
        stack=name,
        layers=count,
        of=len(stack),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        total=sum(p.numel() for p in parameters),
    )


def _embeddings(model: PreTrainedModel, stack: str) -> list[nn.Module]:
    """What stands before the stack: the embeddings with their norms, dropout and biases."""
    found: list[nn.Module] = [model.get_input_embeddings()]
    owner = stack.rpartition(".")[0]
    for path in dict.fromkeys((owner, owner.rpartition(".")[0])):
        for name, child in model.get_submodule(path).named_children():
            if f"{path}.{name}".lstrip(".") == stack:
                continue
            # GPT-2 keeps position table and dropout beside the stack, under other names;
            # DeBERTa the norm of its relative positions.
            beside = isinstance(child, nn.Embedding | nn.Dropout) and path == owner
            relative = name == "LayerNorm" and hasattr(model.get_submodule(path), RELATIVE)
            if "embed" in name.lower() or beside or relative:
                found.append(child)
    return found


def _stay_in_evaluation(module: nn.Module) -> None:
    module.eval()

    def train(mode: bool = True, *, _module: nn.Module = module) -> nn.Module:
        return nn.Module.train(_module, False)

    # `model.train()` calls `train` of each child; the instance's own one comes first.
    object.__setattr__(module, "train", train)
