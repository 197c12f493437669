"""The rules of the house in docs/architecture.md, held by walking the imports."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "fusetune"

# A room may import from its own layer's rooms in order, and from every layer before.
LAYERS = (
    ("redaction", "errors", "objective", "recipe_yaml", "run_layout", "files"),
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

MOST_FILES = 14  # of a folder, its __init__.py aside

# What does not keep the rules yet. Both lists may only get shorter, the sizes only smaller.
LARGE_FOLDERS = {
    ".": 21,
    "evaluation": 18,
    "members": 59,
    "methods": 19,
    "optimization": 32,
    "pipeline": 48,
    "report": 19,
    "tasks": 36,
}
CIRCLES = {
    frozenset({"library/page.py", "library/result.py"}),
    frozenset({"recipe.py", "recipe_checks.py"}),
    frozenset(f"pipeline/{name}.py" for name in ("remote", "together", "trial", "workbench")),
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


def dependencies() -> dict[str, set[str]]:
    """Which files each file imports, for type checking and inside functions too."""
    names = {}
    for path in modules():
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(("fusetune", *(p for p in parts if p != "__init__")))] = path
    graph = {}
    for path in modules():
        imported: set[Path] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {names[a.name] for a in node.names if a.name in names}
            elif isinstance(node, ast.ImportFrom):
                # A name that is not a file of the package stands in the package itself.
                own = [names.get(f"{node.module}.{a.name}") for a in node.names]
                package = names.get(node.module or "")
                imported |= {path for path in (file or package for file in own) if path}
        graph[_short(path)] = {_short(other) for other in imported - {path}}
    return graph


def _short(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Every file that one imports, itself or through what it imports."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def test_no_circles_between_files() -> None:
    graph = dependencies()
    beyond = {name: reachable(graph, name) for name in graph}
    circles = {
        frozenset(other for other in beyond[name] if name in beyond[other])
        for name in graph
        if name in beyond[name]
    }
    assert circles == CIRCLES, "take a circle that is gone off the list; never add one"


def test_folders_stay_small() -> None:
    sizes = Counter(path.parent for path in modules() if path.name != "__init__.py")
    large = {
        folder.relative_to(PACKAGE).as_posix(): size
        for folder, size in sizes.items()
        if size > MOST_FILES
    }
    assert large.keys() == LARGE_FOLDERS.keys(), (
        "take a folder that is small by now off the list"
    )
    grown = [folder for folder, size in large.items() if size > LARGE_FOLDERS[folder]]
    assert not grown, "a folder of the list may only shrink"


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
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
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
