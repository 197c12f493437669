"""Documents of lm-evaluation-harness: what is asked of a model, and which of them choose."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusetune.errors import DataError

FEWSHOT_SEED = 1234  # the harness's own default: the same examples before every question
LIKELIHOOD = "loglikelihood"


@dataclass(frozen=True, slots=True)
class Document:
    """One example of a task.

    Attributes:
        task: Name of its task.
        content: As the harness holds it.
        requests: Of the harness, in their order.
        answer: What a loss is computed from: a request for the log-likelihood of the right
            answer, or the place of it among `requests`.
        prompt: What the model reads, for a look at leakage and for fingerprints.
        target: The right answer's text.
    """

    task: str
    content: Any
    requests: tuple[Any, ...]
    answer: Any
    prompt: str
    target: str

    @property
    def asked(self) -> str:
        """Everything that is asked of a model, as text."""
        extra = [] if isinstance(self.answer, int) else [self.answer]
        return repr([(r.request_type, r.arguments) for r in (*self.requests, *extra)])


def divided(
    task: Any, seed: int, limit: int | None
) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """The documents that choose and those that report; no document is in both.

    A task with labelled validation and test documents has them as they are. Of others, what
    the harness evaluates is shuffled and halved.

    Args:
        task: Of `load`.
        seed: Of the shuffle.
        limit: At most so many of each, drawn at random; all if None.
    """
    rng = np.random.default_rng([seed, *task.task_name.encode()])
    test = _built(task)
    config = task.config
    if config.test_split and config.validation_split:
        kept, config.test_split = config.test_split, None
        try:
            validation = _built(task)
        finally:
            config.test_split = kept
        order, others = rng.permutation(len(validation)), rng.permutation(len(test))
    else:
        validation, both = test, rng.permutation(len(test))
        order, others = both[: len(both) // 2], both[len(both) // 2 :]
    if not len(order) or not len(others):
        raise DataError(f"The task {task.task_name} has too few documents to be split in two.")
    return (
        tuple(validation[i] for i in np.sort(order[:limit])),
        tuple(test[i] for i in np.sort(others[:limit])),
    )


def _built(task: Any) -> list[Document]:
    task.set_fewshot_seed(FEWSHOT_SEED)
    task.build_all_requests(limit=None, rank=0, world_size=1)
    by_document: dict[int, list[Any]] = {}
    for request in task.instances:
        by_document.setdefault(request.doc_id, []).append(request)
    return [_document(task, requests) for requests in by_document.values()]


def _document(task: Any, requests: list[Any]) -> Document:
    requests.sort(key=lambda request: request.idx)
    first = requests[0]
    doc, kind = first.doc, task.OUTPUT_TYPE
    answer: Any = 0
    target = str(first.arguments[-1])
    if kind == "multiple_choice":
        answer = _place(task, doc)
        target = str(requests[answer].arguments[-1])
    elif kind == "generate_until":
        text = task.doc_to_target(doc)
        if task.config.doc_to_choice is not None:
            text = task.doc_to_choice(doc)[text]
        target = str(text[0] if isinstance(text, list) else text)
        continuation = f"{task.config.target_delimiter}{target}"
        answer = dataclasses.replace(
            first, request_type=LIKELIHOOD, arguments=(first.arguments[0], continuation)
        )
    prompt = str(first.arguments[0])
    return Document(task.task_name, doc, tuple(requests), answer, prompt, target)


def _place(task: Any, doc: Any) -> int:
    """The place of the right option, of several the first."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    gold = gold[0] if isinstance(gold, list) else gold
    choices = task.doc_to_choice(doc)
    place = choices.index(gold) if isinstance(gold, str) and gold in choices else gold
    if not isinstance(place, int) or not 0 <= place < len(choices):
        raise DataError(
            f"A document of {task.task_name} has no right option: {gold!r} of {choices}."
        )
    return place
