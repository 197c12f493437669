"""Text generation: a prompt in, a text out; sequence-to-sequence and causal models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fusetune.tasks import generated, greedy, teacher_forcing, text_metrics
from fusetune.tasks.answering import AnsweringTask, Features, require_one_of
from fusetune.tasks.answers import AnswerEncoder, TooLong
from fusetune.tasks.decoding import Decoding, generate
from fusetune.tasks.examples import EmptyReferences, Examples
from fusetune.tasks.prompts import PromptTemplate
from fusetune.tasks.splitting import Splitting
from fusetune.tasks.task import Batch, Outputs, SplitName, Task


class Generation(AnsweringTask):
    """A prompt made of a row's fields, and one or more reference texts.

    The loss is that of the first reference; metrics compare the generated text with all of
    them. One evaluation gives both, and keeps the texts.

    Args:
        name: In reports and results.
        data: Folder, mapping from split to file, or hub id; see `fusetune.tasks.data.read`.
        prompt: Jinja template over the fields of a row.
        reference: Column of the reference text or texts, or a path such as "answers.text".
        metrics: Names of `text_metrics`, the first is the primary one; without any, nothing
            is generated.
        splitting: How validation and test are made; as they are by default.
        base: Folder that relative paths in `data` start from.
        generation: Fields of `decoding.Decoding`.
        chat: Whether the prompt is a user's message in the tokenizer's chat template.
        system: A system message before it; with `chat`.
        group_references: Whether rows of validation and test with the same prompt are one
            example with several references.
        no_answer: What is taught where a row has no reference; a generated text that says
            just that counts as none.
        empty_references: "refuse" or "drop" rows without a reference, unless `no_answer`.
        too_long: Side on which long prompts are cut, "left" or "right", or "refuse".
        answer_pattern: Of the metric accuracy.
        stemmer: Whether ROUGE compares stems.
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
        splitting: Splitting | None = None,
        base: Path | None = None,
        generation: Mapping[str, Any] | None = None,
        chat: bool = False,
        system: str | None = None,
        group_references: bool = False,
        no_answer: str | None = None,
        empty_references: EmptyReferences = "refuse",
        too_long: TooLong = "left",
        answer_pattern: str | None = None,
        stemmer: bool = False,
        csv: Mapping[str, Any] | None = None,
    ) -> None:
        require_one_of("empty_references", empty_references, ("refuse", "drop"))
        require_one_of("too_long", too_long, ("left", "right", "refuse"))
        self.decoding = Decoding.of(generation or {})
        self._no_answer = no_answer
        super().__init__(
            name,
            data,
            examples=Examples(
                PromptTemplate(prompt), reference, group_references, no_answer, empty_references
            ),
            metrics=[
                text_metrics.find(metric, pattern=answer_pattern, stemmer=stemmer)
                for metric in metrics
            ],
            encoder={"too_long": too_long, "chat": chat, "system": system},
            measured=f"{answer_pattern} {stemmer} {no_answer} {self.decoding}",
            budget=max(1, self.decoding.batch_tokens // self.decoding.num_beams),
            splitting=splitting,
            base=base,
            csv=csv,
        )

    def remarks(self, split: str, models: Sequence[tuple[str, Outputs]]) -> list[str]:
        """How many texts of each model ran into the limit."""
        return generated.remarks(split, models, self.decoding.max_new_tokens)

    def _room(self, tokenizer: PreTrainedTokenizerBase) -> int:
        return self.decoding.max_new_tokens

    def _completed(
        self, split: SplitName, features: Features, encoder: AnswerEncoder
    ) -> Features:
        return features

    def _golds(self, split: SplitName) -> list[tuple[str, ...]]:
        return list(self.splits[split].labels)

    def _answered(self, model: nn.Module, batch: Batch) -> tuple[Tensor, list[str], list[bool]]:
        assert self._tokenizer is not None  # the batch was encoded
        if greedy.applies(model, self.decoding):
            found, texts, limited = greedy.answer(model, batch, self._tokenizer, self.decoding)
        else:
            found = teacher_forcing.in_parts(model, batch)
            prompts = batch.get("prompt_ids", batch["input_ids"])
            mask = batch.get("prompt_mask", batch["attention_mask"])
            texts, limited = generate(model, prompts, mask, self._tokenizer, self.decoding)
        return found, [self._answer(text) for text in texts], limited

    def _answer(self, text: str) -> str:
        """The text, or "" where it says that there is no answer."""
        nothing = self._no_answer
        same = nothing is not None and text.casefold() == nothing.strip().casefold()
        return "" if same else text


KINDS: Mapping[str, Callable[..., Task]] = {"generation": Generation}
