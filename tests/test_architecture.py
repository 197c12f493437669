"""The rules of the house in docs/architecture.md, held by walking the imports."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "fusetune"

# A room may import from its own layer's rooms in order, and from every layer before.
LAYERS = (
    ("redaction", "errors", "objective", "recipe_yaml", "run_layout"),
    ("tasks", "models", "members"),
    ("evaluation", "executors"),
    ("training", "optimization"),
    ("methods",),
    ("report",),
    ("library", "integrations"),
    ("recipe_sections",),
    ("recipe_stages",),
    ("recipe_checks",),
    ("recipe",),
    ("recipe_file",),
    ("run",),
    ("pipeline",),
    ("demo", "cli_errors", "cli_options"),
    ("cli_studies", "cli_fuse", "cli_storage", "cli_exchange", "cli_recipe"),
    ("cli",),
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}

# What a room must not know, whatever its rank.
FORBIDDEN = {
    "optimization": {"transformers", "safetensors", "datasets"},
    "members": {"botorch", "gpytorch", "optuna"},
    "tasks": {"botorch", "gpytorch", "optuna"},
    "executors": {"optuna", "botorch"},
    "report": {"torch", "transformers"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too, type checking aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    here = room(path)
    if here in ("__init__", "__main__"):
        return
    assert here in RANK, f"{here} has no place in the layers"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "fusetune" and len(parts) > 1:
            # `recipe` validates names against the rooms that it lists, all before it.
            assert RANK[parts[1]] <= RANK[here], f"{path} imports {name}"
        assert parts[0] not in FORBIDDEN.get(here, set()), f"{path} imports {name}"
        assert parts[0] != "ray" or path.name == "ray.py", f"{path} imports ray"
        owns = here == "integrations" and path.name == "lightning.py"
        foreign = parts[0] in ("lightning", "pytorch_lightning")
        assert owns or not foreign, f"{path} imports {parts[0]}"


def test_no_cycles_between_rooms() -> None:
    edges = {
        (room(path), name.split(".")[1])
        for path in modules()
        for name in imports(path)
        if name.startswith("fusetune.")
        and room(path) not in ("__init__", "__main__", name.split(".")[1])
    }
    assert not {(a, b) for a, b in edges if (b, a) in edges}


def test_only_the_pipeline_knows_recipes() -> None:
    knowing = {
        room(path)
        for path in modules()
        if {"fusetune.recipe", "fusetune.recipe_file"} & imports(path)
    }
    commands = {"cli_options", "cli_recipe", "cli"}
    assert knowing <= {"recipe_file", "run", "pipeline", "demo", *commands}


def test_modules_and_functions_stay_small() -> None:
    for path in modules():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 500, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                code = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (code[-1].end_lineno or 0) - code[0].lineno if code else 0
                assert lines <= 80, f"{path}: {node.name}"


def test_the_tree_in_the_readme_is_the_folder() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"```text\nsrc/fusetune/\n(.*?)```", text, re.DOTALL)
    assert tree is not None, "README.md has no tree of src/fusetune/"
    named = set(re.findall(r"^ +([\w./]+)  ", tree.group(1), re.MULTILINE))
    shown = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in PACKAGE.iterdir()
        if path.name not in ("__pycache__", "py.typed") and not path.name.startswith(".")
    }
    assert named == shown
