from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from tests import tiny

Columns = dict[str, list[Any]]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, [CLS] and [SEP] around them; at most 16 tokens."""
    return tiny.word_tokenizer((f"w{i}" for i in range(60)), max_length=16)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = tiny.bert_config(
        hidden_size=16,
        num_hidden_layers=1,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    path = tmp_path_factory.mktemp("tiny-bert")
    BertForSequenceClassification(config).save_pretrained(path)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., str]:
    """Writes parquet files, one per split given as columns, and returns the folder."""

    def write(**splits: Columns) -> str:
        for name, columns in splits.items():
            pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
        return str(tmp_path)

    return write
