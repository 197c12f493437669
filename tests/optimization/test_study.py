import errno
import math

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from fusetune.errors import DataError, RunError, StageError
from fusetune.executors.serial import SerialExecutor
from fusetune.objective import LOSS, Objective
from fusetune.optimization.recording import SUGGEST_SECONDS, Proposal, RecordingSampler
from fusetune.optimization.study import Finished, Loop, Pruned, open_storage

F1 = Objective("f1", "maximize")
TRIALS = 7


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


class FollowsHistory(RecordingSampler):
    """A proposal depends on the seed, the number and all that was told before."""

    def __init__(self, seed=0):
        super().__init__({"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}, seed)

    def propose(self, number, trials):
        told = [t.values[0] for t in trials if t.state == TrialState.COMPLETE]
        rng = np.random.default_rng((self.seed, number, int(1e6 * sum(told))))
        return Proposal({"x": rng.random(), "y": rng.random()}, "test")


def define(trial):
    return trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)


def evaluate(params, number, report):
    """Some trials fail, some are pruned, the others have a value."""
    x, y = params
    for step in range(4):
        if report(step, -x * (step + 1)):
            return Pruned({"note": f"stopped after step {step}"})
        if number == 2:
            raise ValueError("did not converge")
    return Finished({"loss": x + y}, {"note": "ran to the end", "y": y})


def run(loop, *, evaluate=evaluate, objectives=(LOSS,), trials=TRIALS, sampler=None):
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=1)
    return loop.run(
        "s", sampler or FollowsHistory(), define, evaluate,
        trials=trials, objectives=objectives, pruner=pruner,
    )  # fmt: skip


def attributes(trial):
    """All but the one that no two runs share."""
    return {k: v for k, v in trial.user_attrs.items() if k != SUGGEST_SECONDS}


def told(study):
    return [
        (t.number, t.state.name, t.values, t.params, attributes(t), t.intermediate_values)
        for t in study.trials
    ]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """The tests kill in Python, not the machine: what is written need not be synced."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def undisturbed():
    return told(run(Loop.in_memory()))


def journal_loop(path):
    return Loop(open_storage(path), SerialExecutor())


def test_the_example_has_trials_of_every_kind(undisturbed):
    states = [state for _, state, *_ in undisturbed]
    assert len(states) == TRIALS
    assert set(states) == {"COMPLETE", "PRUNED", "FAIL"}
    assert undisturbed[2][4] == {"origin": "test", "reason": "ValueError: did not converge"}
    pruned = next(t for t in undisturbed if t[1] == "PRUNED")
    assert pruned[4]["note"] == f"stopped after step {max(pruned[5])}"


def test_every_storage_tells_the_same(tmp_path, undisturbed):
    assert told(run(journal_loop(tmp_path / "journal"))) == undisturbed
    database = open_storage(f"sqlite:///{tmp_path}/trials.db")
    assert told(run(Loop(database, SerialExecutor()))) == undisturbed


@pytest.mark.parametrize("mode", ["before", "torn", "after"])
def test_killed_at_any_write_and_resumed_is_as_if_undisturbed(
    tmp_path, monkeypatch, mode, undisturbed
):
    append = JournalFileBackend.append_logs
    left = [math.inf]

    def interrupted(self, logs):
        left[0] -= 1
        if left[0] > 0:
            return append(self, logs)
        if mode == "after":
            append(self, logs)
        if mode == "torn":
            with open(self._file_path, "ab") as file:
                file.write(b'{"op_code":4,"worker_id":"0')
        raise Killed

    monkeypatch.setattr(JournalFileBackend, "append_logs", interrupted)
    run(journal_loop(tmp_path / "whole"))
    writes = (tmp_path / "whole").read_bytes().count(b"\n")
    assert writes > 10 * TRIALS
    for n in range(1, writes + 1):
        path = tmp_path / f"{mode}-{n}"
        left[0] = n
        with pytest.raises(Killed):
            run(journal_loop(path))
        left[0] = math.inf
        assert told(run(journal_loop(path))) == undisturbed, f"killed at write {n}"
        path.unlink()


@pytest.mark.parametrize("signal", [KeyboardInterrupt, Killed])
@pytest.mark.parametrize("number", range(TRIALS))
def test_interrupted_in_any_evaluation_and_resumed(tmp_path, number, signal, undisturbed):
    def interrupted(params, trial, report):
        if trial == number:
            report(0, -params[0])
            raise signal
        return evaluate(params, trial, report)

    with pytest.raises(signal):
        run(journal_loop(tmp_path / "journal"), evaluate=interrupted)
    loop = journal_loop(tmp_path / "journal")
    assert loop.find("s").trials[number].state == TrialState.RUNNING
    assert told(run(loop)) == undisturbed


def test_interrupted_again_and_again(tmp_path, undisturbed):
    for number in range(TRIALS):

        def interrupted(params, trial, report, number=number):
            if trial == number:
                raise KeyboardInterrupt
            return evaluate(params, trial, report)

        with pytest.raises(KeyboardInterrupt):
            run(journal_loop(tmp_path / "journal"), evaluate=interrupted)
    assert told(run(journal_loop(tmp_path / "journal"))) == undisturbed


def test_a_write_that_fails_is_reported_and_resumed(tmp_path, monkeypatch, undisturbed):
    def full(self, logs):
        raise OSError(errno.ENOSPC, "No space left on device")

    loop = journal_loop(tmp_path / "journal")
    run(loop, trials=3)
    with monkeypatch.context() as patch:
        patch.setattr(JournalFileBackend, "append_logs", full)
        with pytest.raises(StageError, match="disk is full"):
            run(loop)
    assert told(run(journal_loop(tmp_path / "journal"))) == undisturbed


def test_a_finished_study_is_left_as_it_is_and_a_longer_one_goes_on(undisturbed):
    loop = Loop.in_memory()
    assert told(run(loop, trials=4)) == undisturbed[:4]

    def never(params, number, report):
        raise AssertionError("nothing is left to evaluate")

    assert told(run(loop, trials=4, evaluate=never)) == undisturbed[:4]
    assert told(run(loop)) == undisturbed


def test_an_executor_with_room_for_more_is_kept_busy(undisturbed):
    class Backwards(SerialExecutor):
        capacity = 3

        def submit(self, number, evaluate):
            super().submit(number, evaluate)
            self._queue.rotate(1)
            waiting.append(len(self._queue))

    waiting = []
    study = run(Loop(optuna.storages.InMemoryStorage(), Backwards()))
    assert max(waiting) == 3
    assert [t.number for t in study.trials] == list(range(TRIALS))
    assert all(t.state.is_finished() for t in study.trials)


def test_on_trial_sees_every_trial_as_told(undisturbed):
    seen = []
    loop = Loop.in_memory()
    loop.on_trial = lambda study, trial: seen.append((trial.number, trial.state.name))
    run(loop)
    assert seen == [(number, state) for number, state, *_ in undisturbed]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_a_failure_with_a_reason(value):
    def diverges(params, number, report):
        return Finished({"loss": 0.5, "f1": value if number == 1 else 0.5}, {"seconds": 2.0})

    study = run(Loop.in_memory(), evaluate=diverges, objectives=(LOSS, F1), trials=3)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert study.trials[1].user_attrs["reason"] == f"f1 is {value}"
    assert study.trials[1].user_attrs["seconds"] == 2.0
    assert study.trials[0].values == [0.5, 0.5]
    assert study.metric_names == ["loss", "f1"]


def test_raising_trial_pruned_is_pruning():
    def prunes(params, number, report):
        if number:
            raise optuna.TrialPruned
        return Finished({"loss": 1.0})

    study = run(Loop.in_memory(), evaluate=prunes, trials=2)
    assert study.trials[1].state == TrialState.PRUNED


def test_intermediate_values_that_are_not_finite_are_left_out():
    def reports(params, number, report):
        assert not report(0, math.nan)
        assert not report(1, 0.5)
        return Finished({"loss": 1.0})

    study = run(Loop.in_memory(), evaluate=reports, trials=1)
    assert study.trials[0].intermediate_values == {1: 0.5}


def test_a_search_in_which_everything_fails_ends_early_with_the_commonest_reason():
    ran = []

    def fails(params, number, report):
        ran.append(number)
        raise RuntimeError("out of memory" if number else "first try")

    with pytest.raises(StageError, match=r"All 5 trials.*4 of them with: RuntimeError: out of"):
        run(Loop.in_memory(), evaluate=fails, trials=50)
    assert ran == [0, 1, 2, 3, 4]
    with pytest.raises(StageError, match="All 2 trials"):
        run(Loop.in_memory(), evaluate=fails, trials=2)


def test_a_mistake_of_the_user_is_no_failed_trial(undisturbed):
    def mistaken(params, number, report):
        if number == 4:
            raise DataError("The column is gone.")
        return evaluate(params, number, report)

    loop = Loop.in_memory()
    with pytest.raises(DataError, match="column is gone"):
        run(loop, evaluate=mistaken)
    assert told(run(loop)) == undisturbed


def test_a_full_disk_in_an_evaluation_ends_the_loop():
    def full(params, number, report):
        raise OSError(errno.ENOSPC, "No space left on device", "members/step-1")

    with pytest.raises(StageError, match=r"disk is full \(members/step-1\)"):
        run(Loop.in_memory(), evaluate=full)


def test_a_study_for_other_objectives_is_refused():
    loop = Loop.in_memory()
    run(loop, trials=1)
    for other in ((F1,), (LOSS, F1), (Objective("loss", "maximize"),)):
        with pytest.raises(RunError, match=r"optimises loss \(minimize\); asked for was"):
            run(loop, objectives=other)


def test_a_result_of_another_type_is_a_mistake_of_the_caller():
    with pytest.raises(TypeError, match=r"must return Finished or Pruned; got 0\.5"):
        run(Loop.in_memory(), evaluate=lambda params, number, report: 0.5)


def test_find_and_delete():
    loop = Loop.in_memory()
    assert loop.find("s") is None
    loop.delete("s")
    run(loop, trials=1)
    assert len(loop.find("s").trials) == 1
    loop.delete("s")
    assert loop.find("s") is None


def test_nothing_is_printed_and_nothing_is_warned_of(tmp_path, capfd, recwarn):
    before = optuna.logging.get_verbosity()
    run(journal_loop(tmp_path / "journal"))
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")
    assert [w for w in recwarn if "optuna" in str(w.filename)] == []
