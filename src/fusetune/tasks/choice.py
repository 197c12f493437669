"""Multiple choice: the option that a language model finds most probable."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fusetune.errors import RecipeError
from fusetune.tasks.answering import AnsweringTask, Features, require_one_of
from fusetune.tasks.answers import EXAMPLE, AnswerEncoder, TooLong
from fusetune.tasks.choices import Choices
from fusetune.tasks.confusion import Floats, ratio
from fusetune.tasks.prompts import PromptTemplate
from fusetune.tasks.ranking import OPTIONS, option_log_probs
from fusetune.tasks.splitting import Splitting
from fusetune.tasks.task import SIZE, Batch, Outputs, SplitName, Task
from fusetune.tasks.teacher_forcing import IGNORED, answers
from fusetune.tasks.text_metrics import References, TextMetric, Texts

Normalise = Literal["sum", "mean"]
BATCH_TOKENS = 4096  # every token of an option has logits over the whole vocabulary
MOST_GROUPS = 64


class MultipleChoice(AnsweringTask):
    """A question with two or more options, one of them right.

    The model is trained to say the right one, and evaluated by which of them it finds most
    probable: by the summed log p of its tokens and the end of the text, or their mean.
    Of equal ones the first counts. The loss is that of the right option.

    Args:
        name: In reports and results.
        data: Folder, mapping from split to file, or hub id; see `fusetune.tasks.data.read`.
        prompt: Jinja template over the fields of a row.
        reference: Column of the right option: its place from 0, its letter or its text.
        metrics: `accuracy` and `group_accuracy`, the mean of the groups' accuracies.
        choices: Columns of the options, or one column that holds lists.
        splitting: How validation and test are made; as they are by default.
        base: Folder that relative paths in `data` start from.
        letters: Whether the model answers with a letter; the prompt then shows the options.
        score: "sum" or "mean" of the tokens' log p.
        group: Column of a question's group, for `group_accuracy`.
        drop: Whether rows that have not exactly one right option are left out.
        chat: Whether the prompt is a user's message in the tokenizer's chat template.
        system: A system message before it; with `chat`.
        too_long: Side on which long prompts are cut, "left" or "right", or "refuse".
        csv: How CSV and TSV files are written; fields of `CsvOptions`.

    Raises:
        RecipeError: If an argument makes no sense. What is wrong with the data shows when
            it is read.
    """

    def __init__(
        self,
        name: str,
        data: str | Mapping[str, str],
        *,
        prompt: str,
        reference: str,
        metrics: Sequence[str],
        choices: str | Sequence[str],
        splitting: Splitting | None = None,
        base: Path | None = None,
        letters: bool = False,
        score: Normalise = "sum",
        group: str | None = None,
        drop: bool = False,
        chat: bool = False,
        system: str | None = None,
        too_long: TooLong = "left",
        csv: Mapping[str, Any] | None = None,
    ) -> None:
        require_one_of("score", score, ("sum", "mean"))
        require_one_of("too_long", too_long, ("left", "right", "refuse"))
        columns = (choices,) if isinstance(choices, str) else tuple(choices)
        self._choices = Choices(
            PromptTemplate(prompt), reference, columns, letters, group, drop
        )
        self._by_length = score == "mean"
        super().__init__(
            name,
            data,
            examples=self._choices,
            metrics=[_metric(metric, group) for metric in metrics],
            encoder={"too_long": too_long, "chat": chat, "system": system},
            measured=f"{letters} {score} {group}",
            budget=BATCH_TOKENS,
            splitting=splitting,
            base=base,
            csv=csv,
        )

    def _room(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Tokens of the longest option of all, the end of the text and a joint included."""
        _ = self.splits
        texts = {t for rows in self._choices.texts.values() for row in rows for t in row}
        ids = tokenizer(sorted(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return max(map(len, ids)) + 2

    def _completed(
        self, split: SplitName, features: Features, encoder: AnswerEncoder
    ) -> Features:
        """With the tokens of every option, as they stand behind the prompt."""
        options = self._choices.texts[split]
        prompts = [text for (text,) in self.splits[split].texts]
        pairs = [(p, text) for p, row in zip(prompts, options, strict=True) for text in row]
        both = encoder.features([p for p, _ in pairs], [o for _, o in pairs], generating=False)
        answers = iter([t for t in f["labels"] if t != IGNORED] for f in both)
        made = []
        for feature, row in zip(features, options, strict=True):
            ids = [next(answers) for _ in row]
            size = len(feature["input_ids"]) + sum(map(len, ids))
            made.append({**feature, OPTIONS: ids, SIZE: size})
        return made

    def _golds(self, split: SplitName) -> list[tuple[str, ...]]:
        """The right option, and the question's group behind it."""
        labels, groups = self.splits[split].labels, self._choices.groups[split]
        known = sorted({g for name in self.splits for g in self._choices.groups[name]})
        if len(known) > MOST_GROUPS:
            raise RecipeError(
                f"task.options.group has {len(known)} values; at most {MOST_GROUPS} make sense."
            )
        places = {group: str(i) for i, group in enumerate(known)}
        return [(*right, places[g]) for right, g in zip(labels, groups, strict=True)]

    def _answered(self, model: nn.Module, batch: Batch) -> tuple[Tensor, list[str], list[bool]]:
        """The right option is among those that are scored: no pass for its loss."""
        found, lengths = option_log_probs(model, batch)
        right = answers(batch)
        wider = max(0, found.shape[2] - right.shape[1])
        right = nn.functional.pad(right, (0, wider), value=IGNORED)[:, None, : found.shape[2]]
        place = (batch[OPTIONS] == right).all(dim=2).int().argmax(dim=1)
        row = torch.arange(len(place), device=place.device)
        losses = found[row, place][batch[OPTIONS][row, place] != IGNORED]
        return losses, self._chosen(found.sum(dim=2), lengths, batch), [False] * len(place)

    def _chosen(self, sums: Tensor, lengths: Tensor, batch: Batch) -> list[str]:
        """The most probable option of each question."""
        scores = sums / lengths.clamp(min=1) if self._by_length else sums
        chosen = scores.masked_fill(lengths == 0, -float("inf")).argmax(dim=1).tolist()
        rows = batch[EXAMPLE].tolist()
        return [self._options[i][j] for i, j in zip(rows, chosen, strict=True)]

    def remarks(self, split: str, models: Sequence[tuple[str, Outputs]]) -> list[str]:
        """Models that give one answer to every question."""
        constant = [name for name, said in models if len(set(said.texts or ())) == 1]
        if not constant:
            return []
        return [f"On {split} one answer to every question from {', '.join(constant)}."]

    @functools.cached_property
    def _options(self) -> list[tuple[str, ...]]:
        """Of all questions, split after split."""
        return [row for name in self.splits for row in self._choices.texts[name]]


def _metric(name: str, group: str | None) -> TextMetric:
    """A metric of the chosen option; references are the right one and the group's number."""
    if name == "accuracy":
        return TextMetric(name, 1, _right, _accuracy)
    if name != "group_accuracy":
        raise RecipeError(
            f"There is no metric {name!r} of multiple choice; known are accuracy and "
            "group_accuracy."
        )
    if group is None:
        raise RecipeError(
            "The metric group_accuracy needs to know each question's group.",
            hint="Set task.options.group to a column.",
        )
    return TextMetric(name, 2 * MOST_GROUPS, _right_by_group, _group_accuracy)


def _right(texts: Texts, references: References) -> Floats:
    pairs = zip(texts, references, strict=True)
    return np.array([[float(text == golds[0])] for text, golds in pairs]).reshape(-1, 1)


def _accuracy(sums: Floats, examples: Floats) -> Floats:
    return ratio(sums[:, 0], examples)


def _right_by_group(texts: Texts, references: References) -> Floats:
    """Columns: right answers of each group, then questions of each group."""
    found = np.zeros((len(texts), 2 * MOST_GROUPS))
    for row, (text, golds) in enumerate(zip(texts, references, strict=True)):
        place = int(golds[1])
        found[row, place] = float(text == golds[0])
        found[row, MOST_GROUPS + place] = 1.0
    return found


def _group_accuracy(sums: Floats, examples: Floats) -> Floats:
    """The mean over the groups that a sample has."""
    right, all_of_them = sums[:, :MOST_GROUPS], sums[:, MOST_GROUPS:]
    there = (all_of_them > 0.0).sum(axis=1).astype(np.float64)
    return ratio(ratio(right, all_of_them).sum(axis=1), there)


KINDS: Mapping[str, Callable[..., Task]] = {"multiple-choice": MultipleChoice}
