"""Prompts and answers → features: tokens, labels on the answer alone, limits kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fusetune.errors import DataError, ModelError, RecipeError
from fusetune.tasks.decoding import pad_id
from fusetune.tasks.ranking import OPTIONS
from fusetune.tasks.task import SIZE
from fusetune.tasks.teacher_forcing import IGNORED

TooLong = Literal["left", "right", "refuse"]
EXAMPLE = "example"
"""Key of a feature that says which example of all splits it is."""
Ids = list[int]


@dataclass
class AnswerEncoder:
    """Tokenises prompts with their answers.

    Args:
        tokenizer: Of the model.
        seq2seq: Whether the answer goes to a decoder, and not behind the prompt.
        limit: Tokens that the model can take: prompt and answer together if it is causal,
            each of them if it is not.
        room: New tokens that generation may make; a causal model's prompt leaves them free.
        too_long: Side on which a prompt is cut, or "refuse".
        chat: Whether prompts are messages of the tokenizer's chat template.
        system: A message before each prompt; with `chat`.

    Attributes:
        cut_prompts: How many prompts have been cut.
        cut_answers: How many answers have been cut at their end.

    Raises:
        RecipeError: If the limit leaves no prompt, or the tokenizer has no chat template.
        ModelError: If the tokenizer cannot say where a text ends.
    """

    tokenizer: PreTrainedTokenizerBase
    seq2seq: bool
    limit: int
    room: int
    too_long: TooLong = "left"
    chat: bool = False
    system: str | None = None
    cut_prompts: int = field(default=0, init=False)
    cut_answers: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                "The tokenizer has no end-of-text token: a model could not learn to stop.",
                "Set eos_token in tokenizer_config.json.",
            )
        if self.prompt_limit < 1:
            raise RecipeError(
                f"The model takes {self.limit} tokens, and max_new_tokens wants {self.room} of "
                "them: nothing is left for the prompt.",
                "Lower task.options.generation.max_new_tokens, or raise model.max_length.",
            )
        if self.chat and not self.tokenizer.chat_template:
            raise RecipeError(
                "task.options.chat needs a chat template, and the tokenizer has none.",
                "Write the whole prompt into task.prompt.",
            )

    @property
    def prompt_limit(self) -> int:
        """Tokens that a prompt may have."""
        return self.limit if self.seq2seq else self.limit - self.room

    def features(
        self, prompts: Sequence[str], answers: Sequence[str], *, generating: bool
    ) -> list[dict[str, Any]]:
        """Model inputs of each example; with `generating`, what generation needs as well.

        Raises:
            DataError: If a prompt is too long and that is refused.
        """
        texts = [self._in_template(prompt) for prompt in prompts]
        before = self._prompts(texts)
        after = self._answers(texts, before, answers)
        features = []
        for whole, answer in zip(before, after, strict=True):
            prompt = self._cut(whole)
            features.append(self._feature(prompt, answer, generating))
        if self.cut_prompts and self.too_long == "refuse":
            raise DataError(
                f"{self.cut_prompts:,} of {len(prompts):,} prompts have more than the "
                f"{self.prompt_limit} tokens that the model can take, the longest "
                f"{max(map(len, before)):,}.",
                hint="Set task.options.too_long to left or right, or raise model.max_length.",
            )
        return features

    def notes(self, split: str, n: int) -> tuple[str, ...]:
        """What was cut of the n examples of a split, and what fills up its batches."""
        found = []
        if self.cut_prompts:
            side = "end" if self.too_long == "right" else "beginning"
            found.append(
                f"{self.cut_prompts:,} of {n:,} {split} prompts were cut at their {side} to "
                f"{self.prompt_limit} tokens."
            )
        if self.cut_answers:
            found.append(
                f"{self.cut_answers:,} of {n:,} {split} answers were cut at their end."
            )
        if self.tokenizer.pad_token_id is None:
            found.append("The tokenizer has no pad token; its end-of-text token is used.")
        return tuple(found)

    def _feature(self, prompt: Ids, answer: Ids, generating: bool) -> dict[str, Any]:
        longest = self.limit if self.seq2seq else self.limit - len(prompt)
        self.cut_answers += len(answer) > longest
        answer = answer[:longest]
        if self.seq2seq:
            ids, labels = prompt, answer
        else:
            ids, labels = prompt + answer, [IGNORED] * len(prompt) + answer
        feature: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": [1] * len(ids),
            "labels": labels,
        }
        if generating:
            if not self.seq2seq:
                feature["prompt_ids"] = prompt
            feature[SIZE] = max(len(ids), len(prompt) + self.room)
        return feature

    def _in_template(self, prompt: str) -> str:
        if not self.chat:
            return prompt
        messages = [{"role": "user", "content": prompt}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        return str(text)

    def _tokens(self, texts: Sequence[str], **options: Any) -> list[Ids]:
        """Token ids of each text; a causal model's end with the text, whatever is added."""
        found = self.tokenizer(list(texts), verbose=False, **options)["input_ids"]
        if self.seq2seq:
            return [list(ids) for ids in found]
        ends = {self.tokenizer.eos_token_id, self.tokenizer.sep_token_id} - {None}
        rows = []
        for row in found:
            ids = list(row)
            if len(ids) > 1 and ids[-1] in ends and not self.chat:
                ids.pop()
            rows.append(ids)
        return rows

    def _prompts(self, texts: Sequence[str]) -> list[Ids]:
        """Without the spaces at a causal prompt's end: the answer's first token has them."""
        if self.seq2seq:
            return self._tokens(texts)
        special = not self.chat  # a chat template writes the special tokens itself
        bare = [text if self.chat else text.rstrip(" ") for text in texts]
        return self._tokens(bare, add_special_tokens=special)

    def _answers(
        self, texts: Sequence[str], prompts: Sequence[Ids], answers: Sequence[str]
    ) -> list[Ids]:
        """The answers' tokens with the end of the text.

        Behind a prompt, an answer's tokens are those that it has in the whole text: "Summary:
        Amanda" has a token " Amanda" in most vocabularies. Where tokens cross the border it
        is tokenised alone.
        """
        if self.seq2seq:
            found = self.tokenizer(text_target=list(answers), verbose=False)["input_ids"]
            return [list(ids) for ids in found]
        end = int(self.tokenizer.eos_token_id)
        alone = self._tokens(answers, add_special_tokens=False)
        joint = [text + answer for text, answer in zip(texts, answers, strict=True)]
        whole = self._tokens(joint, add_special_tokens=not self.chat)
        rows = []
        for prompt, text, answer in zip(prompts, whole, alone, strict=True):
            fits = text[: len(prompt)] == prompt
            rows.append([*(text[len(prompt) :] if fits else answer), end])
        return rows

    def _cut(self, prompt: Ids) -> Ids:
        """At most `prompt_limit` tokens; a first and a last special token stay."""
        excess = len(prompt) - self.prompt_limit
        if excess <= 0:
            return prompt
        self.cut_prompts += 1
        special = set(self.tokenizer.all_special_ids)
        head = prompt[:1] if prompt[0] in special and self.prompt_limit > 2 else []
        tail = prompt[-1:] if prompt[-1] in special and self.prompt_limit > 2 else []
        body = prompt[len(head) : len(prompt) - len(tail)]
        kept = body[excess:] if self.too_long != "right" else body[: len(body) - excess]
        return [*head, *kept, *tail]


@dataclass(frozen=True, slots=True)
class AnswerCollator:
    """Pads to the longest of the batch: prompts to generate from on the left, all else right.

    Args:
        tokenizer: Of the model.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """One tensor per input, `b x` the longest."""
        pad = pad_id(self.tokenizer)
        fill = {"input_ids": pad, "attention_mask": 0, "labels": IGNORED}
        batch = {n: _padded([f[n] for f in features], value) for n, value in fill.items()}
        if "prompt_ids" in features[0]:
            prompts = [f["prompt_ids"] for f in features]
            batch["prompt_ids"] = _padded(prompts, pad, left=True)
            ones = [[1] * len(prompt) for prompt in prompts]
            batch["prompt_mask"] = _padded(ones, 0, left=True)
        if OPTIONS in features[0]:
            batch[OPTIONS] = _options([f[OPTIONS] for f in features])
        if EXAMPLE in features[0]:
            batch[EXAMPLE] = torch.tensor([f[EXAMPLE] for f in features])
        return batch


def _padded(rows: Sequence[Ids], value: int, *, left: bool = False) -> Tensor:
    width = max(map(len, rows))
    filled = [
        [value] * (width - len(row)) + row if left else row + [value] * (width - len(row))
        for row in rows
    ]
    return torch.tensor(filled, dtype=torch.int64)


def _options(rows: Sequence[Sequence[Ids]]) -> Tensor:
    """`b x k x t`; filled up with `IGNORED`."""
    k, width = max(map(len, rows)), max(len(ids) for row in rows for ids in row)
    padded = [_square([*row, *([[]] * (k - len(row)))], width) for row in rows]
    return torch.tensor(padded, dtype=torch.int64)


def _square(row: Sequence[Ids], width: int) -> list[Ids]:
    return [ids + [IGNORED] * (width - len(ids)) for ids in row]
