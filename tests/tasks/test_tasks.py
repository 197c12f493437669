from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fusetune.tasks
from fusetune.errors import RecipeError
from fusetune.tasks.classification import Regression, SequenceClassification


def test_kinds_are_found() -> None:
    assert {"regression", "sequence-classification"} <= set(fusetune.tasks.kinds())
    assert fusetune.tasks.find("sequence-classification") is SequenceClassification
    assert fusetune.tasks.find("regression") is Regression


def test_an_unknown_kind() -> None:
    with pytest.raises(
        RecipeError, match=r"no task kind 'regresion'; known are .*Did you mean regression\?"
    ):
        fusetune.tasks.find("regresion")


def test_adding_a_file_adds_a_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tagging.py").write_text("KINDS = {'tagging': dict}\n")
    monkeypatch.setattr(fusetune.tasks, "__path__", [*fusetune.tasks.__path__, str(tmp_path)])
    assert fusetune.tasks.find("tagging") is dict
    sys.modules.pop("fusetune.tasks.tagging")


def test_importing_the_package_is_light() -> None:
    code = "import sys, fusetune.tasks; sys.exit(bool({'torch', 'datasets'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
