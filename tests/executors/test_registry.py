import sys

import pytest

from fusetune import executors
from fusetune.errors import RecipeError
from fusetune.executors.serial import SerialExecutor


def test_serial_is_found():
    assert "serial" in executors.kinds()
    assert "executor" not in executors.kinds()
    assert isinstance(executors.find("serial")(), SerialExecutor)


def test_an_unknown_kind_is_answered_with_the_known_ones():
    with pytest.raises(
        RecipeError, match=r"unknown 'seriel' \(did you mean serial.*known: .*serial"
    ):
        executors.find("seriel")


def test_a_file_is_enough_to_add_a_kind(tmp_path, monkeypatch):
    (tmp_path / "echo.py").write_text("def create(**options):\n    return options\n")
    monkeypatch.setattr(executors, "__path__", [*executors.__path__, str(tmp_path)])
    try:
        assert "echo" in executors.kinds()
        assert executors.find("echo")(n=1) == {"n": 1}
    finally:
        sys.modules.pop("fusetune.executors.echo", None)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "cloud.py").write_text("import a_library_that_nobody_has\n")
    monkeypatch.setattr(executors, "__path__", [*executors.__path__, str(tmp_path)])
    with pytest.raises(RecipeError, match="needs a_library_that_nobody_has"):
        executors.find("cloud")
