"""Scoring with a model that `torch.compile` has compiled, where that works.

Compiled code reads the parameters where they lie, so that one compilation serves every θ̄(w):
averages change the parameters in place. Batches of all sizes share it as well; a batch of one
example has code of its own.
"""

from __future__ import annotations

import copy
import logging
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from fusetune.evaluation.scorer import Scorer

TOLERANCE = 1e-3
"""Absolute and relative, by which float32 predictions may differ from those not compiled."""

LOW_TOLERANCE = 5e-2
"""The same under autocast, whose own rounding is of that size."""

S = TypeVar("S", bound=Scorer)

logger = logging.getLogger(__name__)


def compiled_scorer(scorer: S, model: nn.Module, compiled: nn.Module) -> tuple[S, str]:
    """The scorer, with `compiled` in the place of `model`; as it was where that does not work.

    The whole split is run once in both ways. Everything that may have to be compiled is
    compiled then, in the order of the batches, and what fails does so before a result depends
    on it. Evaluations by compiled code are told from others by the scorer's fingerprint.

    Args:
        scorer: Not changed.
        model: What is evaluated; its parameters as they stand serve to compare.
        compiled: `torch.compile(model, dynamic=True)`, the same object for all splits.

    Returns:
        A scorer, and why it does not compile; "" if it does.
    """
    made = copy.copy(scorer)
    made.instead = {model: compiled}
    made.fingerprint = f"{scorer.fingerprint} compiled"
    plain = scorer(model).outputs
    try:
        fast = made(model).outputs
    except Exception as error:  # of the compiler, which has no one base for its errors
        logger.info("torch.compile", exc_info=error)
        return scorer, _reason(error)
    assert plain is not None
    assert fast is not None  # a Scorer always gives them
    tolerance = TOLERANCE if scorer.dtype is torch.float32 else LOW_TOLERANCE
    a, b = plain.predictions, fast.predictions
    if not np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True):
        largest = float(np.nanmax(np.abs(a - b)))
        return scorer, f"its predictions differ by up to {largest:.2g} from the usual ones"
    return made, ""


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"[:300]  # who raised, and what
