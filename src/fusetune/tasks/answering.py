"""What tasks have in common whose models answer a prompt with a text.

A concrete task says how rows become examples, and how a model says its answer: by writing
it, or by choosing one of several.
"""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerBase,
)

from fusetune.errors import RecipeError
from fusetune.models import gguf
from fusetune.models.scratch import load_or_make
from fusetune.objective import LOSS, Objective
from fusetune.tasks import generated, teacher_forcing, text_metrics
from fusetune.tasks.answers import EXAMPLE, AnswerCollator, AnswerEncoder
from fusetune.tasks.decoding import pad_id
from fusetune.tasks.encoding import UNLIMITED, mixed, positions
from fusetune.tasks.examples import Reading
from fusetune.tasks.splitting import Splitting, rows_before, shared_texts
from fusetune.tasks.task import Batch, Collate, Encoded, Outputs, Split, SplitName
from fusetune.tasks.teacher_forcing import IGNORED
from fusetune.tasks.text_metrics import TextMetric

Features = list[dict[str, Any]]


class AnsweringTask(generated.ScoredByColumns, ABC):
    """A prompt in, a text out.

    The loss is that of the example's target, teacher-forced: summed over its tokens in each
    example, and divided by all of a split.

    Args:
        name: In reports and results.
        data: Folder, mapping from split to file, or hub id; see `fusetune.tasks.data.read`.
        examples: Reads the rows.
        metrics: The first is the primary one; without any, nothing is answered.
        encoder: Arguments of `AnswerEncoder`.
        measured: Whatever else decides what an evaluation gives.
        budget: Tokens of a batch, those of the answers included.
        splitting: How validation and test are made; as they are by default.
        base: Folder that relative paths in `data` start from.
        csv: How CSV and TSV files are written; fields of `CsvOptions`.
    """

    def __init__(
        self,
        name: str,
        data: str | Mapping[str, str],
        *,
        examples: Reading,
        metrics: Sequence[TextMetric],
        encoder: Mapping[str, Any],
        measured: str,
        budget: int,
        splitting: Splitting | None,
        base: Path | None,
        csv: Mapping[str, Any] | None,
    ) -> None:
        self.name = name
        self.data = data
        self.metrics = tuple(metrics)
        names = [metric.name for metric in metrics]
        if len({LOSS.name, *names}) != len(names) + 1:
            raise RecipeError(
                f"metrics must be different names, none of them loss; got {names}."
            )
        self.objectives = (LOSS, *(Objective(m.name, m.direction) for m in metrics))
        self.pipeline_tag = "text-generation"  # until a model says otherwise
        self._examples = examples
        self._columns = generated.Columns(self.metrics)
        self._encoder = dict(encoder)
        self._measured = f"{names} {measured}"
        self._budget = budget
        self._splitting, self._base, self._csv = splitting or Splitting(), base, csv
        self._config: Any = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._encoding: dict[SplitName, tuple[str, ...]] = {}

    @abstractmethod
    def _room(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """How many tokens of an answer a prompt has to leave free."""

    @abstractmethod
    def _completed(
        self, split: SplitName, features: Features, encoder: AnswerEncoder
    ) -> Features:
        """The features with whatever else answering needs."""

    @abstractmethod
    def _golds(self, split: SplitName) -> list[tuple[str, ...]]:
        """What metrics compare each example's answer with."""

    @abstractmethod
    def _answered(self, model: nn.Module, batch: Batch) -> tuple[Tensor, list[str], list[bool]]:
        """Log p of the references' tokens, row by row; answers; which ran into a limit."""

    @property
    def splits(self) -> Mapping[SplitName, Split]:
        """Train, validation and test examples; read once, then kept.

        Raises:
            DataError: If the data set cannot be read or does not fit the task.
        """
        return self._read[0]

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings: shared prompts, rows left out, and what `encode` has cut so far."""
        encoding = [note for split in self._encoding.values() for note in split]
        return (*self._shared, *self._read[1], *self._unseen, *dict.fromkeys(encoding))

    @property
    def about(self) -> dict[str, str]:
        """Metric → what it is about."""
        own = "a function of the recipe's own, higher is better"
        return {m.name: text_metrics.ABOUT.get(m.name, own) for m in self.metrics}

    @functools.cached_property
    def _unseen(self) -> tuple[str, ...]:
        golds = [g for name in ("validation", "test") for g in self.splits[name].labels]
        return tuple(text_metrics.notes((m.name for m in self.metrics), golds))

    @functools.cached_property
    def _read(self) -> tuple[dict[SplitName, Split], tuple[str, ...]]:
        columns = sorted(self._examples.columns)
        parts = self._splitting.read(self.data, base=self._base, columns=columns, csv=self._csv)
        return self._examples.splits(parts)

    @functools.cached_property
    def _shared(self) -> tuple[str, ...]:
        return shared_texts({name: split.texts for name, split in self.splits.items()})

    @functools.cached_property
    def _references(self) -> list[tuple[str, ...]]:
        """What metrics compare with, of all examples, split after split."""
        return [golds for name in self.splits for golds in self._golds(name)]

    @property
    def _seq2seq(self) -> bool:
        return bool(getattr(self._config, "is_encoder_decoder", False))

    def configure(self, config: Any) -> None:
        """Take in what kind of model it is, and how many positions it has."""
        self._config = config
        self.pipeline_tag = "text2text-generation" if self._seq2seq else "text-generation"

    def build(self, path: str, **options: Any) -> nn.Module:
        """The model at `path`, a new one if there are no weights.

        `options` go to `from_pretrained`.
        """
        trust = options.get("trust_remote_code", False)
        source = {key: options[key] for key in ("revision", "gguf_file") if key in options}
        config = gguf.configuration(path, trust_remote_code=trust, **source)
        self.configure(config)
        kind = AutoModelForSeq2SeqLM if self._seq2seq else AutoModelForCausalLM
        if gguf.GGUF in options:  # it would be read once more
            options = {**options, "config": config}
        model: nn.Module = load_or_make(kind, path, **options)
        return model

    def encode(
        self, split: SplitName, tokenizer: PreTrainedTokenizerBase, max_length: int | None
    ) -> Encoded:
        """The split as model inputs; validation and test with what answering needs.

        The limit is the least of `max_length`, the tokenizer's and the model's positions.
        What was cut stands in `notes`.

        Raises:
            ValueError: If the model's kind is not known yet (`configure`).
            RecipeError: If the limit leaves no room for a prompt.
            DataError: If prompts are too long and that is refused.
        """
        if self._config is None:
            raise ValueError("call `configure` or `build` before `encode`")
        self._tokenizer = tokenizer
        rows = self.splits[split]
        generating = bool(self.metrics) and split != "train"
        limits = (max_length or UNLIMITED, tokenizer.model_max_length, positions(self._config))
        encoder = AnswerEncoder(
            tokenizer,
            self._seq2seq,
            limit=min(*limits, UNLIMITED),
            room=self._room(tokenizer) if self.metrics else 1,
            **self._encoder,
        )
        features = encoder.features(
            [text for (text,) in rows.texts],
            self._examples.targets(rows),
            generating=generating,
        )
        self._encoding[split] = encoder.notes(split, len(rows))
        if generating:
            features = self._completed(split, features, encoder)
        digest = hashlib.sha256(f"{rows.fingerprint} {self._measured}".encode()).hexdigest()
        digest = mixed(digest, [_hashed(feature) for feature in features])
        if not generating:
            return Encoded(tuple(features), rows.labels, digest)
        first = rows_before(self.splits, split)
        numbered = tuple({**f, EXAMPLE: first + i} for i, f in enumerate(features))
        return Encoded(numbered, rows.labels, digest, self._budget)

    def collate(self, tokenizer: PreTrainedTokenizerBase) -> Collate:
        """Pads to the longest of the batch; prompts to generate from on the left."""
        _ = pad_id(tokenizer)
        return AnswerCollator(tokenizer)

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Loss, columns of the metrics, the answers and log p of the reference's tokens."""
        if self.metrics:
            found, texts, limited = self._answered(model, batch)
            references = [self._references[i] for i in batch[EXAMPLE].tolist()]
        else:
            found, texts, references = teacher_forcing.in_parts(model, batch), [], []
            limited = [False] * len(batch["labels"])
        tokens = teacher_forcing.counts(batch["labels"]).cpu().numpy()
        log_probs = tuple(np.split(found.cpu().numpy(), np.cumsum(tokens)[:-1]))
        loss = np.array([-part.sum(dtype=np.float64) for part in log_probs])
        columns = self._columns.of(loss, tokens, limited, texts, references)
        said = tuple(texts) if self.metrics else None
        return Outputs(loss.astype(np.float32), columns, said, log_probs)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss over the answer tokens of a batch, as in training."""
        return -teacher_forcing.log_probabilities(model, batch).mean()

    def with_drawn_labels(
        self, model: nn.Module, batch: Batch, generator: Generator
    ) -> dict[str, Tensor]:
        """Each answer token drawn from what the model says behind the reference's tokens."""
        with torch.no_grad():
            found, _ = teacher_forcing.logits(model, batch)
            drawn = torch.multinomial(found.softmax(-1).cpu(), 1, generator=generator)
        labels = batch["labels"].clone()
        made = {**batch, "labels": labels}
        if teacher_forcing.is_seq2seq(model):
            made["decoder_input_ids"] = teacher_forcing.decoder_inputs(model, batch["labels"])
        else:
            labels = labels[:, 1:]  # the same memory
        labels[labels != IGNORED] = drawn.squeeze(-1).to(labels.device)
        return made


def require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Check an option of the recipe.

    Raises:
        RecipeError: If the value is not one of those known.
    """
    if value not in known:
        raise RecipeError(f"task.options.{name} is one of {', '.join(known)}; got {value!r}.")


def _hashed(feature: Mapping[str, Any]) -> dict[str, list[int]]:
    """What of a feature decides an evaluation, as flat lists of numbers."""
    flat = {}
    for name, value in feature.items():
        if isinstance(value, list):
            nested = value and isinstance(value[0], list)
            flat[name] = [n for row in value for n in (*row, -1)] if nested else value
    return flat
