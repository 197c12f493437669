import errno
import sqlite3

import optuna
import pytest

from fusetune.errors import RunError, StageError
from fusetune.optimization.storage import database as under
from fusetune.optimization.storage import open_storage, quiet, storing


def test_a_path_is_a_journal_and_a_url_a_database(tmp_path):
    journal = open_storage(tmp_path / "trials.journal")
    database = open_storage(f"sqlite:///{tmp_path}/trials.db")
    assert isinstance(journal, optuna.storages.JournalStorage)
    assert isinstance(under(database), optuna.storages.RDBStorage)
    for storage in (journal, database):
        with quiet():
            study = optuna.create_study(storage=storage, study_name="s")
        study.tell(study.ask(), 0.5)
        assert study.best_value == 0.5


def test_a_database_that_cannot_be_opened_is_named_without_its_password(tmp_path):
    with pytest.raises(RunError, match=r"trials\.db cannot be opened"):
        open_storage(f"sqlite:///{tmp_path}/missing/trials.db")
    with pytest.raises(RunError, match="cannot be opened") as info:
        open_storage("postgresql+nodriver://user:secret@host/db")
    assert "secret" not in str(info.value)
    assert "host/db" in str(info.value)


def test_tables_of_another_version_are_refused_with_what_to_do(tmp_path):
    url = f"sqlite:///{tmp_path}/trials.db"
    open_storage(url)
    with sqlite3.connect(tmp_path / "trials.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
    with pytest.raises(RunError, match=r"no longer compatible.*optuna storage upgrade"):
        open_storage(url)


def test_a_full_disk_is_called_so():
    with pytest.raises(StageError, match="The disk is full"), storing():
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StageError, match=r"cannot be written to: .*Input/output"), storing():
        raise OSError(errno.EIO, "Input/output error")


def test_quiet_puts_the_verbosity_back():
    def noisy():
        with quiet():
            seen.append(optuna.logging.get_verbosity())
            raise KeyError

    seen, before = [], optuna.logging.get_verbosity()
    with pytest.raises(KeyError):
        noisy()
    assert seen == [optuna.logging.ERROR]
    assert optuna.logging.get_verbosity() == before
