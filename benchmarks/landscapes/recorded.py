"""A landscape, split anew: mixtures of recorded outputs stand in for fused models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from numpy.typing import NDArray

from fusetune.evaluation.ensemble import Ensemble
from fusetune.objective import LOSS, Objective
from fusetune.optimization import simplex
from fusetune.optimization.prior import Prior
from fusetune.optimization.samplers import FusionSampler, ask_weights
from fusetune.tasks import metrics
from fusetune.tasks.confusion import probabilities
from fusetune.tasks.metrics import Metric

PRIMARY = {"cola": "matthews_correlation", "mrpc": "f1", "stsb": "pearson"}
"""By task; of others, accuracy."""
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """The members' logits, `k x n x c`, and labels, `n`, of some rows.

    Of a regression, c is 1 and the labels are numbers.
    """

    logits: NDArray[np.float32]
    labels: NDArray[Any]
    metric: Metric

    @property
    def regression(self) -> bool:
        """Whether labels are numbers."""
        return bool(self.logits.shape[2] == 1)

    def mixed(self, W: Array) -> NDArray[np.float32]:
        """Logits of n mixtures, `len(W) x n x c`."""
        return np.tensordot(np.asarray(W, dtype=np.float32), self.logits, 1)

    def losses(self, predictions: NDArray[np.float32]) -> Array:
        """Cross entropy, or squared error, of each row of each model, `b x n`."""
        z = predictions.astype(np.float64)
        if self.regression:
            return np.asarray((z[..., 0] - self.labels) ** 2)
        top = z.max(axis=2, keepdims=True)
        total = np.log(np.exp(z - top).sum(axis=2)) + top[..., 0]
        return np.asarray(total - z[:, np.arange(len(self.labels)), self.labels])

    # What `Ensemble` needs of a task.

    @property
    def objectives(self) -> tuple[Objective, Objective]:
        return LOSS, Objective(self.metric.name, "maximize")

    def score_many(
        self, predictions: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> dict[str, Array]:
        loss = self.losses(predictions).mean(axis=1)
        return {LOSS.name: loss, self.metric.name: self.metric.batched(predictions, labels)}

    def losses_of(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.regression:
            return (logits[:, 0] - labels) ** 2
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


class _Task:
    """A part as the task of an ensemble."""

    def __init__(self, part: Part) -> None:
        self.objectives, self.score_many = part.objectives, part.score_many
        self.losses = part.losses_of


def load(file: Path, members: int = 0) -> tuple[Part, int]:
    """All rows of a landscape, and how many of them are validation.

    Args:
        file: TASK.npz, or PROTOCOL-TASK-SEED-RUN.npz as the harness of the quality
            protocols writes it for every run, with the arrays of the recorded landscapes.
        members: The last so many alone; all if 0.
    """
    with np.load(file) as saved:
        logits = np.concatenate([saved["validation_logits"], saved["test_logits"]], axis=1)
        labels = np.concatenate([saved["validation_labels"], saved["test_labels"]])
        n = len(saved["validation_labels"])
    named = [PRIMARY[part] for part in file.stem.split("-") if part in PRIMARY]
    metric = metrics.find(named[0] if named else "accuracy")
    kind = np.float64 if logits.shape[2] == 1 else np.int64
    return Part(logits[-members:].astype(np.float32), labels.astype(kind), metric), n


def resplit(whole: Part, n: int, number: int) -> tuple[Part, Part]:
    """Validation, n rows, and test: the rows shuffled."""
    order = np.random.default_rng((41, number)).permutation(len(whole.labels))
    parts = [
        Part(whole.logits[:, rows], whole.labels[rows], whole.metric)
        for rows in (order[:n], order[n:])
    ]
    return parts[0], parts[1]


def random_candidates(k: int, n: int, number: int) -> Array:
    """Every member, their average, and random points of the simplex."""
    rng = np.random.default_rng(number)
    half = (n - k - 1) // 2
    return np.vstack(
        [
            np.eye(k),
            np.full((1, k), 1.0 / k),
            simplex.dirichlet(half, k, 0.3, rng),
            simplex.faces(half, k, rng),
        ]
    )


def searched_candidates(part: Part, n: int, number: int) -> Array:
    """What `mobo` evaluates, with a prior that is as imperfect as it is for real models.

    Here the mixture of logits is the fused model; the mixture of probabilities foretells it,
    of a regression that of exponentials.
    """
    k = len(part.logits)
    shares = np.exp(part.logits) if part.regression else probabilities(part.logits)
    shares = shares.astype(np.float32)
    lowest = Ensemble(part.logits, part.labels, _Task(part)).minimiser()  # type: ignore[arg-type]
    known = np.empty((0, k)) if lowest is None else lowest[None]

    def predict(W: Array) -> dict[str, Array]:
        mixed = np.tensordot(np.asarray(W, dtype=np.float32), shares, 1)
        return part.score_many(np.log(np.maximum(mixed, 1e-12)), part.labels)

    prior = Prior(predict, known)
    sampler = FusionSampler(
        k, part.objectives, seed=41 + number, prior=lambda _: prior, budget=n
    )
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
    found = []
    for _ in range(n):
        trial = study.ask()
        w = np.array(ask_weights(trial, k).values)
        values = part.score_many(part.mixed(w[None]), part.labels)
        study.tell(trial, [float(v[0]) for v in values.values()])
        found.append(w)
    return np.array(found)
