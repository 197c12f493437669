"""Long contexts in overlapping windows, and the best span over all of them.

.. [Devlin2019] J. Devlin et al. BERT: Pre-training of Deep Bidirectional Transformers for
   Language Understanding. NAACL 2019, sections 4.2 and 4.3 (the no-answer score).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fusetune.tasks.answers import EXAMPLE

PLACES = ("start_positions", "end_positions")
MOST_ENDS = 20  # most probable starts, and ends, that are tried in a window


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a context behind its question.

    Attributes:
        inputs: Model inputs, lists of t numbers.
        offsets: `t x 2`; first and last character of each token in the context, −1 where the
            token is not one of it.
        start: Token where the answer starts; 0, the first of all, where it is not inside.
        end: Its last token.
    """

    inputs: Mapping[str, list[int]]
    offsets: NDArray[np.int64]
    start: int
    end: int

    @property
    def feature(self) -> dict[str, Any]:
        """Model inputs with the places of the answer."""
        return {**self.inputs, PLACES[0]: self.start, PLACES[1]: self.end}


def windows(
    pairs: Sequence[tuple[str, str]],
    answers: Sequence[tuple[int, int] | None],
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    stride: int,
) -> list[list[Window]]:
    """The windows of each example.

    Args:
        pairs: n questions and contexts.
        answers: First character and the one behind the last, in the context; None where
            there is no answer.
        tokenizer: A fast one.
        limit: Tokens of a window.
        stride: Tokens that neighbours share.
    """
    found: list[list[Window]] = [[] for _ in pairs]
    encoding = tokenizer(
        [question for question, _ in pairs],
        [context for _, context in pairs],
        truncation="only_second",
        max_length=limit,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    kept = [n for n in encoding if n not in ("offset_mapping", "overflow_to_sample_mapping")]
    for row, i in enumerate(encoding["overflow_to_sample_mapping"]):
        inside = np.array([part == 1 for part in encoding.sequence_ids(row)])
        offsets = np.array(encoding["offset_mapping"][row], dtype=np.int64)
        offsets = np.where(inside[:, None], offsets, -1)
        start, end = _places(offsets, answers[i])
        inputs = {name: list(encoding[name][row]) for name in kept}
        found[i].append(Window(inputs, offsets, start, end))
    return found


def _places(offsets: NDArray[np.int64], answer: tuple[int, int] | None) -> tuple[int, int]:
    """First and last token of an answer that lies in the window as a whole, else 0 and 0."""
    inside = np.flatnonzero((offsets[:, 0] >= 0) & (offsets[:, 1] > offsets[:, 0]))
    if answer is None or len(inside) == 0:
        return 0, 0
    first, behind = answer
    if offsets[inside[0], 0] > first or offsets[inside[-1], 1] < behind:
        return 0, 0
    start = inside[offsets[inside, 1] > first][0]
    end = inside[offsets[inside, 0] < behind][-1]
    return int(start), int(end)


def best_span(
    starts: Sequence[NDArray[np.float32]],
    ends: Sequence[NDArray[np.float32]],
    offsets: Sequence[NDArray[np.int64]],
    *,
    most_tokens: int,
    threshold: float | None,
) -> tuple[int, int]:
    """First character of the answer and the one behind its last; (0, 0) is no answer.

    Args:
        starts: Of each window, `t` logits.
        ends: Of each window, `t` logits.
        offsets: Of each window, as in `Window`.
        most_tokens: Of an answer.
        threshold: No answer is given where its score, the least over the windows of the
            first token's, is larger than the best span's by more [Devlin2019]; None always
            gives one.
    """
    best, span, nothing = -np.inf, (0, 0), np.inf
    for start, end, places in zip(starts, ends, offsets, strict=True):
        nothing = min(nothing, float(start[0] + end[0]))
        inside = np.flatnonzero(places[:, 1] > np.maximum(places[:, 0], -1))
        firsts = inside[np.argsort(-start[inside], kind="stable")][:MOST_ENDS]
        lasts = inside[np.argsort(-end[inside], kind="stable")][:MOST_ENDS]
        lengths = lasts[None, :] - firsts[:, None]
        allowed = (lengths >= 0) & (lengths < most_tokens)
        scores = np.where(allowed, start[firsts][:, None] + end[lasts][None, :], -np.inf)
        if scores.size and scores.max() > best:
            best = float(scores.max())
            i, j = np.unravel_index(int(scores.argmax()), scores.shape)
            span = (int(places[firsts[i], 0]), int(places[lasts[j], 1]))
    if threshold is not None and nothing - best > threshold:
        return 0, 0
    return span


def answer_of(value: Any) -> tuple[tuple[str, ...], int | None]:
    """Texts of SQuAD's `answers`, and where the first one starts; () and None without one.

    Raises:
        TypeError: If it is no mapping with text and answer_start.
    """
    if value is None:
        return (), None
    if isinstance(value, list):
        value = {key: [item[key] for item in value] for key in ("text", "answer_start")}
    if not isinstance(value, Mapping) or not {"text", "answer_start"} <= value.keys():
        raise TypeError(f"a {type(value).__name__} without text and answer_start")
    texts, places = list(value["text"]), list(value["answer_start"])
    if len(texts) != len(places):
        raise TypeError(f"{len(texts)} texts for {len(places)} places")
    return tuple(texts), int(places[0]) if texts else None


@dataclass(frozen=True, slots=True)
class WindowCollator:
    """Windows of train as they are, `b x t`; those of examples together, `b x m x t`."""

    pad: int

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """One tensor per input."""
        if "windows" not in features[0]:
            return self._windows(features)
        most = max(len(f["windows"]) for f in features)
        nothing: dict[str, Any] = {
            name: [] if name not in PLACES else 0 for name in features[0]["windows"][0]
        }
        flat = [
            w
            for f in features
            for w in (*f["windows"], *[nothing] * (most - len(f["windows"])))
        ]
        batch = self._windows(flat)
        made = {
            name: value.unflatten(0, (len(features), most)) for name, value in batch.items()
        }
        return {**made, EXAMPLE: torch.tensor([f[EXAMPLE] for f in features])}

    def _windows(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        made = {}
        for name in rows[0]:
            fill = self.pad if name == "input_ids" else 0
            values = [
                row[name] if name in PLACES else row[name] + [fill] * (width - len(row[name]))
                for row in rows
            ]
            made[name] = torch.tensor(values)
        return made
