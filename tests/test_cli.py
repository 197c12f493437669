from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fusetune.cli import app
from fusetune.errors import FusetuneError

runner = CliRunner()


def fusetune(*arguments: str) -> tuple[int, str]:
    result = runner.invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result
    return result.exit_code, result.output


def test_help_names_every_command() -> None:
    code, output = fusetune("--help")
    assert code == 0
    for command in [
        "demo",
        "run",
        "search",
        "train",
        "fuse",
        "report",
        "export",
        "landscape",
        "transfer",
        "push",
        "dashboard",
        "studies",
        "members",
        "recipe",
    ]:
        assert command in output


def test_version() -> None:
    assert fusetune("--version") == (0, f"fusetune {version('fusetune')}\n")


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, fusetune.cli\n"
        "heavy = ('torch', 'transformers', 'pydantic', 'optuna')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


def test_schema_is_json() -> None:
    code, output = fusetune("recipe", "schema")
    assert code == 0
    assert json.loads(output)["additionalProperties"] is False


def test_list_and_show() -> None:
    assert "cola-minilm" in fusetune("recipe", "list")[1].split()
    code, output = fusetune("recipe", "show", "rte-minilm", "train.epochs=3")
    assert code == 0
    assert "epochs: 3" in output


def test_print_recipe_writes_nothing(tmp_path: Path) -> None:
    code, output = fusetune(
        "run", "cola-minilm", "--print-recipe", "--out", str(tmp_path / "r")
    )
    assert code == 0
    assert "matthews_correlation" in output
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nothing"], "There is no recipe 'nothing'"),
        (
            ["run", "rte-minilm", "train.epoch=3"],
            "train.epoch: unknown key (did you mean epochs?)",
        ),
        (["run", "rte-minilm", "task.kind=poetry"], "There is no task kind 'poetry'"),
        (["run", "rte-minilm", "task.data=./nowhere"], "nowhere"),
        (["run", "rte-minilm", "model.name=./nowhere"], "There is no model folder ./nowhere"),
        (["run", "rte-minilm", "executor.kind=abacus"], "executor.kind: unknown 'abacus'"),
        (["run", "rte-minilm", "model.device=toaster"], "model.device: 'toaster'"),
        (["members", "./nowhere"], "nowhere"),
        (["export", "./nowhere", "--out", "x"], "no fused models yet"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = fusetune(*arguments)
    assert code == 2
    assert message in output
    assert "Traceback" not in output


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    """A real interrupt in the middle of a run: 130, and the run can go on."""
    script = "from fusetune.cli import main; main()"
    command = [sys.executable, "-c", script, "demo", "--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        # A shell's background jobs ignore interrupts, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline = time.monotonic() + 600
        while not (tmp_path / "run/work").exists() and time.monotonic() < deadline:
            assert process.poll() is None, process.stdout and process.stdout.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    assert "run the same command again to go on" in output
    assert "Traceback" not in output


def test_messages_end_with_the_hint() -> None:
    error = FusetuneError("The rule is broken.", "Mend it.")
    assert str(error) == "The rule is broken. Mend it."


def test_a_name_that_no_file_can_have_is_a_message() -> None:
    for arguments in (["run", "x" * 5000], ["members", "x" * 300]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
        assert "File name too long" in " ".join(result.output.split())
