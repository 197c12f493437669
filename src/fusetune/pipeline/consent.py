"""Consent to code from outside of fusetune: given by a person, never by a file.

A recipe can name a metric of one's own, and a harness task can name Python beside its YAML. Who
was handed such files has to say `--allow-code` (in Python `allow_code=True`) once for a run
folder. What was consented to is remembered on the user's own machine, so that a run goes on
without the option: by the folder's path, the names, and the content of the code. It is never
kept in the run folder, which can be handed on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fusetune.errors import RecipeError
from fusetune.members.disk import write_json
from fusetune.recipe_sections import TaskSection
from fusetune.tasks import harness_code
from fusetune.tasks.own_metric import locate


@dataclass(frozen=True, slots=True)
class Code:
    """Code that a run would call.

    Attributes:
        what: For people: its name, and where it is.
        digest: Of the names and the content.
    """

    what: str
    digest: str


OWN_METRICS_UNKNOWN = ("sequence-classification", "regression", "multiple-choice")
"""Kinds of tasks whose metrics are fusetune's own alone."""


def code_of(section: TaskSection) -> list[Code]:
    """All code from outside of fusetune that a task would call; nothing is imported.

    Raises:
        RecipeError: If a metric is one that no consent covers; see `own_metric.locate`.
    """
    if section.kind == harness_code.KIND:
        folder = section.data if isinstance(section.data, str) else ""
        why = harness_code.reason(Path(folder)) if Path(folder).is_dir() else None
        return [] if why is None else [Code(why, harness_code.digest(Path(folder)))]
    if section.kind in OWN_METRICS_UNKNOWN:
        return []  # it refuses such a metric and lists those that it has; nothing is called
    sources = [locate(metric) for metric in section.metrics if ":" in metric]
    return [Code(f"{source.metric} of {source.place}", source.digest) for source in sources]


def require(section: TaskSection, folder: Path, *, allow_code: bool) -> list[str]:
    """Check that the user has consented to the code that a run calls, now or before.

    Args:
        section: The task of the recipe.
        folder: The run folder; a consent is remembered for it.
        allow_code: Whether the user consents now.

    Returns:
        What to say before the code is imported; nothing if there is none.

    Raises:
        RecipeError: If there is code and no consent to it.
    """
    code = code_of(section)
    if not code:
        return []
    memory = _memory(folder, code)
    listed = ", ".join(each.what for each in code)
    if allow_code:
        with contextlib.suppress(OSError):  # without a memory, the next start asks again
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(memory, {"folder": str(folder.resolve()), "code": listed})
    elif not memory.is_file():
        raise RecipeError(
            f"This run would call code from outside of fusetune: {listed}.",
            "Read it. If you trust it, consent with --allow-code, or in Python with "
            "allow_code=True.",
        )
    return [f"By your consent, code of the recipe's own is imported and called: {listed}."]


def _memory(folder: Path, code: Sequence[Code]) -> Path:
    """The file of the user's state folder whose existence is the consent."""
    parts = [str(folder.resolve()), *sorted(each.digest for each in code)]
    name = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
    given = Path(os.environ.get("XDG_STATE_HOME", ""))
    state = given if given.is_absolute() else Path.home() / ".local" / "state"
    return state / "fusetune" / "consent" / f"{name}.json"
