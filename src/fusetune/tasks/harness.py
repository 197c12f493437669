"""lm-evaluation-harness: its tasks and its models; nothing else imports it.

A document makes one or more requests of a model (the log-likelihood of an option, a text);
the harness computes metrics of each document from the responses, and the metric of a task
from those of its documents [Gao2024].

.. [Gao2024] L. Gao et al. The Language Model Evaluation Harness. Zenodo 2024,
   10.5281/zenodo.12608602.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import BaseLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment
from torch import nn
from transformers import PreTrainedTokenizerBase

from fusetune.errors import DataError, RecipeError
from fusetune.tasks.documents import Document


@dataclass(frozen=True, slots=True)
class Answered:
    """What a model did on a document.

    Attributes:
        loss: Negative log-likelihood of the right answer, in nats.
        metrics: Name → what the harness computes of this document, by filter.
    """

    loss: float
    metrics: Mapping[str, Mapping[str, Any]]


def load(names: Sequence[str], folder: str | None) -> dict[str, dict[str, Any]]:
    """Tasks, and all tasks of groups, by name: of each wanted name its tasks by theirs.

    Args:
        names: Of tasks, groups or tags.
        folder: With YAML files of one's own, which come first; None for those of the
            harness alone.

    Raises:
        RecipeError: If the harness is not installed, has no such task, or the task runs
            code, needs pictures, or is no task of a YAML file.
        DataError: If its data cannot be read.
    """
    task_manager = _imported("lm_eval.tasks").TaskManager
    if folder is not None:
        _sandbox_templates()
    with quiet():
        manager = task_manager(include_path=folder, include_defaults=folder is None)
        if folder is not None and not set(names) <= set(manager.all_tasks):
            manager = task_manager(include_path=folder, include_defaults=True)  # seconds
    known = set(manager.all_tasks)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            also = f", nor has {folder}" if folder is not None else ""
            raise RecipeError(
                f"lm-evaluation-harness has no task {name!r}{also}.",
                f"Near: {', '.join(near)}." if near else "See `lm-eval ls tasks`.",
            )
    return {name: _loaded(manager, name) for name in names}


def _sandbox_templates() -> None:
    """Let templates of tasks see their documents and nothing else.

    The harness renders them with all of Python within reach (`cycler.__init__.__globals__`),
    so that a YAML file without any `!function` could run a command.
    """
    utils = _imported("lm_eval.utils")
    sandbox = SandboxedEnvironment(
        loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True
    )
    sandbox.filters.update(utils.env.filters)
    utils.env = sandbox


def _loaded(manager: Any, name: str) -> dict[str, Any]:
    try:
        with quiet():
            found: dict[str, Any] = manager.load([name])["tasks"]
    except Exception as error:  # of the harness, of datasets, of the network
        line = " ".join(str(error).split())
        raise DataError(
            f"The task {name} cannot be loaded: {type(error).__name__}: {line}.",
            "Its data must be on this machine, or the Hub within reach.",
        ) from error
    for task in found.values():
        _require_plain(task)
    return found


def _require_plain(task: Any) -> None:
    configurable = _imported("lm_eval.api.task").ConfigurableTask
    why = ""
    if not isinstance(task, configurable):
        why = "is written in Python, not in YAML"
    elif getattr(task, "UNSAFE_CODE", False):
        why = "runs code that models write"
    elif getattr(task, "MULTIMODAL", False):
        why = "needs pictures or sound"
    if why:
        raise RecipeError(f"The task {task.task_name} {why}; such tasks are not supported.")


def evaluate(
    model: Any, tasks: Mapping[str, Any], chosen: Sequence[Document]
) -> list[Answered]:
    """What a model does on some documents, in their order.

    Args:
        model: Of `wrapped`.
        tasks: Name → task.
        chosen: Documents of these tasks.
    """
    # Requests keep their responses: those of earlier models must not stay.
    fresh = [[_fresh(r) for r in document.requests] for document in chosen]
    answers = [
        requests[d.answer] if isinstance(d.answer, int) else _fresh(d.answer)
        for d, requests in zip(chosen, fresh, strict=True)
    ]
    extra = [a for d, a in zip(chosen, answers, strict=True) if not isinstance(d.answer, int)]
    with quiet():
        _respond(model, [*(r for requests in fresh for r in requests), *extra])
    for name in dict.fromkeys(document.task for document in chosen):
        tasks[name]._instances = [
            r
            for d, requests in zip(chosen, fresh, strict=True)
            if d.task == name
            for r in requests
        ]
        tasks[name].apply_filters()
    return [
        Answered(_loss(answer), _metrics(tasks[document.task], document, requests))
        for document, requests, answer in zip(chosen, fresh, answers, strict=True)
    ]


def _fresh(request: Any) -> Any:
    return dataclasses.replace(request, resps=[], filtered_resps={})


def _respond(model: Any, requests: Sequence[Any]) -> None:
    for kind in dict.fromkeys(request.request_type for request in requests):
        asked = [r for r in requests if r.request_type == kind for _ in range(r.repeats or 1)]
        responses = getattr(model, kind)(asked, disable_tqdm=True)
        for request, response in zip(asked, responses, strict=True):
            request.resps.append(response)


def _loss(answer: Any) -> float:
    found = answer.resps[0]
    return -float(found[0] if isinstance(found, tuple) else found)


def _metrics(task: Any, document: Document, requests: Sequence[Any]) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {}
    for name in requests[0].filtered_resps:
        responses = [request.filtered_resps[name] for request in requests]
        for metric, value in task.process_results(document.content, responses).items():
            found.setdefault(metric, {})[name] = value
    return found


def wrapped(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    max_length: int | None,
) -> Any:
    """A model as the harness takes one; it computes in the precision of the autocast around."""
    kind = next(model.parameters()).device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    with quiet():
        return _imported("lm_eval.models.huggingface").HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=max_length,
            mixed_precision_dtype=dtype,
        )


def version() -> str:
    """Of the harness, which decides what its tasks ask."""
    return str(_imported("importlib.metadata").version("lm_eval"))


def _imported(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("lm_eval", "evaluate"):
            raise
        raise RecipeError(
            "Tasks of lm-evaluation-harness need its package, which is not installed.",
            "Run `pip install 'fusetune[lm-eval]'`.",
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without its log and its bars of progress."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
