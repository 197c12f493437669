"""GGUF files: levels of a quantised model → a plain model of float32 numbers."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel, modeling_gguf_pytorch_utils

from fusetune.errors import ModelError

GGUF = "gguf_file"  # option of every `from_pretrained`


def require() -> None:
    """See to it that the package is there.

    Raises:
        ModelError: If it is not.
    """
    try:
        importlib.import_module("gguf")
    except ImportError:
        raise ModelError(
            "Reading a GGUF file needs the package gguf.",
            "Install it with `pip install 'fusetune[gguf]'`.",
        ) from None


def configuration(path: str, **options: Any) -> Any:
    """A model's configuration; that of a GGUF file is read once, which takes seconds.

    Args:
        path: Folder or hub id.
        options: For `from_pretrained`.
    """
    if GGUF not in options:
        return AutoConfig.from_pretrained(path, **options)
    return copy.deepcopy(_configuration(path, **options))


@functools.lru_cache(maxsize=4)
def _configuration(path: str, **options: Any) -> Any:
    return AutoConfig.from_pretrained(path, **options)


@contextlib.contextmanager
def converting() -> Iterator[None]:
    """Loads of GGUF files in here show no progress bars, and take half the time.

    Transformers uses tqdm itself there, and so does not heed its own
    `disable_progress_bar`; and it asks for the same table of names once for every module.
    """
    package = importlib.import_module("gguf")
    with (
        _replaced(modeling_gguf_pytorch_utils, "tqdm", _without_bar),
        _replaced(package, "get_tensor_name_map", functools.cache),
    ):
        yield


def _without_bar(bar: Callable[..., Any]) -> Callable[..., Any]:
    return functools.partial(bar, disable=True)


@contextlib.contextmanager
def _replaced(module: Any, name: str, change: Callable[[Any], Any]) -> Iterator[None]:
    """Something of another module changed for a while; nothing if a version lacks it."""
    usual = getattr(module, name, None)
    if usual is None:
        yield
        return
    setattr(module, name, change(usual))
    try:
        yield
    finally:
        setattr(module, name, usual)


def unpacked(model: PreTrainedModel) -> PreTrainedModel:
    """A model of GGUF weights, already float numbers, that knows nothing of its file.

    Transformers keeps calling such a model quantised, and refuses to save it.
    """
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    for name, buffer in model.named_buffers():  # those that no state dict has
        owner, _, attribute = name.rpartition(".")
        plain.get_submodule(owner)._buffers[attribute] = buffer
    plain.tie_weights()
    plain.generation_config = model.generation_config
    plain.name_or_path = plain.config.name_or_path = model.name_or_path
    return plain.eval()  # type: ignore[no-any-return]
