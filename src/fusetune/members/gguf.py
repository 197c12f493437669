"""GGUF files as members, for reading: their levels become float32 numbers, by Transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fusetune.members.header import TensorSpec


def describe(file: Path) -> tuple[dict[str, TensorSpec], dict[str, Any]]:
    """Names and shapes of the model in a file, and its configuration; no weight is read.

    Raises:
        ModelError: If the file cannot be read, or the package gguf is missing.
    """
    from transformers import AutoModelForCausalLM  # takes seconds, and only GGUF needs it

    config = _source(file).config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    specs = {
        name: TensorSpec(tensor.dtype, tuple(tensor.shape))
        for name, tensor in model.state_dict().items()
        if name not in tied
    }
    found: Mapping[str, Any] = json.loads(config.to_json_string())
    return specs, {**found, "architectures": [type(model).__name__]}


def convert(file: Path, folder: Path) -> None:
    """Write the model of a file as safetensors, with configuration and tokenizer.

    Raises:
        ModelError: If the file cannot be read, or the package gguf is missing.
    """
    from transformers import AutoModelForCausalLM

    source = _source(file)
    source.build(AutoModelForCausalLM.from_pretrained).save_pretrained(folder)
    source.tokenizer().save_pretrained(folder)


def _source(file: Path) -> Any:
    from fusetune.models.load import resolve

    return resolve(str(file.parent), gguf_file=file.name)
