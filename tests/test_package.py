"""What users install: everything that a run needs travels in the wheel."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LARGE = (
    "bitsandbytes", "lightning", "lm_eval", "mlflow", "psycopg", "ray", "setfit", "tensorboard",
    "trl",
)  # fmt: skip
"""Packages that `make setup` does not install, and tests skip without."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_recipes_and_templates_travel(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        assert f"fusetune/recipes/{recipe.name}" in names
    for template in (ROOT / "src/fusetune").rglob("*.j2"):
        assert str(template.relative_to(ROOT / "src")) in names
    assert "fusetune/py.typed" in names


def test_nothing_else_travels(wheel: zipfile.ZipFile) -> None:
    folders = {name.split("/")[0] for name in wheel.namelist()}
    assert {f.split("-")[0] for f in folders} == {"fusetune"}
    assert not [n for n in wheel.namelist() if "tests" in n or "__pycache__" in n]


def test_the_command_is_declared(wheel: zipfile.ZipFile) -> None:
    (name,) = (n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    assert "fusetune = fusetune.cli:main" in wheel.read(name).decode()


def test_public_names_exist() -> None:
    import fusetune

    for name in fusetune.__all__:
        assert getattr(fusetune, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fusetune.nothing


def test_what_needs_large_packages_is_tried_with_them() -> None:
    script = (ROOT / ".ci/extras").read_text(encoding="utf-8")
    listed = re.findall(r"^    (tests/\S+\.py)$", script, flags=re.MULTILINE)
    needs = re.compile(
        rf"""(?:importorskip|find_spec)\((?:package|["'](?:{"|".join(LARGE)})["'])|environ.get\("MERGEKIT_YAML"""
    )
    assert listed == sorted(
        str(file.relative_to(ROOT))
        for file in (ROOT / "tests").rglob("test_*.py")
        if needs.search(file.read_text(encoding="utf-8"))
    )
