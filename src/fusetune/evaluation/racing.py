"""Racing: a candidate is dropped when a part of the split shows that it is dominated.

The split is cut into growing parts, each with the label shares of the whole. After each part
the candidate is compared with the models of the current Pareto front on the same examples.
It goes on unless a paired bootstrap finds it non-dominated in at most a share `level` of the
samples; who goes on to the end has the values of the whole split [Maron1994, Birattari2002].

.. [Maron1994] O. Maron, A. W. Moore. Hoeffding races: accelerating model selection search for
   classification and function approximation. NIPS 1993.
.. [Birattari2002] M. Birattari et al. A racing algorithm for configuring metaheuristics.
   GECCO 2002.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fusetune.evaluation.assembly import Assembly
from fusetune.evaluation.batching import IndexedBatch, prepare
from fusetune.evaluation.bootstrap import Resample, bootstrap_counts
from fusetune.evaluation.evaluation import Evaluation
from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.scorer import Scorer
from fusetune.members.weights import FusionWeights
from fusetune.objective import Objective
from fusetune.tasks.task import Collate, Encoded, Outputs, Task

SHARES = (0.25, 0.5)  # of the split, after which a candidate may be dropped
LEVEL = 0.005  # per look: the share of samples in which a dropped candidate may enter
SAMPLES = 1000
STRATA = 10  # of a regression's labels, by size


@dataclass(frozen=True, slots=True)
class Dropped:
    """A candidate that the race ended early; it never enters a table.

    Attributes:
        values: Objective name → value on the examples seen, natural sign.
        examples: How many these are.
        chance: The share of bootstrap samples in which no rival dominated it.
        seconds: Wall time of averaging and evaluating.
    """

    values: Mapping[str, float]
    examples: int
    chance: float
    seconds: float


def stages(
    labels: NDArray[Any], shares: Sequence[float] = SHARES, seed: int = 0
) -> list[NDArray[np.int64]]:
    """Rows of each stage: disjoint, together the whole split, each with all labels' shares.

    Args:
        labels: `n`; class ids, or numbers, which are cut into strata by size.
        shares: Of the split, seen after each stage but the last; increasing, in (0, 1).
        seed: Of the order within each label.

    Raises:
        ValueError: If `shares` do not increase in (0, 1).
    """
    ends = np.array([*shares, 1.0])
    if len(shares) == 0 or ends[0] <= 0.0 or (np.diff(ends) <= 0.0).any():
        raise ValueError(f"shares must increase in (0, 1), got {list(shares)}")
    n = len(labels)
    random = np.random.default_rng(seed)
    shuffled = random.permutation(n)
    strata = _strata(labels)[shuffled]
    # Rows by stratum, then dealt evenly: the place within the stratum decides the stage.
    place = np.empty(n)
    for stratum in np.unique(strata):
        here = np.flatnonzero(strata == stratum)
        place[here] = (np.arange(len(here)) + random.random()) / len(here)
    stage = np.searchsorted(ends, np.minimum(place, 1.0), side="left")
    return [np.sort(shuffled[stage == i]) for i in range(len(ends))]


def sampled(
    outputs: Outputs,
    labels: NDArray[Any],
    resample: Resample,
    objectives: Sequence[Objective],
    counts: NDArray[np.float64],
) -> NDArray[np.float64]:
    """`B x j`; every objective of a model on every bootstrap sample, larger is better.

    Args:
        outputs: Outcomes on m examples.
        labels: `m`.
        resample: `Task.resample`.
        objectives: The j objectives.
        counts: `B x m`; the same for all models that are compared, so that what makes
            examples hard cancels.
    """
    values = resample(outputs, labels, counts)
    return np.stack([o.sign * values[o.name] for o in objectives], axis=1)


def entry_chance(
    candidate: NDArray[np.float64], rivals: Sequence[NDArray[np.float64]]
) -> float:
    """The share of bootstrap samples in which no rival dominates the candidate.

    Args:
        candidate: `B x j`, as `sampled` gives it.
        rivals: Of the models on the front, `B x j` each, on the same samples.
    """
    if not np.isfinite(candidate).all():
        return 1.0  # what is wrong shows on the whole split, and is reported there
    free = np.ones(len(candidate), dtype=bool)
    for rival in rivals:
        dominated = (rival >= candidate).all(axis=1) & (rival > candidate).any(axis=1)
        free &= np.logical_not(dominated)
    return float(free.mean())


class StagedScorer(Scorer):
    """A scorer whose batches go through the stages of a race, one after the other.

    A model that is scored without a race goes through the same batches: its values are, bit
    for bit, those that it has at the end of a race.

    Args:
        task: As in `Scorer`, like those that follow it.
        encoded: The tokenised split.
        collate: The task's padding.
        device: Where the models are.
        dtype: For autocast.
        shares: As in `stages`.
        level: Highest chance with which a candidate is dropped.
        seed: Of stages and bootstrap samples.
    """

    def __init__(
        self,
        task: Task,
        encoded: Encoded,
        collate: Collate,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        shares: Sequence[float] = SHARES,
        level: float = LEVEL,
        seed: int = 0,
    ) -> None:
        super().__init__(task, encoded, collate, device, dtype)
        self.level = level
        self.seed = seed
        self.stages: list[tuple[NDArray[np.int64], list[IndexedBatch]]] = []
        for rows in stages(encoded.labels, shares, seed):
            features = tuple(encoded.features[int(i)] for i in rows)
            part = replace(encoded, features=features, labels=encoded.labels[rows])
            batches = prepare(part, collate, device) if len(rows) else []
            self.stages.append((rows, [replace(b, rows=rows[b.rows]) for b in batches]))
        self.batches = [batch for _, batches in self.stages for batch in batches]
        self.fingerprint += f" {tuple(shares)} {seed}"
        self._counts: dict[int, NDArray[np.float64]] = {}
        self._rivals: dict[tuple[int, int], tuple[Outputs, NDArray[np.float64]]] = {}

    def race(
        self, model: nn.Module, rivals: Sequence[Outputs], objectives: Sequence[Objective]
    ) -> Evaluation | Dropped:
        """Evaluate a model as far as the race lets it come.

        Args:
            model: In evaluation mode.
            rivals: Whole-split outcomes of the models on the front; without any, nothing
                is dropped.
            objectives: What a model has to be good in to enter the front.
        """
        started = time.perf_counter()
        labels, outputs = self.encoded.labels, Assembly(len(self.encoded))
        seen = np.empty(0, dtype=np.int64)
        for stage, (rows, batches) in enumerate(self.stages):
            for places, part in self._parts(model, batches):
                outputs.add(places, part)
            seen = np.sort(np.concatenate([seen, rows]))
            if stage == len(self.stages) - 1 or not rivals or len(seen) < 2:
                continue
            found = outputs.at(seen)
            chance = entry_chance(
                self._sampled(found, stage, seen, objectives),
                [self._of_rival(rival, stage, seen, objectives) for rival in rivals],
            )
            if chance <= self.level:
                values = self.task.score(found, labels[seen])
                return Dropped(values, len(seen), chance, time.perf_counter() - started)
        whole = outputs.at(seen)
        values = self.task.score(whole, labels)
        return Evaluation(values, whole, time.perf_counter() - started)

    def _sampled(
        self,
        part: Outputs,
        stage: int,
        seen: NDArray[np.int64],
        objectives: Sequence[Objective],
    ) -> NDArray[np.float64]:
        if stage not in self._counts:
            self._counts[stage] = bootstrap_counts(len(seen), SAMPLES, self.seed + stage)
        labels = self.encoded.labels[seen]
        return sampled(part, labels, self.task.resample, objectives, self._counts[stage])

    def _of_rival(
        self,
        rival: Outputs,
        stage: int,
        seen: NDArray[np.int64],
        objectives: Sequence[Objective],
    ) -> NDArray[np.float64]:
        """Computed once: a model stays on the front for many candidates."""
        key = (id(rival), stage)
        if key not in self._rivals or self._rivals[key][0] is not rival:
            self._rivals[key] = (rival, self._sampled(rival.at(seen), stage, seen, objectives))
        return self._rivals[key][1]


def race(
    evaluator: Evaluator, weights: FusionWeights, rivals: Sequence[FusionWeights]
) -> Evaluation | Dropped:
    """Evaluate θ̄(w) in a race against the models of the current front.

    An evaluator whose score is no `StagedScorer` evaluates on the whole split, as always.

    Args:
        evaluator: f(w); counts and keeps only what got the whole split.
        weights: The candidate.
        rivals: On the front; they were evaluated before.
    """
    scorer = evaluator.score
    known = evaluator.store.get(weights)
    if known is not None or not isinstance(scorer, StagedScorer):
        return evaluator(weights)
    outcomes = [evaluator(w).outputs for w in rivals]
    started = time.perf_counter()
    evaluator.average.into_model(weights)
    evaluator.model.eval()
    result = scorer.race(
        evaluator.model, [o for o in outcomes if o is not None], evaluator.objectives
    )
    seconds = time.perf_counter() - started
    if isinstance(result, Dropped):
        return replace(result, seconds=seconds)
    evaluator.store.put(weights, replace(result, seconds=seconds))
    return evaluator(weights)


def _strata(labels: NDArray[Any]) -> NDArray[np.int64]:
    """`n`; the class, or the tenth of the sorted numbers that a label falls in."""
    if labels.dtype.kind in "iub":
        return np.unique(labels, return_inverse=True)[1]
    ranks = np.argsort(np.argsort(labels, kind="stable"), kind="stable")
    return np.asarray(ranks * min(STRATA, len(labels)) // max(1, len(labels)))
