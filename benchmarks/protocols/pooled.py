"""Gains over several tasks and seeds: one mean, its bootstrap interval and p-value.

The mean is taken over the seeds of each task, then over the tasks. Its bootstrap distribution:
seeds of a task that report on the same test rows are resampled together (their records hold
differences on the same samples, in the same order), everything else independently. It says
how far the gain depends on the test rows, given the trained models. How far it depends on the
training is another question, which `runs_p_value` answers: under the hypothesis of no gain,
each task and seed is as likely to show a gain as its opposite.

.. [Efron1993] B. Efron, R. Tibshirani. An Introduction to the Bootstrap. 1993, chapters 13, 16.
.. [Fisher1935] R. A. Fisher. The Design of Experiments. 1935, section 21 (sign changes).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.protocols.records import Record, encode

BASE, MARK = "finetune", "oracle"
SUBJECTS = ("bomf.default", "mobo.default")
"""fusetune's default: the whole two-stage run, or, where none is stored, its fusion alone."""

POINTS = 100.0
EXACT = 14  # runs up to which all changes of sign are counted
DRAWS = 20_000

Key = tuple[str, int]  # task and seed
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Gain:
    """A pooled gain over `finetune` on test, in points.

    Attributes:
        value: Mean over tasks of the means over seeds.
        low: Lower end of the 95 % interval.
        high: Upper end.
        p_value: Two-sided, from the bootstrap over test rows.
        runs_p_value: Two-sided, from changes of sign over tasks and seeds.
        runs: Number of tasks × seeds.
        tasks: The tasks, in order.
    """

    value: float
    low: float
    high: float
    p_value: float
    runs_p_value: float
    runs: int
    tasks: tuple[str, ...]


def by_method(records: Sequence[Record]) -> dict[str, dict[Key, Record]]:
    """Method → task and seed → record."""
    found: dict[str, dict[Key, Record]] = defaultdict(dict)
    for record in records:
        found[record.method][record.task, record.seed] = record
    return dict(found)


def gain(records: Mapping[Key, Record], seed: int = 0) -> Gain:
    """The pooled gain of one method.

    Args:
        records: Of one method, at least one.
        seed: Of the pairing of independent samples.
    """
    rng = np.random.default_rng(seed)
    tasks: dict[str, list[Record]] = defaultdict(list)
    for (task, _), record in sorted(records.items()):
        tasks[task].append(record)
    value = float(np.mean([np.mean([r.gain["value"] for r in rs]) for rs in tasks.values()]))
    sampled = np.mean([_task(found, rng) for found in tasks.values()], axis=0)
    low, high = np.percentile(sampled, [2.5, 97.5])
    side = min(np.count_nonzero(sampled <= 0.0), np.count_nonzero(sampled >= 0.0))
    shares = [r.gain["value"] / len(found) for found in tasks.values() for r in found]
    return Gain(
        POINTS * value,
        POINTS * float(low),
        POINTS * float(high),
        min(1.0, 2.0 * (side + 1) / (len(sampled) + 1)),
        _sign_p_value(np.array(shares), rng),
        len(records),
        tuple(tasks),
    )


def difference(
    records: Mapping[Key, Record], others: Mapping[Key, Record]
) -> dict[Key, Record]:
    """Records of the gain over those of another method or setting, where both have one.

    Both hold differences to one `finetune` on the same bootstrap samples, in the same order.
    """
    return {
        key: replace(
            record,
            gain={"value": record.gain["value"] - others[key].gain["value"]},
            samples=encode(record.differences() - others[key].differences()),
        )
        for key, record in records.items()
        if key in others
    }


def _task(records: Sequence[Record], rng: np.random.Generator) -> Array:
    """Mean difference of a task's seeds on each sample, `B`; samples in a random order."""
    groups: dict[str, list[Array]] = defaultdict(list)
    for record in records:
        groups[record.test_rows].append(record.differences())
    number = min(len(d) for found in groups.values() for d in found)
    total = np.zeros(number)
    for found in groups.values():
        total += rng.permutation(np.sum([d[:number] for d in found], axis=0))
    return np.asarray(total / len(records))


def _sign_p_value(shares: Array, rng: np.random.Generator) -> float:
    """How often changed signs give a sum as large: exact for few runs, else drawn."""
    n = len(shares)
    if n <= EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
        extra = 0
    else:
        signs, extra = rng.choice((1.0, -1.0), size=(DRAWS, n)), 1
    sums = np.abs(signs @ shares)
    reached = np.count_nonzero(sums >= np.abs(shares.sum()) * (1 - 1e-12))
    return float((reached + extra) / (len(signs) + extra))


def closed(records: Mapping[Key, Record], marks: Mapping[Key, Record]) -> float | None:
    """Share of the distance from `finetune` to `oracle`: mean gain over mean gain.

    Over the tasks and seeds that have both; None where there is none, or no distance.
    """
    common = [key for key in records if key in marks]
    if not common:
        return None
    weight = {task: sum(t == task for t, _ in common) for task, _ in common}

    def mean(found: Mapping[Key, Record]) -> float:
        return sum(found[k].gain["value"] / weight[k[0]] for k in common) / len(weight)

    distance = mean(marks)
    return mean(records) / distance if distance > 0.0 else None


def order(methods: Mapping[str, Mapping[Key, Record]], subject: str) -> list[str]:
    """All candidates by mean test gain, the best first; those equal to the subject after it.

    Candidates are methods and procedures that have every task and seed of the subject; the
    oracle is none, nor are other rules for the choice from the same evaluations, nor
    trajectories by themselves. Empty if the subject is not there.
    """
    keys = set(methods.get(subject, ()))
    candidates = {
        name: gain({k: found[k] for k in keys}).value
        for name, found in methods.items()
        if keys and (name == subject or (_is_candidate(name) and keys <= set(found)))
    }
    return sorted(candidates, key=lambda name: (-candidates[name], name != subject))


def _parts(records: Mapping[Key, Record], place: int) -> dict[str, list[float]]:
    """Gain and interval of each task (place 0 of the key), or of each seed (place 1)."""
    found = {}
    for part in sorted({key[place] for key in records}, key=str):
        g = gain({key: record for key, record in records.items() if key[place] == part})
        found[str(part)] = [g.value, g.low, g.high]
    return found


def _is_candidate(name: str) -> bool:
    return name != MARK and "." not in name and not name.startswith("trajectory-")


def subject_of(methods: Mapping[str, Mapping[Key, Record]], wanted: str = "") -> str:
    """The row that stands for fusetune: what is asked for, or the first that is stored."""
    return wanted or next((name for name in SUBJECTS if name in methods), SUBJECTS[0])


def summary(records: Sequence[Record], protocol: str, subject: str = "") -> dict[str, Any]:
    """What `--summary` prints; the numbers are None where nothing is stored."""
    kept = [r for r in records if r.protocol == protocol and not r.attempt]
    methods = by_method(kept)
    name = subject_of(methods, subject)
    result: dict[str, Any] = {
        "protocol": protocol,
        "subject": name,
        "gain_points": None,
        "gain_interval": None,
        "gain_p_value": None,
        "gain_p_value_runs": None,
        "share_closed": None,
        "rank": None,
        "candidates": None,
        "ahead": [],
        "by_task": {},
        "by_seed": {},
        "tasks": [],
        "runs": 0,
    }
    if name not in methods:
        return result
    found, ranked = gain(methods[name]), order(methods, name)
    place = ranked.index(name)
    return result | {
        "gain_points": found.value,
        "gain_interval": [found.low, found.high],
        "gain_p_value": found.p_value,
        "gain_p_value_runs": found.runs_p_value,
        "share_closed": closed(methods[name], methods.get(MARK, {})),
        "rank": place + 1,
        "candidates": len(ranked),
        "ahead": ranked[:place],
        "by_task": _parts(methods[name], 0),
        "by_seed": _parts(methods[name], 1),
        "tasks": list(found.tasks),
        "runs": found.runs,
    }
