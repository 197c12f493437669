"""Large studies: seconds to open one, to suggest, to tell; and the report of a long search.

    python benchmarks/load.py --json [--trials 10000] [--storage postgresql://…]

One search over three hyper-parameters with so many finished trials, in a journal, in SQLite
and in the database of `--storage`, if one is given. `open` reads it all in a new process's
storage; `suggest` and `tell` are the medians of a few trials after that, in one loop. `fusion`
is the next w of five members after so many evaluations. `report` is the page of a run with
2,000 search trials and as many evaluations: seconds and megabytes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__" and not __package__:  # as a script: the project's root comes first
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, create_trial
from sqlalchemy import func, select

from fusetune.executors.serial import SerialExecutor
from fusetune.objective import LOSS, Objective
from fusetune.optimization.hyperparameter_sampler import HyperparameterSampler
from fusetune.optimization.recording import SUGGEST_SECONDS, SUGGESTION
from fusetune.optimization.samplers import FusionSampler, weight_names
from fusetune.optimization.storage import database, open_storage, quiet
from fusetune.optimization.study import Finished, Loop

SPACE: Mapping[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-6, 1e-3, log=True),
    "weight_decay": FloatDistribution(0.0, 0.1),
    "per_device_train_batch_size": IntDistribution(4, 64),
}
F1 = Objective("f1", "maximize")
FINITE = models.TrialValueModel.TrialValueType.FINITE
MORE = 4  # trials that are made after opening
MEMBERS = 5


def search_trials(count: int, seed: int = 0) -> list[FrozenTrial]:
    """Finished trials of a made-up search, with all that fusetune keeps of one."""
    rng = np.random.default_rng(seed)
    found = []
    for u in rng.random((count, 3)):
        params = {
            "learning_rate": float(10 ** (3 * u[0] - 6)),
            "weight_decay": float(u[1] / 10),
            "per_device_train_batch_size": int(4 + 60 * u[2]),
        }
        value = float(((u - 0.4) ** 2).sum() + 0.01 * rng.normal())
        found.append(
            create_trial(
                params=params,
                distributions=dict(SPACE),
                value=value,
                user_attrs={"seconds": 1.0, "origin": "model", SUGGEST_SECONDS: 0.1},
                system_attrs={SUGGESTION: params},
            )
        )
    return found


def fusion_trials(count: int, seed: int = 0) -> list[FrozenTrial]:
    """Finished evaluations of weightings of five members, the members' own among them."""
    rng = np.random.default_rng(seed)
    names = weight_names(MEMBERS)
    space: dict[str, BaseDistribution] = {name: FloatDistribution(0.0, 1.0) for name in names}
    starts = [np.eye(MEMBERS), np.full((1, MEMBERS), 1 / MEMBERS)]
    points = np.vstack([*starts, rng.dirichlet(np.ones(MEMBERS), count)])[:count]
    best = np.linspace(0.05, 0.35, MEMBERS)
    noise = 0.002 * rng.normal(size=(count, 2))
    return [
        create_trial(
            params=dict(zip(names, map(float, w), strict=True)),
            distributions=space,
            values=[
                float(((w - best) ** 2).sum() + a),
                float(0.9 - abs(w - best).sum() / 9 + b),
            ],
        )
        for w, (a, b) in zip(points, noise, strict=True)
    ]


def build(location: str, trials: list[FrozenTrial]) -> float:
    """Store a study; seconds. Building need not wait for the disk after each trial."""
    began = time.perf_counter()
    with mock.patch("os.fsync", return_value=None), quiet():
        storage = open_storage(location)
        study = optuna.create_study(study_name="search", storage=storage)
        study.set_metric_names([LOSS.name])
        if "://" in location:
            insert(database(storage), study._study_id, trials)
        else:
            study.add_trials(trials)
    return time.perf_counter() - began


def insert(storage: RDBStorage, study: int, trials: list[FrozenTrial]) -> None:
    """The rows of many trials at once; one after the other they take minutes to hours."""
    rows: dict[Any, list[dict[str, Any]]] = {}  # by the class of their table
    with storage.scoped_session() as session, session.begin():
        last = session.query(func.max(models.TrialModel.trial_id)).scalar() or 0
        for number, trial in enumerate(trials):
            key = {"trial_id": last + 1 + number}
            times = {"datetime_start": trial.datetime_start,
                     "datetime_complete": trial.datetime_complete}  # fmt: skip
            rows.setdefault(models.TrialModel, []).append(
                {**key, "number": number, "study_id": study, "state": trial.state, **times}
            )
            value = {"objective": 0, "value": trial.value, "value_type": FINITE}
            rows.setdefault(models.TrialValueModel, []).append({**key, **value})
            for name, kind in trial.distributions.items():
                number_of = kind.to_internal_repr(trial.params[name])
                rows.setdefault(models.TrialParamModel, []).append(
                    {**key, "param_name": name, "param_value": number_of,
                     "distribution_json": distribution_to_json(kind)}
                )  # fmt: skip
            kinds: tuple[tuple[Any, dict[str, Any]], ...] = (
                (models.TrialUserAttributeModel, trial.user_attrs),
                (models.TrialSystemAttributeModel, trial.system_attrs),
            )
            for model, attributes in kinds:
                rows.setdefault(model, []).extend(
                    {**key, "key": name, "value_json": json.dumps(content)}
                    for name, content in attributes.items()
                )
        for model, made in rows.items():
            session.execute(model.__table__.insert(), made)
        if storage.engine.dialect.name == "postgresql":  # its own count knows nothing of these
            place = func.pg_get_serial_sequence("trials", "trial_id")
            session.execute(select(func.setval(place, last + len(trials))))


def stored(location: str, count: int) -> dict[str, float]:
    """Open a stored study and go on with it."""
    began = time.perf_counter()
    loop = Loop(open_storage(location), SerialExecutor())
    study = loop.find("search")
    assert study is not None
    assert len(study.get_trials(deepcopy=False)) == count
    opened = time.perf_counter() - began
    marks: list[float] = []
    began = time.perf_counter()
    sampler = HyperparameterSampler(SPACE, LOSS, seed=1)

    def define(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("learning_rate", 1e-6, 1e-3, log=True)
        trial.suggest_float("weight_decay", 0.0, 0.1)
        trial.suggest_int("per_device_train_batch_size", 4, 64)
        return rate

    def evaluate(rate: float, number: int, report: Any) -> Finished:
        marks.append(time.perf_counter())
        return Finished({"loss": rate}, {"seconds": 0.0})

    def on_trial(study: optuna.Study, trial: FrozenTrial) -> None:
        marks.append(time.perf_counter())

    loop.on_trial = on_trial
    study = loop.run(
        "search", sampler, define, evaluate, trials=count + MORE, objectives=(LOSS,)
    )
    new = study.get_trials(deepcopy=False)[-MORE:]
    proposing = statistics.median(t.user_attrs[SUGGEST_SECONDS] for t in new)
    asked = [b - a for a, b in zip([began, *marks[1::2]], marks[::2], strict=False)]
    return {
        "open": opened,
        "suggest": statistics.median(asked),
        "of_it_model": proposing,
        "tell": statistics.median(b - a for a, b in zip(marks[::2], marks[1::2], strict=True)),
    }


def fusion(count: int) -> float:
    """Seconds of the next w after so many evaluations; the median of three."""
    trials = fusion_trials(count)
    sampler = FusionSampler(MEMBERS, (LOSS, F1), seed=1)
    seconds = []
    for number in range(count, count + 3):
        began = time.perf_counter()
        assert sampler.propose(number, trials).origin in ("model", "greedy")
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def report(count: int, place: Path) -> dict[str, float]:
    """The page of a run with so many trials and evaluations."""
    from fusetune.report.content import EvaluationRow, MemberRow, RunRecord, TrialRow
    from fusetune.report.html import write

    search, evaluated = search_trials(count), fusion_trials(count)
    members = tuple(
        MemberRow(f"step-{i:06d}", {"loss": 0.5, "f1": 0.8}, i) for i in range(MEMBERS)
    )
    values = {"loss": {"value": 0.4}, "f1": {"value": 0.85}}
    entry = {"validation": values, "test": values, "evaluations": count, "seconds": 1.0}
    methods = {"mobo": {**entry, "weights": [0.2] * MEMBERS}}
    content = {"fusetune": "0", "task": "load", "seed": 1, "primary": "f1", "chosen": "mobo"}
    record = RunRecord(
        results={**content, "members": MEMBERS, "methods": methods},
        objectives=(LOSS, F1),
        members=members,
        evaluations=tuple(
            EvaluationRow(tuple(t.params.values()), {"loss": t.values[0], "f1": t.values[1]})
            for t in evaluated
        ),
        hypervolume=tuple(float(i) for i in range(count)),
        trials=tuple(
            TrialRow(i, "COMPLETE", t.params, t.value, 1.0) for i, t in enumerate(search)
        ),
    )  # fmt: skip
    began = time.perf_counter()
    write(record, place / "report.html")
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "megabytes": (place / "report.html").stat().st_size / 1e6}


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--report-trials", type=int, default=2_000)
    parser.add_argument("--storage", help="The URL of a database, for a third one.")
    parser.add_argument(
        "--only", help="Comma-separated: journal, sqlite, database, fusion, report."
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    only = set(options.only.split(",")) if options.only else None
    found: dict[str, Any] = {"trials": options.trials, "report_trials": options.report_trials}
    with tempfile.TemporaryDirectory(prefix="fusetune-load-") as folder:
        place = Path(folder)
        places = {"journal": str(place / "trials.journal"), "sqlite": f"sqlite:///{place}/t.db"}
        if options.storage:
            places["database"] = options.storage
        trials = search_trials(options.trials)
        for name, location in places.items():
            if only is None or name in only:
                built = build(location, trials)
                found[name] = {**stored(location, options.trials), "build": built}
        if only is None or "fusion" in only:
            found["fusion"] = fusion(options.trials)
        if only is None or "report" in only:
            found["report"] = report(options.report_trials, place)
    if options.json:
        print(json.dumps(found))
    else:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
