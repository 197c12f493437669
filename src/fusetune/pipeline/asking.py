"""What a user gives to fuse a finished run, and what has to be asked for.

Each function here returns its part of the recipe and adds a line to `asked` for everything
that it could not know.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets

from fusetune.members.discover import find_members
from fusetune.members.formats import PICKLES
from fusetune.members.member import Member
from fusetune.pipeline.finished import CLASSIFICATION, GENERATION, REGRESSION, SPANS, Finished
from fusetune.tasks import metrics as registry
from fusetune.tasks import text_metrics
from fusetune.tasks.classification import canonical
from fusetune.tasks.span_qa import METRICS as SPAN_METRICS

ONE_OR_TWO: dict[str, str] = {
    CLASSIFICATION: "one or two columns of texts, comma-separated",
    REGRESSION: "one or two columns of texts, comma-separated",
    SPANS: "the columns of question and context, comma-separated",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options of the command.

    Attributes:
        members: Folders or patterns.
        data: File, folder or hub id of the rows that choose.
        test: File of the rows that only report.
        text: Columns of the texts.
        label: Column of the labels.
        metrics: The first is the primary one.
        prompt: Jinja template, of models that generate.
        reference: Column of the reference text.
        labels: Names of the class ids, where the checkpoints have other ones than the data.
        model: Folder or hub id of tokenizer and base model.
        kind: Of the task, where the architecture does not tell.
        allow_pickle: Consent to pickled checkpoints.
        with_base: Whether the model that the training began with is a member too.
    """

    members: tuple[str, ...]
    data: str | None = None
    test: str | None = None
    text: tuple[str, ...] = ()
    label: str | None = None
    metrics: tuple[str, ...] = ()
    prompt: str | None = None
    reference: str | None = None
    labels: tuple[str, ...] = ()
    model: str | None = None
    kind: str | None = None
    allow_pickle: bool = False
    with_base: bool = False

    def command(self, members: Iterable[str], out: str) -> str:
        """The same command for other members, to be typed into a shell."""
        parts = ["fusetune", "fuse"]
        for member in members:
            parts += ["--members", member]
        for name in ("data", "test", "text", "label", "metrics", "prompt", "reference"):
            value = getattr(self, name)
            if value:
                parts += [f"--{name}", value if isinstance(value, str) else ",".join(value)]
        if self.labels:
            parts += ["--labels", ",".join(self.labels)]
        for name in ("model", "kind"):
            if getattr(self, name):
                parts += [f"--{name}", getattr(self, name)]
        flags = {"--allow-pickle": self.allow_pickle, "--with-base": self.with_base}
        parts += [flag for flag, given in flags.items() if given]
        return shlex.join([*parts, "--out", out])


def shortest(members: Sequence[Member]) -> list[str]:
    """A pattern that finds these members and no others, or their folders."""
    parents = {member.checkpoint.parent for member in members}
    if len(parents) == 1:
        pattern = str(parents.pop() / "checkpoint-*")
        wanted = {member.path.resolve() for member in members}
        if all(member.name.startswith("checkpoint-") for member in members) and wanted == {
            folder.resolve() for folder in find_members(pattern).folders
        }:
            return [pattern]
    return [str(member.path) for member in members]


def next_command(members: Sequence[Member], kind: str | None) -> str:
    """What to type to fuse these members, with words in capitals for what is not known."""
    pickled = any(file.suffix in PICKLES for member in members for file in member.files)
    given = Wanted((), data="DATA.jsonl", metrics=("METRIC",), allow_pickle=pickled)
    if kind == GENERATION:
        given = replace(given, prompt="{{ COLUMN }}", reference="COLUMN")
    else:
        given = replace(given, text=("COLUMN",), label="COLUMN")
    return given.command(shortest(members), out="FOLDER")


def inputs(
    wanted: Wanted, kind: str, columns: Sequence[str], asked: list[str]
) -> dict[str, Any]:
    """The recipe's text and label, or prompt and reference."""
    if kind not in ONE_OR_TWO:
        return _prompt(wanted, columns, asked)
    if wanted.prompt or wanted.reference:
        asked.append(f"--text and --label in the place of --prompt and --reference, for {kind}")
    text = wanted.text
    if not text and kind == SPANS and {"question", "context"} <= set(columns):
        text = ("question", "context")
    if not text:
        asked.append(f"--text: {ONE_OR_TWO[kind]}")
    label = wanted.label or ("answers" if kind == SPANS else "label")
    if columns and label not in columns:
        given = f", not {label!r}" if wanted.label else ""
        asked.append(f"--label: the column of the {_labels_are(kind)}{given}")
    if columns and (strange := [name for name in text if name not in columns]):
        asked.append(f"--text: {ONE_OR_TWO[kind]}, not {', '.join(map(repr, strange))}")
    return {"text": list(text), "label": label}


def _labels_are(kind: str) -> str:
    return {SPANS: "answers", REGRESSION: "numbers"}.get(kind, "labels")


def _prompt(wanted: Wanted, columns: Sequence[str], asked: list[str]) -> dict[str, Any]:
    example = " ".join(f"{{{{ {name} }}}}" for name in (wanted.text or columns[:1]))
    if wanted.prompt is None:
        asked.append(
            f"--prompt: the template that the model was trained with, as "
            f"{example or '{{ COLUMN }}'!r}"
        )
    reference = wanted.reference or wanted.label
    if reference is None or (columns and reference.split(".")[0] not in columns):
        given = f", not {reference!r}" if reference else ""
        asked.append(f"--reference: the column of the text that should come out{given}")
    return {"prompt": wanted.prompt, "reference": reference}


def metrics(wanted: Wanted, kind: str, asked: list[str]) -> list[str]:
    """The recipe's metrics."""
    known = [m.name for m in registry.METRICS.values() if kind in m.kinds]
    if kind in (GENERATION, SPANS):
        known = list(SPAN_METRICS if kind == SPANS else text_metrics.NAMES)
    if not wanted.metrics:
        listed = f", of {', '.join(known)}" if known else ""
        asked.append(f"--metrics: one or more, the first is the one that counts{listed}")
    return list(wanted.metrics)


def labels(
    wanted: Wanted,
    found: Finished,
    rows: datasets.Dataset,
    task: dict[str, Any],
    asked: list[str],
) -> list[str]:
    """The name of each class id, as the data call it.

    They are those of id2label, or of a `ClassLabel`, or whole numbers from 0: whichever the
    labels of the data are among.
    """
    if wanted.labels:
        return list(wanted.labels)
    column, n = task["label"], found.classes
    feature, values = rows.features[column], rows[column][:]
    if isinstance(feature, datasets.ClassLabel):
        there = set(feature.names)
        candidates = [found.names, tuple(feature.names)]
    else:
        odd = next((value for value in values if not _is_label(value)), None)
        if odd is not None:
            asked.append(f"--label: a column of labels; {column!r} has {odd!r}")
            return []
        there = {canonical(value) for value in values if value not in (None, "")}
        candidates = [found.names, tuple(map(str, range(n)))]
    for names in candidates:
        if len(names) == n and there <= set(names):
            return list(names)
    shown = ", ".join(sorted(there)[:20])
    asked.append(
        f"--labels: the names of the model's {n} class ids in their order, comma-separated; "
        f"{column!r} has {shown}"
    )
    return []


def _is_label(value: Any) -> bool:
    """Whether a value can be a label, or is missing; the task says where labels are missing."""
    if isinstance(value, float):
        return value.is_integer()
    return value is None or isinstance(value, str | int)
