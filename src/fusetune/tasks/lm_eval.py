"""Task kind `lm-eval`: tasks of lm-evaluation-harness as objectives of a fusion.

Each document has columns of numbers, as a generated text has, so that intervals and
paired tests hold for them as for any other metric.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import torch
from torch import Generator, Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerBase,
)

from fusetune.errors import RecipeError, StageError
from fusetune.models.scratch import load_or_make
from fusetune.objective import LOSS, Objective
from fusetune.tasks import generated, harness
from fusetune.tasks.answers import EXAMPLE
from fusetune.tasks.confusion import Floats
from fusetune.tasks.documents import Document, divided
from fusetune.tasks.encoding import mixed
from fusetune.tasks.examples import split_of
from fusetune.tasks.harness_metrics import Measure, is_public
from fusetune.tasks.splitting import Splitting, rows_before, shared_texts
from fusetune.tasks.task import SIZE, Batch, Collate, Encoded, Outputs, Split, SplitName, Task

BUILT_IN = "lm-eval"
"""As `data`: the tasks that come with the harness, and none of one's own."""

AT_ONCE = 1024  # documents that the harness is given at once; it sorts and batches them


class LmEval(generated.ScoredByColumns):
    """Metrics of lm-evaluation-harness on models that exist already.

    Half of each task's documents chooses, the other half only reports; tasks with labelled
    validation and test documents have them as they are. The loss is the negative
    log-likelihood of the right answer, in nats, its mean over the documents of all tasks.

    Args:
        name: In reports and results.
        data: Folder with YAML files of tasks, or "lm-eval" for those of the harness alone.
        metrics: `lm_eval:TASK/METRIC`, the first is the primary one.
        splitting: Its seed decides which documents choose.
        limit: Documents of each task that choose, and that report, at most.
        batch_size: Requests that the model is given at once.

    Raises:
        RecipeError: If an argument makes no sense. What is wrong with tasks and data shows
            when they are loaded.
    """

    def __init__(
        self,
        name: str,
        data: str | Mapping[str, str],
        *,
        metrics: Sequence[str],
        splitting: Splitting | None = None,
        limit: int | None = None,
        batch_size: int = 16,
    ) -> None:
        self._splitting = splitting or Splitting()
        _require(data, self._splitting, limit, batch_size)
        self.name = name
        self.data = str(data)
        self.pipeline_tag = "text-generation"
        self._limit, self._batch_size = limit, batch_size
        self._measures = [Measure.parse(metric) for metric in metrics]
        names = [measure.name for measure in self._measures]
        if len(set(names)) != len(names):
            raise RecipeError(f"metrics must be different; got {', '.join(names)}.")
        self._config: Any = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._max_length: int | None = None
        self._model: tuple[nn.Module, bool, Any] | None = None

    @functools.cached_property
    def _groups(self) -> dict[str, dict[str, Any]]:
        """Task or group → its tasks of the harness, by name."""
        folder = None if self.data == BUILT_IN else self.data
        return harness.load(list(dict.fromkeys(m.task for m in self._measures)), folder)

    @functools.cached_property
    def _tasks(self) -> dict[str, Any]:
        return {name: task for group in self._groups.values() for name, task in group.items()}

    @functools.cached_property
    def _columns(self) -> generated.Columns:  # type: ignore[override]
        return generated.Columns(
            tuple(m.text_metric(self._groups[m.task].values()) for m in self._measures)
        )

    @functools.cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """The loss, then the metrics in the recipe's order."""
        metrics = self._columns.metrics
        return (LOSS, *(Objective(m.name, m.direction) for m in metrics))

    @functools.cached_property
    def _documents(self) -> dict[SplitName, tuple[Document, ...]]:
        seed = self._splitting.seed
        with harness.quiet():
            parts = [divided(task, seed, self._limit) for task in self._tasks.values()]
        return {
            "validation": tuple(d for validation, _ in parts for d in validation),
            "test": tuple(d for _, test in parts for d in test),
        }

    @functools.cached_property
    def splits(self) -> Mapping[SplitName, Split]:
        """Validation and test; nothing trains.

        Raises:
            RecipeError: If a task is unknown, or not of a kind that can be used.
            DataError: If its data cannot be read.
        """
        return {
            name: split_of([d.prompt for d in found], [(d.target,) for d in found])
            for name, found in self._documents.items()
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings: public benchmarks as objectives, and prompts on both sides."""
        texts = {name: split.texts for name, split in self.splits.items()}
        public = [name for name in self._groups if is_public(name)]
        notes = [
            f"{', '.join(public)}: public test benchmarks are objectives here. The weights are "
            "fitted to them: a score of the fused model on them, the other half included, "
            "says less of it than of models that were not chosen by them."
        ]
        return (*(notes if public else ()), *shared_texts(texts))

    def configure(self, config: Any) -> None:
        """Take in what kind of model it is."""
        self._config = config
        seq2seq = bool(getattr(config, "is_encoder_decoder", False))
        self.pipeline_tag = "text2text-generation" if seq2seq else "text-generation"

    def build(self, path: str, **options: Any) -> nn.Module:
        """The model at `path`; `options` go to `from_pretrained`."""
        trust = options.get("trust_remote_code", False)
        source = {key: options[key] for key in ("revision", "gguf_file") if key in options}
        self.configure(AutoConfig.from_pretrained(path, trust_remote_code=trust, **source))
        seq2seq = self.pipeline_tag == "text2text-generation"
        kind = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
        model: nn.Module = load_or_make(kind, path, **options)
        return model

    def encode(
        self, split: SplitName, tokenizer: PreTrainedTokenizerBase, max_length: int | None
    ) -> Encoded:
        """The numbers of the documents: the harness itself makes inputs of their texts."""
        self._tokenizer, self._max_length = tokenizer, max_length
        rows, found = self.splits[split], self._documents[split]
        first = rows_before(self.splits, split)
        features = tuple(
            {"input_ids": [first + i], EXAMPLE: first + i, SIZE: 1} for i in range(len(found))
        )
        asked = "\n".join(document.asked for document in found)
        names = [measure.name for measure in self._measures]
        text = f"{asked} {names} {max_length} {self._batch_size} {harness.version()}"
        digest = hashlib.sha256(f"{rows.fingerprint} {text}".encode()).hexdigest()
        vocabulary = {"input_ids": tokenizer(asked[:10_000])["input_ids"]}
        return Encoded(features, rows.labels, mixed(digest, [vocabulary]), AT_ONCE)

    def collate(self, tokenizer: PreTrainedTokenizerBase) -> Collate:
        """The numbers of some documents."""
        return lambda features: {EXAMPLE: torch.tensor([f[EXAMPLE] for f in features])}

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Loss and columns of the metrics; log p of the whole right answer."""
        everything = [d for found in self._documents.values() for d in found]
        chosen = [everything[i] for i in batch[EXAMPLE].tolist()]
        answered = harness.evaluate(self._wrapped(model), self._tasks, chosen)
        loss = np.array([a.loss for a in answered])
        known = np.column_stack([loss, np.ones(len(loss)), np.zeros(len(loss))])
        measured = [self._measured(m, chosen, answered) for m in self._measures]
        columns = np.hstack([known, *measured]).astype(np.float32)
        log_probs = tuple(np.array([-value], dtype=np.float32) for value in loss)
        return Outputs(loss.astype(np.float32), columns, None, log_probs)

    def _wrapped(self, model: nn.Module) -> Any:
        lower = torch.is_autocast_enabled(next(model.parameters()).device.type)
        if self._model is None or self._model[0] is not model or self._model[1] != lower:
            assert self._tokenizer is not None  # `encode` comes first
            made = harness.wrapped(
                model,
                self._tokenizer,
                batch_size=self._batch_size,
                max_length=self._max_length,
            )
            self._model = (model, lower, made)
        return self._model[2]

    def _measured(
        self,
        measure: Measure,
        chosen: Sequence[Document],
        answered: Sequence[harness.Answered],
    ) -> Floats:
        """`n x 2`: a document's value and its weight; zeros for those of other tasks."""
        rows = np.zeros((len(chosen), 2))
        own = self._groups[measure.task]
        for row, (document, said) in enumerate(zip(chosen, answered, strict=True)):
            if document.task in own:
                rows[row] = measure.value(said.metrics)
        return rows

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """There is none with a gradient.

        Raises:
            StageError: Always.
        """
        _no_gradient()

    def with_drawn_labels(
        self, model: nn.Module, batch: Batch, generator: Generator
    ) -> dict[str, Tensor]:
        """There are no labels to draw.

        Raises:
            StageError: Always.
        """
        _no_gradient()


def _no_gradient() -> NoReturn:
    raise StageError(
        "A task of the kind lm-eval has no loss that a method can follow.",
        "Leave learned, twa and fisher out of fuse.methods.",
    )


def _require(data: object, splitting: Splitting, limit: object, batch_size: object) -> None:
    if splitting.trains:
        raise RecipeError(
            "A task of the kind lm-eval evaluates models, it trains none.",
            "Give checkpoints that exist: train.checkpoints.",
        )
    if splitting.halve is not None or splitting.hold_out is not None:
        raise RecipeError(
            "task.split: a task of the kind lm-eval halves its documents itself; leave it out."
        )
    if not isinstance(data, str) or (data != BUILT_IN and not Path(data).is_dir()):
        raise RecipeError(
            f"task.data of the kind lm-eval is a folder with YAML files of tasks, or "
            f"{BUILT_IN}; got {data!r}."
        )
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not whole and not (name == "limit" and value is None):
            raise RecipeError(f"task.options.{name} is a whole number above 0; got {value!r}.")


# Its objectives are known once the harness has loaded its tasks, so that they are a property.
KINDS: Mapping[str, Callable[..., Task]] = {"lm-eval": cast("Callable[..., Task]", LmEval)}
