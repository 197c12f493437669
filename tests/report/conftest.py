"""A synthetic record of a run: made from a formula and a seed, in the shape of a real one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fusetune.objective import LOSS, Objective
from fusetune.report.content import EvaluationRow, MemberRow, RunRecord, TrialRow

F1 = Objective("f1", "maximize")
ACCURACY = Objective("accuracy", "maximize")
OBJECTIVES = (LOSS, F1, ACCURACY)
K = 15


def values_of(w: np.ndarray, noise: np.ndarray) -> dict[str, float]:
    """A smooth bowl around a point inside the simplex, plus noise."""
    best = np.linspace(0.2, 1.8, K) / K
    distance = float(((w - best) ** 2).sum())
    f1 = 0.892 - 0.035 * distance**0.5 + 0.006 * noise[1]
    return {
        "loss": 0.338 + 0.16 * distance + 0.05 * float(w[-1]) + 0.003 * noise[0],
        "f1": f1,
        "accuracy": f1 - 0.045 + 0.004 * noise[2],
    }


def on_front(rows: list[dict[str, float]], i: int) -> bool:
    return not any(
        r["loss"] <= rows[i]["loss"] and r["f1"] >= rows[i]["f1"] and r != rows[i] for r in rows
    )


def make_results(**changes: Any) -> dict[str, Any]:
    """results.json of the synthetic run."""

    def entry(
        validation: float, test: float, loss: float, n: int, s: float, w: list[float]
    ) -> dict[str, Any]:
        def interval(value: float, half: float) -> dict[str, float]:
            return {"value": value, "low": value - half, "high": value + half * 0.9}

        def split(f1: float, loss: float) -> dict[str, dict[str, float]]:
            return {
                "loss": interval(loss, 0.034),
                "f1": interval(f1, 0.021),
                "accuracy": interval(f1 - 0.043, 0.03),
            }

        return {
            "validation": split(validation, loss),
            "test": split(test, loss + 0.021),
            "evaluations": n,
            "seconds": s,
            "weights": w,
        }

    uniform = [1 / K] * K
    single = [1.0 if i == 11 else 0.0 for i in range(K)]
    greedy = [0.25 if i in (6, 9, 11, 13) else 0.0 for i in range(K)]
    raw = [0.0, 0.0, 0.02, 0.0, 0.08, 0.0, 0.11, 0.03, 0.0, 0.19, 0.07, 0.31, 0.0, 0.15, 0.04]
    results = {
        "fusetune": "0.1.0",
        "task": "mrpc (synthetic)",
        "seed": 41,
        "primary": "f1",
        "members": K,
        "chosen": "mobo",
        "methods": {
            "finetune": entry(0.8731, 0.8655, 0.452, 15, 5.6, single),
            "swa": entry(0.8824, 0.8741, 0.352, 1, 0.4, uniform),
            "greedy": entry(0.8862, 0.8722, 0.371, 29, 10.9, greedy),
            "mobo": entry(0.8941, 0.8803, 0.361, 90, 96.3, raw),
        },
        "comparison": {
            "finetune": {"difference": 0.0148, "low": 0.0021, "high": 0.0279, "p_value": 0.02},
            "swa": {"difference": 0.0062, "low": -0.0048, "high": 0.0170, "p_value": 0.27},
            "greedy": {"difference": 0.0081, "low": -0.0031, "high": 0.0188, "p_value": 0.16},
        },
    }
    return results | changes


def make_record(**changes: Any) -> RunRecord:
    """The synthetic record; keyword arguments replace its fields."""
    rng = np.random.default_rng(0)
    eye, uniform = np.eye(K), np.full(K, 1 / K)
    points = [*eye, uniform, *rng.dirichlet(np.full(K, 0.6), size=90 - K - 1)]
    rows = [values_of(w, rng.normal(size=3)) for w in points]
    evaluations = tuple(
        EvaluationRow(
            tuple(float(x) for x in w),
            rows[i],
            "finetune" if i < K else "swa" if i == K else "mobo",
            on_front(rows, i),
        )
        for i, w in enumerate(points)
    )
    members = tuple(
        MemberRow(f"step-{115 * (i + 11):06d}", rows[i], 115 * (i + 11), (i + 11) / 1.3)
        for i in range(K)
    )
    fields: dict[str, Any] = {
        "results": make_results(),
        "objectives": OBJECTIVES,
        "members": members,
        "evaluations": evaluations,
        "hypervolume": tuple(0.0502 * (1 - math.exp(-(i + 3) / 14)) for i in range(90)),
        "trials": make_trials(),
        "trial_objective": F1,
        "cost": {
            "search": {"seconds": 412.0, "bytes": 0},
            "train": {"seconds": 301.5, "bytes": 1_362_000_000},
            "load": {"seconds": 1.2, "bytes": 1_362_000_000},
            "average": {"seconds": 4.9, "bytes": 99_400_000_000},
            "evaluate": {"seconds": 36.1, "bytes": 0},
            "suggest": {"seconds": 55.4, "bytes": 0},
            "write": {"seconds": 0.6, "bytes": 90_800_000},
        },
        "notes": (
            "12 of 408 validation texts also stand in train; their scores are optimistic.",
            "1 of 10 search trials failed: the loss became NaN at step 140.",
        ),
        "model": "minilm",
        "fused": "runs/mrpc/fused",
        "usage": (
            "from transformers import pipeline\n\n"
            'classify = pipeline("text-classification", model="runs/mrpc/fused")\n'
            'print(classify({"text": "He came.", "text_pair": "He arrived."}))'
        ),
        "recipe": "seed: 41\ntask:\n  kind: sequence-classification\nfuse:\n  sampler: mobo\n",
        "environment": {
            "python": "3.11.9",
            "device": "cpu, 2 threads",
            "versions": {"torch": "2.9.0", "transformers": "5.0.0"},
            "data": "sha256 0123abcd",
        },
        "created": "2026-01-01 12:00 UTC",
    }
    return RunRecord(**(fields | changes))


def make_trials() -> tuple[TrialRow, ...]:
    rng = np.random.default_rng(1)
    trials = []
    for number in range(10):
        rate = float(10 ** rng.uniform(-6, -4))
        decay = float(rng.uniform(0, 0.1))
        batch = int(rng.choice([8, 16, 32]))
        params = {
            "learning_rate": rate,
            "weight_decay": decay,
            "per_device_train_batch_size": batch,
        }
        value = 0.86 - 0.03 * (math.log10(rate) + 4.6) ** 2 + 0.004 * float(rng.normal())
        seconds = 30.0 + 10.0 * float(rng.random())
        if number == 4:
            trials.append(
                TrialRow(4, "FAIL", params, None, 12.0, "loss became NaN at step 140")
            )
        elif number in (5, 7):
            reason = "below the median at epoch 2"
            trials.append(TrialRow(number, "PRUNED", params, value - 0.03, 14.0, reason))
        else:
            trials.append(TrialRow(number, "COMPLETE", params, value, seconds))
    return tuple(trials)


@pytest.fixture
def results() -> Callable[..., dict[str, Any]]:
    """Builds results.json; keyword arguments replace its keys."""
    return make_results


@pytest.fixture
def record() -> Callable[..., RunRecord]:
    """Builds the record; keyword arguments replace its fields."""
    return make_record
