"""Errors that a user can cause: one clear message each, never a traceback."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

from fusetune.redaction import shown


class FusetuneError(Exception):
    """Base of every error that a user of fusetune can cause.

    The command line prints the message and exits with code 2. What it was told may come
    from anywhere, so that secrets and control characters are taken out of it.

    Args:
        message: The rule that was broken and what was given instead.
        hint: What to do next, one sentence.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = shown(message)
        self.hint = shown(hint)
        super().__init__(f"{self.message} {self.hint}".rstrip())


class RecipeError(FusetuneError):
    """The recipe, or an override of it, is not valid."""


class DataError(FusetuneError):
    """The data set cannot be read, or does not fit the task."""


class ModelError(FusetuneError):
    """The model or its tokenizer cannot be loaded."""


class MemberError(FusetuneError):
    """The checkpoints cannot be fused with one another."""


class RunError(FusetuneError):
    """The run folder cannot be used as asked."""


class EvaluateError(FusetuneError):
    """A function that the caller gave does not do what such a function has to do."""


class StageError(FusetuneError):
    """A stage of the run cannot go on (all trials failed, the disk is full, …)."""


class StorageError(StageError):
    """The storage of trials, or the disk, cannot be written to: no trial is at fault."""


class NoResultError(StageError):
    """A computation ran and led to nothing (the training diverged, all trials failed).

    With another seed or other hyper-parameters it may; a comparison goes on without it.
    """


def closest(name: str, known: Iterable[str]) -> str:
    """` (did you mean …?)` with the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def alike(name: str, known: Iterable[str]) -> str:
    """How a name differs from a known one that reads the same, in parentheses, or nothing."""
    for other in known:
        if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other):
            return (
                f" ({other!r} has the same letters, otherwise encoded: Unicode composes them "
                "in two ways, NFC and NFD)"
            )
        if _bare(name) == _bare(other):
            return f" ({other!r} differs in case, spaces or invisible characters alone)"
    return ""


def _bare(name: str) -> str:
    """Without case, white space and characters that cannot be seen."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return "".join(c for c in folded if unicodedata.category(c) not in ("Cf", "Zs", "Cc"))
