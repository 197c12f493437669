"""Texts → model inputs, and what names the two."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

UNLIMITED = 1_000_000  # tokenizers without a limit say 1e30
BEHIND_PADDING = ("roberta", "camembert", "longformer", "mpnet", "xmod", "esm")
"""Parts of the names of models whose first position is the one behind the padding's id."""


def tokenise(
    texts: Sequence[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase, limit: int
) -> tuple[list[dict[str, list[int]]], int]:
    """Model inputs per row, and how many rows had more than `limit` tokens.

    Whole texts first: only so can the rows that are cut be counted with any tokenizer.
    """

    def encoded(rows: Sequence[tuple[str, ...]], **options: Any) -> list[dict[str, list[int]]]:
        columns = [list(column) for column in zip(*rows, strict=True)]
        encoding = tokenizer(*columns, padding=False, verbose=False, **options)
        return [
            dict(zip(encoding, row, strict=True))
            for row in zip(*encoding.values(), strict=True)
        ]

    inputs = encoded(texts, truncation=False)
    long = [i for i, row in enumerate(inputs) if len(row["input_ids"]) > limit]
    if long:
        cut = encoded([texts[i] for i in long], truncation=True, max_length=limit)
        for i, row in zip(long, cut, strict=True):
            inputs[i] = row
    return inputs, len(long)


def fingerprint(texts: Sequence[tuple[str, ...]], labels: NDArray[Any]) -> str:
    """The same for the same rows, whatever file they came from."""
    digest = hashlib.sha256(json.dumps(texts).encode())
    digest.update(labels.dtype.newbyteorder("<").str.encode())
    digest.update(labels.astype(labels.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def mixed(fingerprint: str, inputs: Sequence[Mapping[str, list[int]]]) -> str:
    """The split's fingerprint with what tokenizer and limit made of the texts."""
    digest = hashlib.sha256(fingerprint.encode())
    for row in inputs:
        for name, values in row.items():
            digest.update(f"{name}:{len(values)}".encode())
            digest.update(np.asarray(values, dtype="<i4").tobytes())
    return digest.hexdigest()


def positions(config: Any) -> int:
    """How many tokens a model has positions for; `UNLIMITED` if they are relative."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(text, "max_position_embeddings", None)
    if not found or not getattr(text, "position_biased_input", True):
        return UNLIMITED
    kind = str(getattr(text, "model_type", ""))
    behind = any(name in kind for name in BEHIND_PADDING)
    return int(found) - (int(text.pad_token_id or 0) + 1 if behind else 0)
