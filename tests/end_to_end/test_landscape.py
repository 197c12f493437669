from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fusetune.cli import app
from fusetune.errors import MemberError, RunError
from fusetune.evaluation.scorer import Scorer
from fusetune.pipeline import run
from fusetune.pipeline.landscape import landscape
from fusetune.recipe_file import parse
from fusetune.run import RunFolder

SHORT = (
    "search.trials=0",
    "train.epochs=2",
    "train.arguments={learning_rate: 3.0e-3}",
    "fuse.methods=[finetune, swa, greedy]",
)


@pytest.fixture(scope="module")
def finished(tiny_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run(parse(tiny_recipe, SHORT), tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many models are evaluated; setting its item to n lets the n-th be interrupted."""
    count = [0, -1]
    score = Scorer.__call__

    def counted(self: Scorer, model: Any) -> Any:
        if count[0] == count[1]:
            raise KeyboardInterrupt
        count[0] += 1
        return score(self, model)

    monkeypatch.setattr(Scorer, "__call__", counted)
    return count


def read(page: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(page.with_suffix(".json").read_text())
    return content


def test_values_marks_and_distances(
    finished: RunFolder, tmp_path: Path, scored: list[int]
) -> None:
    page = landscape(finished.path, grid=4, out=tmp_path / "plane.html")
    data = read(page)
    names = sorted(p.name for p in finished.members.glob("step-*"))
    assert [m["name"] for m in data["marks"][:3]] == [names[0], names[2], names[4]]
    assert [m["kind"] for m in data["marks"]] == ["member"] * 3 + ["swa", "chosen"]
    results = json.loads(finished.results.read_text())
    chosen = results["methods"][results["chosen"]]["validation"]
    swa = results["methods"]["swa"]["validation"]
    assert data["marks"][3]["values"]["loss"] == swa["loss"]["value"]
    assert data["marks"][4]["values"]["loss"] == chosen["loss"]["value"]
    assert data["marks"][3]["distance"] > 0.0  # an average of five members
    assert np.shape(data["values"]["loss"]) == (4, 4)
    assert len({v for row in data["values"]["loss"] for v in row}) == 16
    assert 16 < scored[0] <= 16 + 4  # the grid and projections; members and rows are known
    # The members' distances, from their files.
    from safetensors.torch import load_file

    first, last = (load_file(finished.members / n / "model.safetensors") for n in names[::4])
    distance = sum(float(((first[n] - last[n]).double() ** 2).sum()) for n in first) ** 0.5
    corner = data["marks"][2]
    assert np.hypot(corner["x"], corner["y"]) == pytest.approx(distance, rel=1e-5)
    assert "orthogonal projections" in page.read_text(encoding="utf-8")


def test_drawing_again_evaluates_nothing(
    finished: RunFolder, tmp_path: Path, scored: list[int]
) -> None:
    first = landscape(finished.path, grid=3, out=tmp_path / "one.html")
    assert scored[0] > 0
    scored[0] = 0
    second = landscape(finished.path, grid=3, out=tmp_path / "two.html")
    assert scored[0] == 0
    assert read(first) == read(second)


def test_an_interrupted_one_goes_on(
    finished: RunFolder, tmp_path: Path, scored: list[int]
) -> None:
    copies = [tmp_path / name for name in ("whole", "cut")]
    for copy in copies:
        shutil.copytree(finished.path, copy)
    whole = landscape(copies[0], grid=5)
    needed, scored[0], scored[1] = scored[0], 0, 7
    with pytest.raises(KeyboardInterrupt):
        landscape(copies[1], grid=5)
    assert not (copies[1] / "landscape.html").exists()
    scored[1] = -1
    cut = landscape(copies[1], grid=5)
    assert scored[0] == needed  # seven before and the rest afterwards
    assert read(cut)["values"] == read(whole)["values"]


def test_test_split_has_a_file_of_its_own(finished: RunFolder) -> None:
    page = landscape(finished.path, grid=2, split="test")
    assert page == finished.path / "landscape-test.html"
    assert read(page)["split"] == "test"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["a", "b", "c"], r"no member 'a'.*known: step-000048"),
        (["48", "48", "80"], "three different members"),
        (["48", "80"], "three different members"),
    ],
)
def test_members_have_to_be_three_known_ones(
    finished: RunFolder, members: Sequence[str], message: str, scored: list[int]
) -> None:
    with pytest.raises(MemberError, match=message):
        landscape(finished.path, members=members)
    assert scored[0] == 0


def test_other_mistakes(finished: RunFolder, tmp_path: Path, scored: list[int]) -> None:
    with pytest.raises(RunError, match="has not been fused yet"):
        landscape(tmp_path)
    with pytest.raises(RunError, match="no split 'dev'"):
        landscape(finished.path, split="dev")
    with pytest.raises(ValueError, match="at least 2 points"):
        landscape(finished.path, grid=1)
    result = CliRunner().invoke(app, ["landscape", str(finished.path), "--members", "48,x,80"])
    assert result.exit_code == 2
    assert "There is no member 'x'" in result.output
    assert scored[0] == 0


def test_the_command_says_what_it_will_cost(finished: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "page"
    command = ["landscape", str(finished.path), "--grid", "2", "--out", str(out)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "evaluations," in result.output
    assert "of them known already" in result.output
    assert out.with_suffix(".html").exists()
    assert out.with_suffix(".json").exists()


def test_a_new_fusion_makes_the_figure_stale(finished: RunFolder, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished.path, tmp_path / "copy"))
    page = landscape(copy, grid=2)
    RunFolder(copy).reset("report")
    assert page.exists()
    RunFolder(copy).reset("fuse")
    assert not page.exists()
    assert not page.with_suffix(".json").exists()
