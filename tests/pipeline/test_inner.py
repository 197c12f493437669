"""Inner searches that end early, on trials that are known in every w."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
import pytest
import torch
from numpy.typing import NDArray
from optuna.trial import FrozenTrial
from safetensors.torch import save_file
from torch import Tensor, nn

from fusetune.evaluation.evaluator import Evaluator
from fusetune.evaluation.scorer import Scorer
from fusetune.evaluation.store import EvaluationStore
from fusetune.members.average import ResidentAverage
from fusetune.members.pool import MemberPool
from fusetune.optimization.promise import Mark, Promise
from fusetune.pipeline import inner
from fusetune.pipeline.context import Context
from fusetune.pipeline.inner import FULL, INNER, MARK, STOPPED
from fusetune.tasks.classification import SequenceClassification
from fusetune.tasks.task import Encoded

K, BUDGET = 5, 10
CPU = torch.device("cpu")
Array = NDArray[Any]


class Table(nn.Module):
    """A model that is a table of margins; what it says of a row is sinh of the row's entry.

    So the mixture of the members' answers is close to the fused model's, and not the same.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.margins = nn.Parameter(torch.zeros(n))

    def forward(self, input_ids: Tensor) -> Any:
        margin = torch.sinh(self.margins[input_ids])
        return SimpleNamespace(logits=torch.stack([-margin, margin], dim=-1) / 2)


def collate(features: Any) -> dict[str, Tensor]:
    return {n: torch.tensor([f[n] for f in features]) for n in ("input_ids", "labels")}


def trial_of(folder: Path, margins: Array, labels: Array) -> tuple[MemberPool, Evaluator]:
    """The members of one trial, `k x n`, on the disk, and an evaluator of their averages."""
    for i, row in enumerate(margins):
        member = folder / f"step-{i + 1}"
        if not member.is_dir():
            member.mkdir(parents=True)
            tensor = torch.tensor(row, dtype=torch.float32)
            save_file({"margins": tensor}, member / "model.safetensors")
            (member / "config.json").write_text(json.dumps({"model_type": "table"}))
    features = tuple({"input_ids": i, "labels": int(y)} for i, y in enumerate(labels))
    task = SequenceClassification("t", "nowhere", text=["x"], label="y", metrics=["accuracy"])
    encoded = _Rows(features, labels.astype(np.int64), "f")
    scorer = Scorer(task, encoded, collate, CPU, token_budget=4096)
    model = Table(len(labels))
    pool = MemberPool.open(folder)
    store = EvaluationStore(None, "t")
    return pool, Evaluator(ResidentAverage(pool, model), model, scorer, task.objectives, store)


class _Rows(Encoded):
    @property
    def sizes(self) -> NDArray[np.int64]:
        return np.ones(len(self), dtype=np.int64)


def context(mode: str, seed: int) -> Context:
    recipe = SimpleNamespace(
        seed=seed,
        search=SimpleNamespace(inner=mode, fused_evaluations=BUDGET),
        fuse=SimpleNamespace(evaluations=90, prior=True),
    )
    made = SimpleNamespace(recipe=recipe, origin=None, method_options=lambda name: {})
    return cast(Context, made)


def outer(
    folder: Path, trials: list[Array], labels: Array, mode: str, seed: int = 0, kill: int = -1
) -> list[FrozenTrial]:
    """What the search does with each trial once it is trained; `kill`: begun twice."""
    study = optuna.create_study(direction="maximize")
    made = context(mode, seed)
    for number, margins in enumerate(trials):
        trial = study.ask()
        pool, evaluator = trial_of(folder / str(number), margins, labels)
        goal = inner.mark(trial, evaluator.primary) if mode == "auto" else None
        if number == kill:  # the same trial, taken up again
            trial = optuna.trial.Trial(study, trial._trial_id)
            goal = inner.mark(trial, evaluator.primary)
        result, told = inner.fuse_members(made, pool, evaluator, "mobo", goal)
        for name, value in {**told, "evaluations": result.evaluations}.items():
            trial.set_user_attr(name, value)
        study.tell(trial, result.values["accuracy"])
    return study.trials


def made_trials(skills: list[float], n: int = 150) -> tuple[list[Array], Array]:
    random = np.random.default_rng(7)
    labels = (random.random(n) < 0.5).astype(np.int64)
    sign = np.where(labels == 1, 1.0, -1.0)
    return [
        skill * sign + random.normal(size=n) * 0.8 + random.normal(size=(K, n)) * 0.7
        for skill in skills
    ], labels


def test_hopeless_trials_end_early_and_winners_never(tmp_path: Path) -> None:
    trials, labels = made_trials([0.5, 0.8, 0.1, 1.5, 0.5])
    full = outer(tmp_path, trials, labels, "full")
    auto = outer(tmp_path, trials, labels, "auto")
    assert [t.user_attrs.get(INNER) for t in full] == [None] * 5
    states = [t.user_attrs[INNER] for t in auto]
    assert states[:2] == [FULL, FULL]  # nothing is known yet of how far one comes
    assert states[2] == states[4] == STOPPED
    assert states[3] == FULL
    for a, b in zip(auto, full, strict=True):
        if a.user_attrs[INNER] == STOPPED:
            assert a.user_attrs["evaluations"] <= K + 2
            assert a.value <= b.value < max(t.value for t in auto[: a.number])
            assert a.user_attrs[MARK]["best"] == max(t.value for t in auto[: a.number])
        else:  # run in two parts, and the same as in one
            assert a.value == b.value
            assert a.user_attrs["evaluations"] == b.user_attrs["evaluations"]
    assert inner.stopped(auto) == states.count(STOPPED)
    assert f"in {states.count(STOPPED)} of 5 trials" in inner.note(auto)[0]
    assert inner.note(full) == []


def test_a_trial_that_is_begun_again_has_the_mark_that_it_had(tmp_path: Path) -> None:
    trials, labels = made_trials([0.5, 0.8, 0.1])
    once = outer(tmp_path, trials, labels, "auto")
    twice = outer(tmp_path, trials, labels, "auto", kill=2)
    for a, b in zip(once, twice, strict=True):
        assert (a.value, a.user_attrs) == (b.value, b.user_attrs)


@pytest.mark.parametrize("task", ["cola", "mrpc"])
def test_the_winner_is_that_of_full_searches_on_recorded_landscapes(
    shared: Path, tmp_path: Path, task: str
) -> None:
    with np.load(shared / f"data/landscapes/{task}.npz") as saved:
        logits, labels = saved["validation_logits"], saved["validation_labels"]
    margins = (logits[..., 1] - logits[..., 0]).astype(np.float64)
    random = np.random.default_rng(11)
    trials = []
    for noise in (1.0, 0.3, 2.0, 0.0):  # the worse λ, the less is left of the members
        spoilt = random.normal(size=margins.shape[1]) * noise * margins.std()
        members = margins[random.choice(len(margins), K, replace=False)]
        trials.append((members + spoilt) / 2)
    full = outer(tmp_path, trials, labels, "full")
    auto = outer(tmp_path, trials, labels, "auto")
    best = [int(np.argmax([t.value for t in found])) for found in (full, auto)]
    assert best[0] == best[1]
    assert auto[best[1]].value == full[best[0]].value
    assert [t.user_attrs[INNER] for t in auto[:3]] == [FULL, FULL, STOPPED]


def test_both_estimates_have_to_stay_below_the_best() -> None:
    ended = [(Promise(0.5, 0.6, 0.0), 0.55), (Promise(0.4, 0.5, 0.1), 0.52)]
    assert Mark.of([0.7], ended[:1]) is None
    mark = Mark.of([0.7, 0.52, 0.55], ended)
    assert mark is not None
    assert mark.best == 0.7
    assert mark.gain == pytest.approx(0.12)
    assert mark.surprise == pytest.approx(0.02)
    assert mark.out_of_reach(Promise(0.57, 0.6, 0.05))
    assert not mark.out_of_reach(Promise(0.59, 0.6, 0.0))  # the gain would do
    assert not mark.out_of_reach(Promise(0.5, 0.69, 0.0))  # the prior says more
    assert not mark.out_of_reach(Promise(0.5, 0.6, 0.09))  # the prior errs here
    # A search that found less than was seen is no reason to expect losses.
    assert Mark(0.5, -0.1, 0.0).out_of_reach(Promise(0.49, 0.4, 0.0))
    assert not Mark(0.5, -0.1, 0.0).out_of_reach(Promise(0.5, 0.4, 0.0))
