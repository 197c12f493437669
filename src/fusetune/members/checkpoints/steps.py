"""At which step of its training a checkpoint was taken: by its Trainer, else by its name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from fusetune.files.record import regular
from fusetune.members.manifest import Manifest

STATE = "trainer_state.json"

# What stands before a number that counts, in the order in which they are believed.
_STEP = re.compile(r"(.*step|steps|ba|updates?)")
_IN_EPOCH = re.compile(r"(iters?|iterations?|it|batch|batches)")  # may begin anew in each epoch
_CHECKPOINT = re.compile(r"(.*checkpoint|ckpt|chkpt)")
_EPOCH = re.compile(r"(epochs?|ep|e)")
_NEUTRAL = re.compile(
    r"(models?|weights?|members?|adapter|lora|net|network|state|params|snapshot|saved?)"
)
_METRIC = re.compile(
    r"(acc|accuracy|auc|bleu|cer|dice|em|error|f|iou|loss|lr|mae|map|mcc|metric|mse|perplexity"
    r"|ppl|precision|recall|reward|rmse|rouge|score|wer)"
)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T_ -][0-9]{2}([-:.]?[0-9]{2}){1,2})?")
_TOKEN = re.compile(r"[A-Za-z]+|[0-9]+(?:[.,][0-9]+)*(?:[eE][-+]?[0-9]+)?|[^A-Za-z0-9]+")


def step_of(path: Path, manifest: Manifest | None = None) -> int | None:
    """The training step of a checkpoint; None if nothing says it.

    Args:
        path: A folder, or a file of weights.
        manifest: member.json, which is asked last.
    """
    place = checkpoint_of(path)
    step = _of_trainer(place)
    if step is None:
        step = _number(place.stem if place.is_file() else place.name)
    return manifest.step if step is None and manifest is not None else step


def checkpoint_of(path: Path) -> Path:
    """The path that names a checkpoint: its own, or the folder around it that has the number.

    As checkpoint-500/sft of an adapter with a name, or step-500/weights.pt.
    """
    named = _number(path.stem if path.is_file() else path.name) is not None
    if named or (path / STATE).is_file():
        return path
    around = path.absolute().parent
    if (around / STATE).is_file() or _number(around.name, neutral=False) is not None:
        return around
    return path


def is_numbered(name: str) -> bool:
    """Whether a folder's name is that of a checkpoint, with a step or an epoch."""
    return _number(name, neutral=False) is not None


def _of_trainer(place: Path) -> int | None:
    file = place / STATE
    try:
        regular(file)
        step = json.loads(file.read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return step if type(step) is int and 0 <= step < 2**63 else None


def _number(name: str, *, neutral: bool = True) -> int | None:
    """The number in a checkpoint's name that counts steps, else checkpoints, else epochs.

    Numbers of metrics, versions, sizes and dates count nothing. A name whose iterations may
    begin anew in each epoch has none: such names are in order as they are.
    """
    if re.fullmatch(r"[0-9]{1,18}", name):
        return int(name) if neutral else None
    counted: dict[re.Pattern[str], int] = {}
    best = False
    for words, number, unit in _numbers(_DATE.sub("", name)):
        best = best or "best" in words
        if unit and _kind(unit) is not None:
            words = [unit]
        if words and not any(_METRIC.fullmatch(word) for word in words):
            kind = _kind(words[-1])
            if kind is not None:
                counted[kind] = number
    if _EPOCH in counted and _IN_EPOCH in counted and _STEP not in counted:
        return None
    kinds = [_STEP, _IN_EPOCH, _CHECKPOINT, _EPOCH]
    kinds += [_NEUTRAL] if neutral and not best else []
    return next((counted[kind] for kind in kinds if kind in counted), None)


def _kind(word: str) -> re.Pattern[str] | None:
    kinds = (_STEP, _IN_EPOCH, _CHECKPOINT, _EPOCH, _NEUTRAL)
    return next((kind for kind in kinds if kind.fullmatch(word)), None)


def _numbers(name: str) -> Iterator[tuple[list[str], int, str]]:
    """Each whole number in a name: the words before it, and the word right after it or none.

    The words are those after the number before; none if that stands right before this one.
    """
    tokens = _TOKEN.findall(name.lower())
    words: list[str] = []
    for place, token in enumerate(tokens):
        after = tokens[place + 1] if place + 1 < len(tokens) else ""
        if token.isalpha():
            words.append(token)
        elif token[0].isdigit():
            unit = after if after.isalpha() else ""
            if token.isdigit() and len(token) <= 18 and (not unit or _kind(unit) is not None):
                yield words, int(token), unit
            words = []
