import contextlib
import json
from pathlib import Path

import optuna
import pytest

from fusetune.errors import RunError
from fusetune.optimization.journal import open_journal, repair
from fusetune.optimization.storage import open_existing, quiet


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # nobody cuts the power here
    with quiet():
        yield


def write_two_trials(path):
    study = optuna.create_study(storage=open_journal(path), study_name="s")
    for x in (0.25, 0.75):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        study.tell(trial, x)
    return path.read_bytes()


def test_a_cut_at_every_byte_is_repaired_and_later_appends_are_read_back(tmp_path):
    whole = write_two_trials(tmp_path / "whole")
    lines = whole.splitlines(keepends=True)
    beginning = len(b"".join(lines[:-3]))
    for cut in range(beginning, len(whole) + 1):
        path = tmp_path / str(cut)
        path.write_bytes(whole[:cut])
        complete = whole[:cut].count(b"\n")
        study = optuna.load_study(storage=open_journal(path), study_name="s")
        assert path.read_bytes() == b"".join(lines[:complete])
        study.add_trial(optuna.trial.create_trial(value=0.125))
        again = optuna.load_study(storage=open_journal(path), study_name="s")
        assert again.trials[-1].value == 0.125
        assert again.trials[0].value == 0.25
        assert path.read_bytes().startswith(b"".join(lines[:complete]))


def test_a_cut_in_the_first_record_leaves_an_empty_journal(tmp_path):
    whole = write_two_trials(tmp_path / "whole")
    path = tmp_path / "cut"
    for cut in range(whole.index(b"\n") + 1):
        path.write_bytes(whole[:cut])
        assert repair(path) == cut
        assert path.read_bytes() == b""


def test_a_last_line_of_rubbish_is_cut_off(tmp_path):
    path = tmp_path / "journal"
    whole = write_two_trials(path)
    with path.open("ab") as file:  # a block that was allocated but never written
        file.write(b"\0" * 40 + b"\n" + b'{"op_code": 4')
    assert repair(path) == 54
    assert path.read_bytes() == whole
    assert repair(path) == 0


def test_damage_before_the_end_is_reported_and_nothing_is_cut(tmp_path):
    path = tmp_path / "journal"
    lines = write_two_trials(path).splitlines(keepends=True)
    damaged = b"".join([*lines[:2], b"{oops\n", *lines[3:]])
    path.write_bytes(damaged)
    with pytest.raises(RunError, match="damaged: line 3 is no record"):
        open_journal(path)
    assert path.read_bytes() == damaged


def test_another_file_is_not_touched(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("my only copy, without a line's end")
    with pytest.raises(RunError, match="no journal of trials; it begins with b'my only copy"):
        open_journal(path)
    assert path.read_text() == "my only copy, without a line's end"


def test_a_lock_left_by_a_killed_process_does_not_make_the_next_one_wait(tmp_path):
    path = tmp_path / "journal"
    write_two_trials(path)
    (tmp_path / "journal.lock").touch()
    (tmp_path / "journal.lock0.rename").touch()
    study = optuna.load_study(storage=open_journal(path), study_name="s")
    study.add_trial(optuna.trial.create_trial(value=1.0))  # would wait half a minute
    assert [p.name for p in tmp_path.iterdir()] == ["journal"]


def test_a_folder_is_made_and_a_file_in_its_place_is_reported(tmp_path):
    open_journal(tmp_path / "new" / "journal")
    assert (tmp_path / "new" / "journal").exists()
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be opened"):
        open_journal(tmp_path / "file" / "journal")


def test_a_journal_whose_records_make_no_study_is_one_message(tmp_path: Path) -> None:
    whole = tmp_path / "whole.journal"
    with quiet():
        study = optuna.create_study(storage=open_journal(whole), study_name="s")
        trial = study.ask()
        trial.suggest_float("x", 0.0, 1.0)
        study.tell(trial, 1.0)
    lines = [json.loads(line) for line in whole.read_text().splitlines()]
    for i, record in enumerate(lines):
        for key in set(record) - {"op_code", "worker_id"}:
            for other in ({k: v for k, v in record.items() if k != key}, {**record, key: [[]]}):
                path = tmp_path / "changed.journal"
                changed = [*lines[:i], other, *lines[i + 1 :]]
                path.write_text("".join(json.dumps(r) + "\n" for r in changed))
                for opening in (open_journal, open_existing):
                    with contextlib.suppress(RunError):  # or it makes no difference
                        opening(path)
    path.write_text("".join(json.dumps(r) + "\n" for r in [lines[0], {"op_code": 1}]))
    with pytest.raises(RunError, match="is damaged"):
        open_journal(path)
