import sys

import numpy as np
import pytest
from optuna.trial import TrialState, create_trial

from fusetune.errors import RecipeError
from fusetune.executors.serial import SerialExecutor
from fusetune.objective import LOSS, Objective
from fusetune.optimization import RIVALS
from fusetune.optimization.recording import SUGGEST_SECONDS
from fusetune.optimization.rivals import RivalSampler, ask_box, require
from fusetune.optimization.study import Finished, Loop, open_storage

F1 = Objective("f1", "maximize")
K = 3
TARGET = np.array([0.6, 0.3, 0.1])


def values(weights):
    w = np.array(weights.values)
    f1 = 1.0 - ((w - TARGET) ** 2).sum()
    return {"loss": float(((w - 1 / K) ** 2).sum()), "f1": float(f1)}


def evaluate(weights, number, report):
    return Finished(values(weights), {"weights": list(weights.values)})


def search(name, loop, trials, evaluate=evaluate):
    return loop.run(
        "fuse",
        RivalSampler(name, K, [LOSS, F1], seed=7),
        lambda trial: ask_box(trial, K),
        evaluate,
        trials=trials,
        objectives=[LOSS, F1],
    )


def history(study):
    hidden = (SUGGEST_SECONDS,)
    return [
        (t.params, t.values, {k: v for k, v in t.user_attrs.items() if k not in hidden})
        for t in study.trials
    ]


@pytest.mark.parametrize("name", RIVALS)
def test_resumed_is_as_if_undisturbed(name, tmp_path):
    """Stopped twice: before the sampler has a model, and while it has one."""
    if name == "cmaes":
        pytest.importorskip("cmaes")
    trials = 13 if name == "gp" else 26

    def interrupted(at):
        def run(weights, number, report):
            if number == at:
                raise KeyboardInterrupt
            return evaluate(weights, number, report)

        return run

    for at in (4, trials - 1):
        loop = Loop(open_storage(tmp_path / "journal"), SerialExecutor())
        with pytest.raises(KeyboardInterrupt):
            search(name, loop, trials, interrupted(at))
    loop = Loop(open_storage(tmp_path / "journal"), SerialExecutor())
    resumed = history(search(name, loop, trials))
    assert resumed == history(search(name, Loop.in_memory(), trials))
    assert {attributes["origin"] for _, _, attributes in resumed} == {name}


@pytest.mark.parametrize("name", ["tpe", "nsga2", "cmaes"])
def test_what_was_seen_leads_on(name):
    """The second half is nearer to the optimum than the first, which plain draws are not."""
    if name == "cmaes":
        pytest.importorskip("cmaes")
    f1 = np.array([t.values[1] for t in search(name, Loop.in_memory(), 60).trials])
    assert f1[30:].mean() > f1[:30].mean() + 0.02


def test_random_draws_from_the_simplex_itself():
    study = search("random", Loop.in_memory(), 200)
    W = np.array([t.user_attrs["weights"] for t in study.trials])
    np.testing.assert_allclose([sum(t.params.values()) for t in study.trials], 1.0)
    np.testing.assert_allclose(W.mean(axis=0), 1 / K, atol=0.05)
    assert (W > 0.8).any()  # a box divided by its sum hardly reaches the corners


def test_a_failed_trial_is_passed_over():
    def fails(weights, number, report):
        if number % 4 == 0:
            raise RuntimeError("broken")
        return evaluate(weights, number, report)

    for name in ("tpe", "nsga2"):
        states = [t.state.name for t in search(name, Loop.in_memory(), 24, fails).trials]
        assert states == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"] * 6


@pytest.mark.parametrize("name", ["tpe", "nsga2", "cmaes", "gp"])
def test_trials_under_evaluation_do_no_harm(name):
    if name == "cmaes":
        pytest.importorskip("cmaes")
    trials = search(name, Loop.in_memory(), 11).trials
    running = create_trial(
        state=TrialState.RUNNING,
        params=trials[0].params,
        distributions=trials[0].distributions,
    )
    running.number = 11
    proposal = RivalSampler(name, K, [LOSS, F1], seed=7).propose(12, [*trials, running])
    assert proposal.origin == name
    assert all(0.0 <= value <= 1.0 for value in proposal.params.values())


def test_the_zero_point_of_the_box_is_the_uniform_average():
    class Trial:
        def suggest_float(self, name, low, high):
            return 0.0

    assert ask_box(Trial(), K).values == (1 / K,) * K


def test_unknown_or_not_installed(monkeypatch):
    with pytest.raises(RecipeError, match=r"the rivals are random, tpe, .*; got 'grid'"):
        RivalSampler("grid", K, [LOSS], seed=0)
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(RecipeError, match=r"needs the package.*'fusetune\[cmaes\]'"):
        require("cmaes")
