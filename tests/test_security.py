"""Promises of SECURITY.md that can be held by reading the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fusetune.tasks import prompts

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src" / "fusetune").rglob("*.py"))

# Calls that run what they are given, or read formats that can.
NEVER = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.spawnl",
    "pickle.load", "pickle.loads", "marshal.load", "marshal.loads", "dill.load", "joblib.load",
    "cloudpickle.load", "shelve.open", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "pandas.read_pickle", "pd.read_pickle", "jinja2.Template", "Template", "tempfile.mktemp",
}  # fmt: skip
ERRORS = {"PicklingError", "UnpicklingError"}
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "telnetlib"}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in call.keywords if k.arg == name), None)


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def problems(tree: ast.AST) -> Iterator[str]:
    """What of a module's source can run data as code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield from (a.name for a in node.names if a.name not in ERRORS)
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in NEVER:
                yield name
            if keyword(node, "shell") is not None:
                yield f"{name}(shell=…)"
            if name == "torch.load" and not is_constant(keyword(node, "weights_only"), True):
                yield "torch.load without weights_only=True"
            if name in ("np.load", "numpy.load") and not is_constant(
                keyword(node, "allow_pickle"), False
            ):
                yield "np.load without allow_pickle=False"
            if is_constant(keyword(node, "trust_remote_code"), True):
                yield "trust_remote_code=True"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_nothing_runs_data_as_code(path: Path) -> None:
    assert list(problems(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)", "import pickle", "from pickle import loads", "os.system(name)",
        "subprocess.run(name, shell=True)", "yaml.load(text, Loader=yaml.Loader)",
        "torch.load(path)", "torch.load(path, weights_only=False)", "np.load(path)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_the_check_itself_finds(source: str) -> None:
    assert list(problems(ast.parse(source)))


def test_yaml_is_read_in_one_place_by_a_safe_loader() -> None:
    reading = {
        p.name for p in SOURCES if re.search(r"yaml\.(safe_)?load|SafeLoader", p.read_text())
    }
    assert reading == {"recipe_yaml.py"}


def test_templates_of_recipes_run_in_a_sandbox_and_ours_escape() -> None:
    making = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and dotted(node.func).endswith("Environment"):
                making[path.name] = (dotted(node.func), keyword(node, "loader") is not None)
    # Templates with a loader are fusetune's own files; any other text is a user's.
    assert making["prompts.py"] == ("_Environment", False)
    assert issubclass(prompts._Environment, ImmutableSandboxedEnvironment)
    assert all(loads for name, (_, loads) in making.items() if name != "prompts.py")


def test_loading_says_what_it_does_with_code_and_pickles() -> None:
    """Left out, Transformers asks on the terminal whether to run a model's code."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and dotted(node.func).endswith(".from_pretrained"):
                said = keyword(node, "trust_remote_code")
                passed_on = any(
                    k.arg is None for k in node.keywords
                )  # **options, of ModelSource
                assert said is not None or passed_on, f"{path}:{node.lineno}"


def test_no_decision_follows_the_clock_on_the_wall() -> None:
    """Clocks jump; what is measured or waited for is measured by one that does not."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert dotted(node.func) not in ("time.time", "datetime.utcnow"), path
