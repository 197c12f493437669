"""Several processes at one study, in SQLite here and in PostgreSQL where it is installed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError

from benchmarks import postgresql
from fusetune.errors import RunError, StageError
from fusetune.executors.serial import SerialExecutor
from fusetune.objective import LOSS
from fusetune.optimization import claims
from fusetune.optimization import storage as storage_module
from fusetune.optimization.copying import copy_studies
from fusetune.optimization.database import PatientDatabase
from fusetune.optimization.recording import Proposal, RecordingSampler
from fusetune.optimization.storage import PASSWORD, open_storage
from fusetune.optimization.study import Finished, Loop

DRIVER = """
import sys
sys.path[:0] = [{here!r}, {root!r}]
from test_claims import run
run({url!r}, trials={trials}, seconds=0.1, stop_at={stop_at})
"""


class Numbered(RecordingSampler):
    def __init__(self) -> None:
        super().__init__({"x": FloatDistribution(0, 100)}, seed=0)

    def propose(self, number, trials):
        return Proposal({"x": number + 0.5}, "test")


def run(url, *, trials, seconds=0.0, stop_at=-1, identity="same", silence=3):
    """One driver; it hangs in trial `stop_at`, to be killed there."""

    def evaluate(x, number, report):
        time.sleep(1000.0 if number == stop_at else seconds)
        return Finished({"loss": x}, {"process": os.getpid()})

    storage = open_storage(url, heartbeats=True, beat=1, silence=silence)
    loop = Loop(storage, SerialExecutor(), prefix="team/", shared=identity)
    return loop.run(
        "search", Numbered(), lambda trial: trial.suggest_float("x", 0, 100), evaluate,
        trials=trials, objectives=[LOSS],
    )  # fmt: skip


def drivers(url, count, **options) -> list[subprocess.Popen]:
    script = DRIVER.format(
        here=str(Path(__file__).parent),
        root=str(Path(__file__).parents[2]),
        url=url,
        **{"stop_at": -1, **options},
    )
    return [subprocess.Popen([sys.executable, "-c", script]) for _ in range(count)]


@pytest.fixture(scope="session")
def running() -> Iterator[postgresql.Server]:
    """A PostgreSQL server of our own."""
    pytest.importorskip("psycopg", reason="needs the extra postgresql")
    if why := postgresql.why_not():
        pytest.skip(why)
    with postgresql.Server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/trials.db"
    running = request.getfixturevalue("running")
    return running.database(f"db{abs(hash(tmp_path)) % 10**9}")


def names(url: str) -> list[str]:
    """Of the studies that have been begun."""
    return optuna.get_all_study_names(open_storage(url))


def heartbeats(url: str) -> int:
    """Trials that ever had one: a trial without belongs to anybody, at once."""
    with claims.database(open_storage(url)).engine.connect() as connection:
        return connection.execute(text("SELECT count(*) FROM trial_heartbeats")).scalar_one()


def test_drivers_side_by_side_do_each_trial_once(url: str) -> None:
    others = drivers(url, 2, trials=12)
    begun = time.monotonic()
    while not names(url) and time.monotonic() - begun < 60:  # starting takes them seconds
        time.sleep(0.02)
    study = run(url, trials=12, seconds=0.1)
    assert [process.wait(timeout=60) for process in others] == [0, 0]
    trials = study.get_trials()
    assert [t.number for t in trials] == list(range(12))
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    assert [t.value for t in trials] == [n + 0.5 for n in range(12)]
    assert len({t.user_attrs["process"] for t in trials}) >= 2


def test_tables_that_another_driver_makes_meanwhile_are_taken(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drivers that start together find an empty database; all but one fail at its tables."""
    run(url, trials=1)
    refusals = [
        IntegrityError("INSERT INTO version", {}, Exception("UNIQUE constraint failed")),
        OperationalError("CREATE TABLE", {}, Exception("table studies already exists")),
    ]

    class Late(PatientDatabase):
        def __init__(self, *args, **settings):
            if refusals:
                raise refusals.pop()
            super().__init__(*args, **settings)

    monkeypatch.setattr(storage_module, "PatientDatabase", Late)
    assert run(url, trials=2).trials[1].value == 1.5
    refusals.append(OperationalError("SELECT", {}, Exception("disk I/O error")))
    with pytest.raises(RunError, match="disk I/O error"):
        run(url, trials=2)


def test_the_trial_of_a_driver_that_was_killed_is_taken_over(url: str) -> None:
    run(url, trials=2)
    (other,) = drivers(url, 1, trials=4, stop_at=2)
    deadline = time.monotonic() + 60
    while heartbeats(url) < 3 and time.monotonic() < deadline:  # its own, not only its trial
        time.sleep(0.1)
    began = time.monotonic()
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    trials = run(url, trials=4).get_trials()
    assert time.monotonic() - began > 1.5  # not before its heart had stopped for a while
    assert [t.number for t in trials] == [0, 1, 2, 3]
    assert [t.value for t in trials] == [0.5, 1.5, 2.5, 3.5]
    assert trials[2].user_attrs["process"] == os.getpid()


def test_a_trial_without_a_heartbeat_is_free(url: str) -> None:
    run(url, trials=1)
    plain = optuna.load_study(study_name="team/search", storage=open_storage(url))
    plain.ask()  # of a process that died before its first heartbeat
    trials = run(url, trials=3).get_trials()
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 3
    assert trials[1].params == {"x": 1.5}


def test_who_was_taken_for_dead_tells_nothing(url: str) -> None:
    study = run(url, trials=1)
    slow = claims.Shared(study)
    trial = slow.next(2)
    assert trial is not None
    assert slow.next(2) is None  # there are two
    study.tell(trial.number, 9.0)  # by who took it over

    def tell() -> optuna.trial.FrozenTrial:
        trial.set_user_attr("late", True)
        raise AssertionError("a finished trial cannot be written to")

    assert slow.tell(trial, tell) is None
    assert study.trials[1].value == 9.0


def test_another_recipe_is_refused(url: str) -> None:
    run(url, trials=1)
    with pytest.raises(RunError, match="begun with another recipe"):
        run(url, trials=2, identity="other")


def test_a_journal_cannot_be_shared(tmp_path: Path) -> None:
    loop = Loop(open_storage(tmp_path / "journal"), SerialExecutor(), shared="x")
    with pytest.raises(RunError, match="in a database only"):
        loop.run("s", Numbered(), lambda t: 0, lambda *a: None, trials=1, objectives=[LOSS])


def test_a_password_may_come_from_the_environment(
    running: postgresql.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = running.url.replace(":pa55word", "")
    monkeypatch.setenv(PASSWORD, "pa55word")
    assert run(running.database("bare"), trials=1)
    open_storage(f"{bare}/bare")
    monkeypatch.setenv(PASSWORD, "wr0ng")
    with pytest.raises(RunError, match="password authentication failed") as info:
        open_storage(f"{bare}/bare")
    assert "wr0ng" not in str(info.value)


def test_a_user_without_rights_gets_a_clear_error(running: postgresql.Server) -> None:
    import psycopg

    url = running.database("guarded")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
    guest = url.replace("owner:pa55word", "guest:guest")
    with pytest.raises(RunError, match="permission denied"):
        open_storage(guest)
    open_storage(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO guest")
    with pytest.raises(StageError, match=r"cannot be written to: .*permission denied"):
        run(guest, trials=1)


def test_studies_move_between_all_storages(url: str, tmp_path: Path) -> None:
    run(url, trials=3)
    study = optuna.load_study(study_name="team/search", storage=open_storage(url))
    study.ask()
    journal = open_storage(tmp_path / "journal")
    assert copy_studies(open_storage(url), journal, str) == {"team/search": 4}
    back = open_storage(f"sqlite:///{tmp_path}/back.db")
    assert copy_studies(journal, back, lambda name: f"new/{name}") == {"new/team/search": 4}
    copied = optuna.load_study(study_name="new/team/search", storage=back)
    assert [t.state.name for t in copied.trials] == ["COMPLETE"] * 3 + ["RUNNING"]
    for old, new in zip(study.trials, copied.trials, strict=True):
        assert (old.params, old.values, old.user_attrs) == (
            new.params,
            new.values,
            new.user_attrs,
        )
        assert old.system_attrs == new.system_attrs
    # Cut off and begun again; there already; another one of that name.
    run(url, trials=5)
    assert copy_studies(open_storage(url), journal, str) == {"team/search": 5}
    assert copy_studies(open_storage(url), journal, str) == {"team/search": 5}
    with pytest.raises(RunError, match="another study"):
        copy_studies(back, journal, lambda name: "team/search")
    assert copy_studies(back, journal, lambda name: None) == {}


def history(study: optuna.Study) -> list[tuple[object, ...]]:
    return [(t.number, t.state, t.values, t.params) for t in study.get_trials()]


@pytest.mark.parametrize(("mode", "shared"), [("fast", None), ("immediate", "same")])
def test_a_server_that_is_restarted_in_mid_run(
    running: postgresql.Server, mode: str, shared: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """It is away before a suggestion, during an evaluation and when a trial is told."""

    def go(name: str, disturb: Callable[[int], None]) -> optuna.Study:
        def evaluate(x, number, report):
            disturb(number)
            return Finished({"loss": x}, {"n": number})

        url = running.database(f"{name}_{mode}_{shared or 'alone'}".lower())
        storage = open_storage(url, heartbeats=shared is not None, beat=1, silence=3)
        loop = Loop(storage, SerialExecutor(), shared=shared)
        return loop.run(
            "search", Numbered(), lambda trial: trial.suggest_float("x", 0, 100), evaluate,
            trials=6, objectives=[LOSS],
        )  # fmt: skip

    again: list[threading.Timer] = []

    def restart(number: int) -> None:
        if number == 2:
            running.stop(mode)
            again.append(threading.Timer(1.5, running.start))
            again[0].start()

    undisturbed = go("whole", lambda number: None)
    try:
        cut = go("cut", restart)
    finally:
        again[0].join()
    assert history(cut) == history(undisturbed)
    assert [t.user_attrs["n"] for t in cut.trials] == list(range(6))
    said = [m for m in caplog.messages if "does not answer" in m]
    assert len(said) == 1
    assert "pa55word" not in " ".join(caplog.messages)


def test_a_lock_that_is_lost_is_taken_again(
    running: postgresql.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial is only made while its lock is held; else others could count the same ones."""
    url = running.database("lost")
    study = run(url, trials=1)
    ask, ended = optuna.Study.ask, []

    def end_lock(self: optuna.Study, *args, **settings) -> optuna.Trial:
        if not ended:
            with claims.database(open_storage(url)).engine.connect() as other:
                ended.extend(
                    other.execute(
                        text(
                            "SELECT pg_terminate_backend(pid) FROM pg_locks "
                            "WHERE locktype = 'advisory' AND granted"
                        )
                    ).scalars()
                )
        return ask(self, *args, **settings)

    monkeypatch.setattr(optuna.Study, "ask", end_lock)
    one = claims.Shared(study)
    trial = one.next(3)
    assert trial is not None
    assert ended == [True]
    assert trial.number == 1
    assert [t.number for t in study.get_trials()] == [0, 1]
