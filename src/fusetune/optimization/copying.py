"""Studies copied from one storage into another."""

from __future__ import annotations

from collections.abc import Callable

import optuna
from optuna import Study
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from fusetune.errors import RunError
from fusetune.optimization.storage import quiet, storing


def copy_studies(
    source: BaseStorage, target: BaseStorage, rename: Callable[[str], str | None]
) -> dict[str, int]:
    """Copy studies with all their trials, those that are RUNNING included.

    A copy that was cut off is made anew; a study that is there already is left as it is.

    Args:
        source: Stays as it is.
        target: Gets the studies.
        rename: Name there → name here, or None for a study that is not to be copied.

    Returns:
        Name in the target → number of trials.

    Raises:
        RunError: If the target has another study of that name.
        StageError: If it cannot be written to.
    """
    found: dict[str, int] = {}
    with storing(), quiet():
        there = set(optuna.get_all_study_names(target))
        for name in optuna.get_all_study_names(source):
            new = rename(name)
            if new is None:
                continue
            study = optuna.load_study(study_name=name, storage=source)
            if new in there:
                other = optuna.load_study(study_name=new, storage=target)
                if not _begins(study, other):
                    raise RunError(
                        f"The target has another study {new!r} already.",
                        "Copy into an empty storage, or delete that study with "
                        "`optuna delete-study`.",
                    )
                if _content(other) == _content(study):
                    found[new] = len(other.trials)
                    continue
                optuna.delete_study(study_name=new, storage=target)
            optuna.copy_study(
                from_study_name=name, from_storage=source, to_storage=target, to_study_name=new
            )
            found[new] = len(study.trials)
    return found


def _begins(whole: Study, part: Study) -> bool:
    """Whether one study is what the other was before: its finished trials are the same."""
    earlier, later = _content(part), _content(whole)
    return len(earlier) <= len(later) and all(
        now == then or not then[1].is_finished()
        for then, now in zip(earlier, later, strict=False)
    )


def _content(study: Study) -> list[tuple[int, TrialState, object, object]]:
    return [(t.number, t.state, t.values, t.params) for t in study.get_trials(deepcopy=False)]
