from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from fusetune.errors import RunError
from fusetune.members import claim
from fusetune.members.claim import LOCK, Holder, claimed

HOLD = """
import os, sys, time
from pathlib import Path
from fusetune.members.claim import claimed
with claimed(Path(sys.argv[1]), "The folder"):
    child = os.fork() if sys.argv[2] == "fork" else None
    if child == 0:  # it shares the lock, and outlives its parent for a moment
        time.sleep(float(sys.argv[3]))
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held(folder: Path, *how: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(folder), *how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        try:
            yield other
        finally:
            other.kill()


def test_the_second_is_told_who_the_first_is_and_since_when(tmp_path: Path) -> None:
    with held(tmp_path, "alone") as other:
        began = time.gmtime(psutil.Process(other.pid).create_time())
        with pytest.raises(RunError) as caught, claimed(tmp_path, "The folder"):
            pass
    said = time.strftime("%Y-%m-%d %H:%M:%S UTC", began)
    assert f"in use by process {other.pid} on " in str(caught.value)
    assert f"which started at {said}" in str(caught.value)


def test_a_kill_leaves_no_stale_lock(tmp_path: Path) -> None:
    with held(tmp_path, "alone") as other:
        other.kill()
        other.wait()
    assert (tmp_path / LOCK).exists()
    with claimed(tmp_path, "The folder"):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()


def test_children_of_one_who_was_killed_are_waited_for(tmp_path: Path) -> None:
    with held(tmp_path, "fork", "1.0") as other:
        other.kill()
        other.wait()
        with claimed(tmp_path, "The folder"):
            pass


def test_children_that_stay_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "PATIENCE", 0.2)
    with held(tmp_path, "fork", "2.0") as other:
        other.kill()
        other.wait()
        rule = re.escape(f"processes that were started by process {other.pid} on ")
        with pytest.raises(RunError, match=rule), claimed(tmp_path, "The folder"):
            pass


@pytest.mark.parametrize("content", ["", "process 12", "[1]", '{"process": "x"}', "\x00" * 99])
def test_a_lock_file_that_says_nothing_is_no_hindrance(content: str, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(content)
    with claimed(tmp_path, "The folder"):
        pass


def test_an_id_that_was_given_anew_is_another_process() -> None:
    mine = Holder.this()
    assert not mine.ended
    assert Holder(mine.process, mine.started - 3600.0, mine.host).ended
    assert not Holder(mine.process, mine.started - 3600.0, "another-machine").ended
