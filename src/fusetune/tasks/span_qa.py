"""Extractive question answering: the answer is a span of a context, or there is none."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from transformers import AutoModelForQuestionAnswering, PreTrainedTokenizerBase

from fusetune.errors import DataError, RecipeError
from fusetune.objective import LOSS, Objective
from fusetune.tasks import generated, spans, text_metrics
from fusetune.tasks.answers import EXAMPLE
from fusetune.tasks.decoding import pad_id
from fusetune.tasks.encoding import UNLIMITED, mixed, positions
from fusetune.tasks.examples import split_of
from fusetune.tasks.prompts import require_columns, text_column
from fusetune.tasks.spans import PLACES, WindowCollator
from fusetune.tasks.splitting import Part, Splitting, rows_before, shared_texts
from fusetune.tasks.task import SIZE, Batch, Collate, Encoded, Outputs, Split, SplitName, Task

METRICS = tuple(name for name in text_metrics.NAMES if name != "accuracy")  # has no pattern
SEPARATOR = "\n"  # between question and context in a split's text


class SpanQuestionAnswering(generated.ScoredByColumns):
    """A question and a context; the head says where the answer starts and ends.

    Long contexts are read in overlapping windows. The loss is the model's own, the mean over
    all windows; a window without the whole answer points to its first token. Metrics compare
    the best span over all windows with every reference.

    Args:
        name: In reports and results.
        data: Folder, mapping from split to file, or hub id; see `fusetune.tasks.data.read`.
        text: The columns of question and context.
        label: Column of the answers, with "text" and "answer_start" as in SQuAD.
        metrics: Names of `text_metrics`, the first is the primary one.
        splitting: How validation and test are made; as they are by default.
        base: Folder that relative paths in `data` start from.
        stride: Tokens that neighbouring windows share.
        most_tokens: Of an answer.
        threshold: How much better no answer must score than the best span; it is never given
            where every training question (without them, of validation) has an answer.
        csv: How CSV and TSV files are written; fields of `CsvOptions`.

    Raises:
        RecipeError: If an argument makes no sense. What is wrong with the data shows when
            it is read.
    """

    pipeline_tag = "question-answering"
    one_call = True

    def __init__(
        self,
        name: str,
        data: str | Mapping[str, str],
        *,
        text: Sequence[str],
        label: str,
        metrics: Sequence[str],
        splitting: Splitting | None = None,
        base: Path | None = None,
        stride: int = 128,
        most_tokens: int = 30,
        threshold: float = 0.0,
        csv: Mapping[str, Any] | None = None,
    ) -> None:
        if len(text) != 2 or stride < 0 or most_tokens < 1:
            raise RecipeError(
                "Span question answering takes two columns, question and context, a stride "
                f"from 0 and most_tokens from 1; got {list(text)}, {stride}, {most_tokens}."
            )
        self.name = name
        self.data = data
        self.metrics = tuple(text_metrics.find(name, known=METRICS) for name in metrics)
        self.objectives = (LOSS, *(Objective(m.name, m.direction) for m in self.metrics))
        self._text, self._label = tuple(text), label
        self._stride, self._most, self._threshold = stride, most_tokens, threshold
        self._columns = generated.Columns(self.metrics)
        self._splitting, self._base, self._csv = splitting or Splitting(), base, csv
        self._offsets: dict[int, list[NDArray[np.int64]]] = {}
        self._positions = UNLIMITED  # until a model says otherwise

    @property
    def splits(self) -> Mapping[SplitName, Split]:
        """Train, validation and test questions; read once, then kept.

        Raises:
            DataError: If the data set cannot be read or does not fit the task.
        """
        return self._read[0]

    @functools.cached_property
    def notes(self) -> tuple[str, ...]:
        """Questions that are shared between splits, and what metrics do not see."""
        shared = shared_texts({name: split.texts for name, split in self.splits.items()})
        return (*shared, *text_metrics.notes(self.about, self._references))

    @property
    def about(self) -> dict[str, str]:
        """Metric → what it is about."""
        return {m.name: text_metrics.ABOUT.get(m.name, m.name) for m in self.metrics}

    @functools.cached_property
    def _read(self) -> tuple[dict[SplitName, Split], dict[SplitName, list[int | None]]]:
        parts = self._splitting.read(
            self.data, base=self._base, columns=(*self._text, self._label), csv=self._csv
        )
        found: dict[SplitName, Split] = {}
        starts: dict[SplitName, list[int | None]] = {}
        for name, part in parts.items():
            require_columns(part, {*self._text, self._label}, "task")
            columns = [text_column(part, column) for column in self._text]
            golds, starts[name] = self._answers(part, columns[1])
            made = split_of(
                [SEPARATOR.join(pair) for pair in zip(*columns, strict=True)], golds
            )
            texts = tuple(zip(*columns, strict=True))
            found[name] = Split(texts, made.labels, made.fingerprint)
        return found, starts

    def _answers(
        self, part: Part, contexts: Sequence[str]
    ) -> tuple[list[tuple[str, ...]], list[int | None]]:
        golds, starts = [], []
        for i, value in enumerate(part.rows[self._label][:]):
            try:
                texts, start = spans.answer_of(value)
            except (TypeError, KeyError) as error:
                raise DataError(f"{self._label!r} is {error} in {part.where(i)}.") from error
            if start is not None and contexts[i][start : start + len(texts[0])] != texts[0]:
                raise DataError(
                    f"The answer {texts[0]!r} does not stand at character {start} of the "
                    f"context in {part.where(i)}."
                )
            golds.append(texts)
            starts.append(start)
        return golds, starts

    def configure(self, config: Any) -> None:
        """Take in how many positions the model has."""
        self._positions = positions(config)

    def build(self, path: str, **options: Any) -> nn.Module:
        """The model at `path` with a span head; `options` go to `from_pretrained`."""
        model: nn.Module = AutoModelForQuestionAnswering.from_pretrained(path, **options)
        return model

    def encode(
        self, split: SplitName, tokenizer: PreTrainedTokenizerBase, max_length: int | None
    ) -> Encoded:
        """The split in windows: each one an example of train, together one otherwise.

        A window has as many tokens as `max_length`, the tokenizer and the model allow.

        Raises:
            RecipeError: If a window has no room for a context, or the tokenizer is slow.
        """
        rows = self.splits[split]
        most = max_length or UNLIMITED
        limit = min(most, tokenizer.model_max_length, self._positions, UNLIMITED)
        if not tokenizer.is_fast:
            raise RecipeError(
                "Span question answering needs a fast tokenizer, for its offsets."
            )
        pairs = [(question, context) for question, context in rows.texts]
        answers = [
            None if start is None else (start, start + len(golds[0]))
            for start, golds in zip(self._read[1][split], rows.labels, strict=True)
        ]
        longest = max(len(tokenizer(q, verbose=False)["input_ids"]) for q, _ in pairs)
        if longest + self._stride + 2 >= limit:
            raise RecipeError(
                f"The longest question of {split} has {longest} tokens: with a stride of "
                f"{self._stride}, windows of {limit} have no room for the context.",
                "Raise model.max_length, or lower task.options.stride.",
            )
        found = spans.windows(pairs, answers, tokenizer, limit, self._stride)
        each = [[window.feature for window in some] for some in found]
        settings = f"{rows.fingerprint} {self._most} {self._threshold} {self.objectives}"
        flat = [feature for some in each for feature in some]
        digest = mixed(settings, [{n: f[n] for n in f if n not in PLACES} for f in flat])
        if split == "train":
            labels = np.repeat(rows.labels, [len(some) for some in each])
            return Encoded(tuple(flat), labels, digest)
        first = rows_before(self.splits, split)
        features = []
        for i, (some, parts) in enumerate(zip(each, found, strict=True)):
            self._offsets[first + i] = [window.offsets for window in parts]
            size = sum(len(feature["input_ids"]) for feature in some)
            ids = some[0]["input_ids"]
            features.append({"input_ids": ids, "windows": some, EXAMPLE: first + i, SIZE: size})
        return Encoded(tuple(features), rows.labels, digest)

    def collate(self, tokenizer: PreTrainedTokenizerBase) -> Collate:
        """All windows of the batch, one below the other, padded on the right."""
        return WindowCollator(pad_id(tokenizer))

    def _logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Start and end logits `w x t` of the batch's w windows, −inf on padding."""
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs = {name: batch[name].flatten(0, -2) for name in names if name in batch}
        there = inputs["attention_mask"].any(dim=1)
        inputs = {name: value[there] for name, value in inputs.items()}
        found = model(**inputs)
        padding = inputs["attention_mask"] == 0
        both = (found.start_logits.float(), found.end_logits.float())
        start, end = (logits.masked_fill(padding, -float("inf")) for logits in both)
        return start, end

    def _log_probs(self, batch: Batch, start: Tensor, end: Tensor) -> Tensor:
        """The log p of the right start and end, `w x 2`."""
        there = batch["attention_mask"].flatten(0, -2).any(dim=1)
        places = [batch[name].flatten()[there] for name in PLACES]
        pairs = zip((start, end), places, strict=True)
        found = [z.log_softmax(dim=1).gather(1, p[:, None]).squeeze(1) for z, p in pairs]
        return torch.stack(found, dim=1)

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Loss, columns of the metrics, the answers, and log p of starts and ends."""
        start, end = self._logits(model, batch)
        counts = batch["attention_mask"].any(dim=-1).sum(dim=1).tolist()
        ends = np.cumsum(counts)[:-1]
        log_probs = np.split(self._log_probs(batch, start, end).cpu().numpy(), ends)
        loss = np.array([-part.sum(dtype=np.float64) / 2.0 for part in log_probs])
        examples = batch[EXAMPLE].tolist()
        pairs = (np.split(z.cpu().numpy(), ends) for z in (start, end))
        texts = [self._say(i, s, e) for i, s, e in zip(examples, *pairs, strict=True)]
        golds = [self._references[i] for i in examples]
        columns = self._columns.of(loss, np.array(counts), [False] * len(texts), texts, golds)
        flat = tuple(part.reshape(-1) for part in log_probs)
        return Outputs(loss.astype(np.float32), columns, tuple(texts), flat)

    def _say(self, example: int, start: NDArray[Any], end: NDArray[Any]) -> str:
        offsets = self._offsets[example]
        first, behind = spans.best_span(
            [s[: len(o)] for s, o in zip(start, offsets, strict=True)],
            [e[: len(o)] for e, o in zip(end, offsets, strict=True)],
            offsets,
            most_tokens=self._most,
            threshold=self._threshold if self._unanswerable else None,
        )
        return self._contexts[example][first:behind]

    @functools.cached_property
    def _unanswerable(self) -> bool:
        """Whether training has questions without an answer; without it, validation."""
        rows = self.splits.get("train", self.splits["validation"])
        return any(not golds for golds in rows.labels)

    @functools.cached_property
    def _references(self) -> list[tuple[str, ...]]:
        return [golds for rows in self.splits.values() for golds in rows.labels]

    @functools.cached_property
    def _contexts(self) -> list[str]:
        return [context for rows in self.splits.values() for _, context in rows.texts]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean over the windows of a batch, as in training."""
        return -self._log_probs(batch, *self._logits(model, batch)).mean()

    def with_drawn_labels(
        self, model: nn.Module, batch: Batch, generator: Generator
    ) -> dict[str, Tensor]:
        """Starts and ends drawn from what the model itself predicts."""
        with torch.no_grad():
            both = self._logits(model, batch)
        there = batch["attention_mask"].any(dim=-1)
        made = dict(batch)
        for name, logits in zip(PLACES, both, strict=True):
            drawn = torch.multinomial(logits.softmax(dim=1).cpu(), 1, generator=generator)
            made[name] = batch[name].clone()
            made[name][there] = drawn.squeeze(1).to(batch[name].device)
        return made

    def remarks(self, split: str, models: Sequence[tuple[str, Outputs]]) -> list[str]:
        """Models that never give an answer."""
        silent = [name for name, said in models if not any(said.texts or ())]
        return (
            [f"On {split} no answer to any question from {', '.join(silent)}."]
            if silent
            else []
        )


KINDS: Mapping[str, Callable[..., Task]] = {"span-question-answering": SpanQuestionAnswering}
