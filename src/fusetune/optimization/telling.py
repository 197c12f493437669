"""What became of an evaluation, and how it is told to the study."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna import Study, Trial, TrialPruned
from optuna.trial import FrozenTrial, TrialState

from fusetune.errors import FusetuneError, StageError, StorageError
from fusetune.executors.executor import Outcome
from fusetune.members.disk import is_disk_full
from fusetune.objective import Objective
from fusetune.optimization.storage import disk_full, quiet
from fusetune.redaction import shown

logger = logging.getLogger(__name__)

REASON = "reason"
"""User attribute of a failed trial: the error's type and message."""

LOST = "lost"
"""User attribute: why earlier attempts came to nothing, as workers that died; oldest first."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a completed evaluation says.

    Attributes:
        values: At least the study's objectives by name, natural sign.
        attributes: Whatever else is to be kept with the trial; JSON types.
    """

    values: Mapping[str, float]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What an evaluation says that stopped because `report` had told it to.

    Attributes:
        attributes: Whatever is to be kept with the trial; JSON types.
    """

    attributes: Mapping[str, Any] = field(default_factory=dict)


def tell(
    study: Study, trial: Trial, outcome: Outcome, objectives: Sequence[Objective]
) -> FrozenTrial:
    """Write what became of a trial into its study.

    Raises:
        FusetuneError: What no other trial would escape: every such error but a `StageError`,
            a full disk, and a storage that does not answer. The trial stays RUNNING.
        TypeError: If an evaluation returned something else than it may.
    """
    state, values, attributes = _verdict(outcome, objectives)
    if state == TrialState.FAIL:
        logger.warning("trial %d failed: %s", trial.number, attributes[REASON])
        logger.debug("trial %d", trial.number, exc_info=outcome.error)
    if outcome.lost:
        attributes = {**attributes, LOST: list(outcome.lost)}
    for key, value in attributes.items():
        trial.set_user_attr(key, value)
    with quiet():
        return study.tell(trial, values, state)


def _verdict(
    outcome: Outcome, objectives: Sequence[Objective]
) -> tuple[TrialState, list[float] | None, Mapping[str, Any]]:
    """State, values and attributes of a trial; raises what should end the loop."""
    error, result = outcome.error, outcome.value
    if isinstance(error, TrialPruned):
        return TrialState.PRUNED, None, {}
    if error is not None:
        if isinstance(error, StorageError) or (
            isinstance(error, FusetuneError) and not isinstance(error, StageError)
        ):
            raise error
        if is_disk_full(error):
            raise disk_full(error) from error
        return TrialState.FAIL, None, {REASON: shown(f"{type(error).__name__}: {error}")[:1000]}
    if isinstance(result, Pruned):
        return TrialState.PRUNED, None, result.attributes
    if not isinstance(result, Finished):
        raise TypeError(f"An evaluation must return Finished or Pruned; got {result!r}.")
    values = [float(result.values[o.name]) for o in objectives]
    bad = [
        f"{o.name} is {v}"
        for o, v in zip(objectives, values, strict=True)
        if not math.isfinite(v)
    ]
    if bad:
        return TrialState.FAIL, None, {**result.attributes, REASON: ", ".join(bad)}
    return TrialState.COMPLETE, values, result.attributes
