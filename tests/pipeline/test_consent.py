"""No file gives consent to code: a person does, before anything of it runs."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fusetune.cli import app
from fusetune.errors import RecipeError
from fusetune.pipeline import consent
from fusetune.pipeline.checks import check
from fusetune.pipeline.context import Context
from fusetune.pipeline.display import Display
from fusetune.recipe_file import load
from fusetune.recipe_sections import TaskSection
from fusetune.run import RunFolder
from fusetune.tasks import harness_code
from fusetune.tasks.own_metric import OwnMetric, locate

METRIC = (
    "import pathlib\npathlib.Path('ran').touch()\ndef f(said, refs): return [1.0] * len(said)\n"
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a module of metrics that tells when it is imported."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "strange_metric.py").write_text(METRIC)
    monkeypatch.delitem(sys.modules, "strange_metric", raising=False)
    return folder


def section(*metrics: str, **more: Any) -> TaskSection:
    given = {"kind": "generation", "data": "d", "prompt": "{{ q }}", "reference": "a"}
    return TaskSection.model_validate({**given, "metrics": list(metrics), **more})


def recipe_of(folder: Path, metric: str) -> Path:
    rows = "".join(json.dumps({"q": f"one {i}", "a": "two"}) + "\n" for i in range(8))
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text(rows)
    path = folder / "recipe.yaml"
    path.write_text(
        f"task: {{kind: generation, data: {folder}, prompt: '{{{{ q }}}}', reference: a, "
        f"metrics: ['{metric}']}}\nmodel: {{name: nowhere}}\nsearch: {{trials: 0}}\n"
    )
    return path


class Watching(Display):
    """Notes whether the module had run when it was warned of."""

    said: bool | None = None

    def warn(self, text: str) -> None:
        if "imported and called: strange_metric:f" in text:
            self.said = Path("ran").exists()


def test_code_of_a_recipe_needs_consent_and_is_said_before_it_runs(here: Path) -> None:
    recipe, folder = load(recipe_of(here, "strange_metric:f")), RunFolder(here / "run")
    with pytest.raises(
        RecipeError, match=r"strange_metric:f of .*strange_metric\.py.*--allow-code"
    ):
        check(Context(recipe, folder, Display(quiet=True)))
    with pytest.raises(RecipeError, match="--allow-code"):
        _ = Context(recipe, folder, Display(quiet=True)).task
    assert not Path("ran").exists()
    display = Watching(quiet=True)
    _ = Context(recipe, folder, display, allow_code=True).task
    assert Path("ran").exists()
    assert display.said is False


def test_consent_is_of_this_folder_this_code_and_this_machine(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, run = section("strange_metric:f"), tmp_path / "run"
    assert consent.require(section("exact_match"), run, allow_code=False) == []
    assert consent.require(task, run, allow_code=True)
    assert consent.require(task, run, allow_code=False)  # remembered
    assert not run.exists()  # and not in the run folder
    with pytest.raises(RecipeError, match="allow_code=True"):
        consent.require(task, tmp_path / "other", allow_code=False)
    with pytest.raises(RecipeError, match="--allow-code"):
        consent.require(section("strange_metric:f", "strange_metric:g"), run, allow_code=False)
    (here / "strange_metric.py").write_text(METRIC + "# changed\n")
    with pytest.raises(RecipeError, match="--allow-code"):
        consent.require(task, run, allow_code=False)
    (here / "strange_metric.py").write_text(METRIC)
    assert consent.require(task, run, allow_code=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))  # another machine
    with pytest.raises(RecipeError, match="--allow-code"):
        consent.require(task, run, allow_code=False)


def test_a_machine_that_cannot_remember_asks_again(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").write_text("a file")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert consent.require(section("strange_metric:f"), tmp_path / "run", allow_code=True)
    with pytest.raises(RecipeError, match="--allow-code"):
        consent.require(section("strange_metric:f"), tmp_path / "run", allow_code=False)


@pytest.mark.parametrize("command", ["run", "train", "fuse", "report", "compare", "transfer"])
def test_every_command_asks(command: str, here: Path) -> None:
    path = recipe_of(here, "strange_metric:f")
    more = [
        "search.variant={freeze_layers: 1}",
        "search.space.learning_rate={low: 0.1, high: 1}",
    ]
    given = [command, str(path), "--out", "run", *(more if command == "transfer" else [])]
    said = CliRunner().invoke(app, given)
    assert said.exit_code == 2
    assert "--allow-code" in " ".join(said.output.split())
    assert not Path("ran").exists()


def test_commands_on_a_handed_over_run_ask(here: Path) -> None:
    run = here / "run"
    (run / "stages").mkdir(parents=True)
    recipe_of(here, "strange_metric:f").rename(run / "recipe.yaml")
    for stage in ("train", "fuse"):
        (run / "stages" / f"{stage}.json").write_text('{"chosen": "swa", "methods": {}}')
    for given in (["export", "run", "--pick", "max f", "--out", "o"], ["landscape", "run"]):
        CliRunner().invoke(app, given)
        assert not Path("ran").exists()


@pytest.mark.parametrize(
    "metric",
    [
        "torch.hub:load", "accelerate.test_utils.testing:run_command", "os:system", "a-b:f",
        "strange_metric:f.x", "strange_metric:", ":f", "..x:f", "nowhere_at_all:f", "numpy:f",
    ],
)  # fmt: skip
def test_functions_elsewhere_cannot_be_named_even_with_consent(metric: str, here: Path) -> None:
    with pytest.raises(RecipeError, match=r"fusetune\.metrics"):
        consent.require(section(metric), here / "run", allow_code=True)
    with pytest.raises(RecipeError):
        OwnMetric.load(metric)


def test_an_environment_in_the_working_folder_is_not_the_users_own(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = here / ".venv/lib/site-packages"
    packages.mkdir(parents=True)
    shutil.move(here / "strange_metric.py", packages / "strange_metric.py")
    monkeypatch.syspath_prepend(packages)
    with pytest.raises(RecipeError, match="neither under the folder"):
        locate("strange_metric:f")


def test_a_link_to_a_module_elsewhere_is_not_the_users_own(here: Path, tmp_path: Path) -> None:
    shutil.move(here / "strange_metric.py", tmp_path / "strange_metric.py")
    (here / "strange_metric.py").symlink_to(tmp_path / "strange_metric.py")
    with pytest.raises(RecipeError, match="neither under the folder"):
        locate("strange_metric:f")


def test_what_a_file_only_imports_is_not_its_metric(here: Path) -> None:
    (here / "borrowing.py").write_text(
        "import functools, subprocess\nfrom subprocess import run\nfrom builtins import len\n"
        "part = functools.partial(run, shell=True)\n"
        "class Own:\n    def __call__(self, said, refs): return 1.0\n"
        "own = Own()\nopener = subprocess.Popen\n"
        "@functools.wraps(run)\ndef wrapped(*a): return run(*a)\n"
    )
    for name in ("run", "len", "part", "opener", "wrapped"):
        with pytest.raises(RecipeError, match="only imported there"):
            OwnMetric.load(f"borrowing:{name}")
    assert OwnMetric.load("borrowing:own").whole(["a"], [["b"]]) == 1.0


def test_a_package_may_declare_metrics(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "declared_metrics"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from subprocess import run\ndef f(said, refs): return 2\n"
    )
    monkeypatch.syspath_prepend(package.parent)
    with pytest.raises(RecipeError, match="nor in a package that declares metrics"):
        locate("declared_metrics:f")
    entry = EntryPoint("any", "declared_metrics:f", "fusetune.metrics")
    monkeypatch.setattr(
        "fusetune.tasks.own_metric.entry_points",
        lambda group: importlib.metadata.EntryPoints([entry]).select(group=group),
    )
    assert OwnMetric.load("declared_metrics:f").whole(["a"], [["b"]]) == 2.0
    with pytest.raises(RecipeError, match="only imported there"):
        OwnMetric.load("declared_metrics:run")
    with pytest.raises(RecipeError, match="--allow-code"):  # consent all the same
        consent.require(section("declared_metrics:f"), here / "run", allow_code=False)


PLAIN = """task: mine
dataset_path: json
dataset_kwargs: {data_files: {validation: d.jsonl}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_target: 0
doc_to_choice: ["a", "b"]
metric_list: [{metric: acc}]
"""


@pytest.mark.parametrize(
    "line",
    [
        "process_docs: !function evil.process", "include: ../elsewhere.yaml", "class: evil.T",
        "custom_dataset: evil", "dataset_path: pandas", "dataset_path: evil.py",
        "metric_list: [{metric: ./evil}]", "metric_list: [{metric: acc, hf_evaluate: true}]",
        "x: !!python/object/apply:os.system [id]", "dataset_kwargs: {trust_remote_code: true}",
        "a: [", "group: g\nx: {y: [{metric: someones/script}]}",
    ],
)  # fmt: skip
def test_harness_tasks_that_can_run_code_need_consent(line: str, tmp_path: Path) -> None:
    key = line.partition(":")[0]
    kept = "".join(each + "\n" for each in PLAIN.splitlines() if not each.startswith(f"{key}:"))
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "mine.yaml").write_text(kept + line + "\n")
    task = TaskSection(kind="lm-eval", data=str(tmp_path), metrics=["lm_eval:mine/acc"])
    with pytest.raises(RecipeError, match="--allow-code"):
        consent.require(task, tmp_path / "run", allow_code=False)
    assert consent.require(task, tmp_path / "run", allow_code=True)


def test_harness_tasks_of_plain_data_need_none(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(PLAIN)
    task = TaskSection(kind="lm-eval", data=str(tmp_path), metrics=["lm_eval:mine/acc"])
    assert consent.require(task, tmp_path / "run", allow_code=False) == []
    (tmp_path / "evil.py").write_text("")
    assert harness_code.reason(tmp_path) is not None
    built_in = TaskSection(kind="lm-eval", data="lm-eval", metrics=["lm_eval:mine/acc"])
    assert consent.require(built_in, tmp_path / "run", allow_code=False) == []


def test_templates_of_harness_tasks_run_in_a_sandbox(tmp_path: Path) -> None:
    utils = pytest.importorskip("lm_eval.utils", reason="the extra lm-eval is not installed")
    from jinja2.exceptions import SecurityError

    from fusetune.tasks import harness

    (tmp_path / "mine.yaml").write_text(PLAIN)
    with pytest.raises(RecipeError, match="no task"):
        harness.load(["other"], str(tmp_path))
    assert utils.apply_template("{{ q }} {{ [1, 2].index(2) }}", {"q": "x"}) == "x 1"
    with pytest.raises(SecurityError):
        utils.apply_template("{{ cycler.__init__.__globals__.os }}", {})
