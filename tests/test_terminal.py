"""Nothing of a file acts on a terminal, and a terminal that is not UTF-8 ends no run."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.table import Table
from typer.testing import CliRunner

from fusetune.cli import app
from fusetune.cli_errors import errors
from fusetune.errors import RunError
from fusetune.members.claim import claimed
from fusetune.pipeline.display import Display
from fusetune.recipe_yaml import read_yaml, write_yaml
from fusetune.redaction import printable, shown

EVIL = "\x1b]0;PWNED\x07\u202e\x9b2J"


def inert(text: str) -> bool:
    return not any(sign in text for sign in "\x1b\x07\x9b\u202e\u2028\udcff")


def test_what_is_printed_is_written_out() -> None:
    assert inert(printable(EVIL + "\u2028\udcff"))
    assert printable("a\tb\nc — ü") == "a\tb\nc — ü"
    assert shown("\udcff").encode() == rb"\udcff"


def test_everything_that_a_display_prints_is_inert(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display()
    table = Table(EVIL)
    table.add_row(EVIL)
    display.console.print(table)
    display.say(EVIL)
    display.warn(EVIL)
    with display.bar("fuse", 2) as bar:
        bar.update(1, text=EVIL)
    told = capsys.readouterr().out
    assert inert(told)
    assert told.count("PWNED") >= 4


def test_names_in_a_journal_of_somebody_are_inert(tmp_path: Path) -> None:
    line = (
        '{"op_code":0,"worker_id":"x","study_name":"\\u001b]0;PWNED\\u0007","directions":[2]}'
    )
    (tmp_path / "trials.journal").write_text(line + "\n")
    said = CliRunner().invoke(app, ["studies", str(tmp_path)])
    assert said.exit_code == 0
    assert inert(said.output)
    assert "PWNED" in said.output


def test_a_card_of_somebody_is_inert(tmp_path: Path) -> None:
    (tmp_path / "fusion.json").write_text("{}")
    (tmp_path / "README.md").write_text(f"---\nlibrary_name: x\n---\n# {EVIL}\n")
    (tmp_path / f"weights{EVIL[:5]}").write_text("")
    said = CliRunner().invoke(app, ["push", str(tmp_path), "me/x", "--dry-run"])
    assert said.exit_code == 0, said.output
    assert inert(said.output)
    assert "PWNED" in said.output


def test_a_shown_recipe_is_inert_and_the_same() -> None:
    tree = {"task": {"prompt": f"{EVIL} {{{{ q }}}} ü"}}
    assert inert(write_yaml(tree))
    assert read_yaml(write_yaml(tree), "it") == tree
    assert "ü" in write_yaml({"prompt": "ü"})


def test_a_run_folder_has_a_name_that_can_be_written(tmp_path: Path) -> None:
    for name in (os.fsdecode(b"x\xff"), "x\x1b[2J", "x\u202e"):
        with pytest.raises(RunError, match="has a name with control"), \
                claimed(tmp_path / name, "The run folder"):  # fmt: skip
            pass
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.EFBIG, "File too large", "/run/a"), "File too large: /run/a"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (PermissionError(errno.EACCES, "Permission denied", "x\x1b"), r"denied: x\x1b"),
        (MemoryError(), "memory is not enough"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"), "its end"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "memory is not"),
    ],
)
def test_a_limit_of_the_system_is_one_message(
    error: Exception, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as end, errors():
        raise error
    assert end.value.exit_code == 2
    assert told in capsys.readouterr().err


def test_a_mistake_of_ours_is_none() -> None:
    for error in (RuntimeError("a bug"), OSError("a bug"), KeyError("a bug")):
        with pytest.raises(type(error)), errors():
            raise error


def test_an_output_that_is_closed_ends_without_a_traceback() -> None:
    shown = [sys.executable, "-m", "fusetune", "recipe", "schema"]
    with subprocess.Popen(shown, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_a_terminal_that_is_not_utf8_gets_escapes(encoding: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "task: {data: d, name: '← 東', text: [a], metrics: [accuracy]}\nmodel: {name: m}\n"
        "search: {trials: 0}\n",
        encoding="utf-8",
    )
    said = subprocess.run(
        [sys.executable, "-m", "fusetune", "recipe", "show", str(recipe)],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr.decode()
    # Click takes a stream that claims to be ASCII for one of UTF-8 that is set up wrongly.
    assert rb"\u6771" in said.stdout or (encoding == "ascii" and "東".encode() in said.stdout)
