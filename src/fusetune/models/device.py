"""Where and in which precision a model computes."""

from __future__ import annotations

import torch
from torch import nn

from fusetune.errors import RecipeError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes a GPU where there is one.

    Raises:
        RecipeError: If PyTorch does not know the device, or this machine lacks it.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RecipeError(
            f"model.device: {name!r} cannot be used here: {reason}", "Try auto or cpu."
        ) from error
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """The precision of that name; "auto" takes bfloat16 where the device computes in it.

    A CPU emulates bfloat16 slowly unless it has instructions for it.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return (
            "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
        )
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "bfloat16"
    return "float32"


def emulated(precision: str, device: torch.device) -> bool:
    """Whether a CPU has no kernels for a precision: products are then ten times slower or more.

    oneDNN has them where the processor has instructions for the precision, or for wide vectors.
    """
    if device.type != "cpu" or precision == "float32":
        return False
    if not torch.backends.mkldnn.is_available():
        return True
    has = {
        "bfloat16": torch.ops.mkldnn._is_mkldnn_bf16_supported,
        "float16": torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return not has[precision]()


def require_trainable(model: nn.Module) -> None:
    """Check that a model which `device_map` has laid out can be trained.

    The Trainer trains layers on several accelerators, one after the other. Layers in the host's
    memory or on the disk have no gradients.

    Raises:
        RecipeError: If there are such layers beside others.
    """
    places: dict[str, object] = getattr(model, "hf_device_map", None) or {}
    kinds = {str(place) for place in places.values()}
    away = sorted(name for name, place in places.items() if str(place) in ("cpu", "disk"))
    if away and kinds != {"cpu"}:
        raise RecipeError(
            f"model.device_map: {len(away)} parts of the model, {away[0]} among them, have no "
            "room on an accelerator: such layers cannot be trained.",
            "Take more or larger devices, or train elsewhere and give train.checkpoints.",
        )
