"""The harness of the quality protocols on made records."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import quality
from benchmarks.protocols import page, pooled, records, settings, transfers
from benchmarks.protocols.cost import cost
from benchmarks.protocols.job import LANDSCAPES, Job
from benchmarks.protocols.records import Record
from benchmarks.protocols.runs import to_make
from fusetune.errors import RecipeError, RunError
from fusetune.pipeline.context import Context
from fusetune.pipeline.display import Display
from fusetune.run import RunFolder

SAMPLES = np.random.default_rng(0).normal(0.0, 0.01, size=2000)


def record(
    method: str, gain: float, task: str = "mrpc", seed: int = 41, **changes: Any
) -> Record:
    values = {"f1": {"value": 0.8 + gain, "low": 0.7, "high": 0.9}, "loss": {"value": 0.5}}
    data: dict[str, Any] = {
        "protocol": "b",
        "attempt": "",
        "task": task,
        "seed": seed,
        "method": method,
        "primary": "f1",
        "validation": values,
        "test": values,
        "gain": {"value": gain},
        "samples": records.encode(gain + SAMPLES),
        "test_rows": task,
        "evaluations": 40,
        "trainings": 1,
        "seconds": 1.0,
        "total_seconds": 2.0,
        "settings": ("a=1",),
        "scale": "quick",
        "command": f"make --tasks {task} --seeds {seed} --methods swa",
    }
    return Record(**data | changes)


def test_a_record_comes_back_from_its_file(tmp_path: Path) -> None:
    made = record("bilevel:swa", 0.01)
    file = made.write(tmp_path)
    assert file == tmp_path / "b" / "mrpc-41-bilevel+swa.json"
    assert file.stat().st_size < 20_000
    assert records.read_all(tmp_path) == [made]
    found = made.differences()
    np.testing.assert_allclose(found, 0.01 + SAMPLES, atol=np.abs(found).max() / 60_000)
    file.write_text("{}")
    with pytest.raises(RunError, match="is no record"):
        records.read_all(tmp_path)


def test_the_pooled_gain_is_a_mean_over_tasks_of_means_over_seeds() -> None:
    made = [
        record("swa", 0.03, "mrpc", 41),
        record("swa", 0.01, "mrpc", 42),
        record("swa", 0.06, "rte", 41),
    ]
    found = pooled.gain(pooled.by_method(made)["swa"])
    assert found.value == pytest.approx(100 * ((0.03 + 0.01) / 2 + 0.06) / 2)
    assert (found.runs, found.tasks) == (3, ("mrpc", "rte"))
    assert found.low < found.value < found.high
    assert found.p_value < 0.01
    assert found.runs_p_value == pytest.approx(2 / 8)  # all three signs alike, or all turned


def test_seeds_with_the_same_test_rows_are_resampled_together() -> None:
    """Two seeds that differ on the same rows alike say no more than one of them."""

    def width(*made: Record) -> float:
        found = pooled.gain(pooled.by_method(made)["swa"])
        return found.high - found.low

    one = width(record("swa", 0.0))
    assert width(record("swa", 0.0), record("swa", 0.0, seed=42)) == pytest.approx(
        one, rel=0.01
    )
    apart = width(record("swa", 0.0), record("swa", 0.0, seed=42, test_rows="others"))
    assert apart == pytest.approx(one / np.sqrt(2), rel=0.1)


def stored(folder: Path, subject: float = 0.02) -> None:
    gains = {"finetune": 0.0, "swa": 0.01, "mobo": 0.015, "oracle": 0.04, "ema": 0.03}
    for (method, gain), seed in itertools.product(gains.items(), (41, 42)):
        if (method, seed) != ("ema", 42):  # a candidate must have every run
            record(method, gain, seed=seed).write(folder)
    for seed in (41, 42):
        for name in ("mobo.default", "mobo.knee"):
            record(name, subject if name == "mobo.default" else 0.9, seed=seed).write(folder)
    record("swa", -0.01, attempt="linear").write(folder)


def test_the_summary_is_computed_from_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def summary() -> dict[str, Any]:
        quality.main(["--summary", "--json", "--results", str(tmp_path)])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    assert summary()["gain_points"] is None
    stored(tmp_path)
    found = summary()
    assert found["subject"] == "mobo.default"
    assert found["gain_points"] == pytest.approx(2.0)
    assert found["share_closed"] == pytest.approx(0.5)
    assert found["by_task"]["mrpc"][0] == pytest.approx(2.0)
    assert found["by_seed"]["42"][0] == pytest.approx(2.0)
    assert (found["rank"], found["candidates"]) == (1, 4)  # of finetune, swa, mobo and itself
    assert 0.0 < found["gain_p_value"] < 0.06
    stored(tmp_path, subject=0.012)
    found = summary()
    assert found["gain_points"] == pytest.approx(1.2)
    assert (found["rank"], found["share_closed"]) == (2, pytest.approx(0.3))
    assert found["ahead"] == ["mobo"]
    assert "place 2 of 4 candidates, after `mobo`." in page.page(records.read_all(tmp_path))


def test_the_page_holds_the_default_against_the_goal(tmp_path: Path) -> None:
    def parts() -> list[tuple[str, str]]:
        text = page.page(records.read_all(tmp_path))
        lines = text.partition("### Against the goal")[2].partition("###")[0].splitlines()
        cells = [line.split("|")[2:4] for line in lines if line.startswith("| ")][2:]
        return [(there.strip(), met.strip()) for there, met in cells]

    assert parts() == []
    stored(tmp_path)
    found = parts()
    assert [met for _, met in found] == ["reached", "reached", "reached", "missed", "reached"]
    assert found[0][0] == "place 1 of 4"
    assert (found[3][0], found[1][0].split()[0]) == ("50 %", "+2.00")
    for seed in (41, 42):
        sure = {"seed": seed, "samples": records.encode(np.full_like(SAMPLES, -0.01))}
        record("mobo.default", -0.01, **sure).write(tmp_path)
    found = parts()
    assert {met for _, met in found} == {"missed"}
    assert found[0][0].startswith("place 4 of 4; `mobo` is ahead by +2.5")
    assert found[4][0] == "lowest on MRPC: -1.00 [-1.00, -1.00]"


def test_the_page_says_what_is_stored_and_what_is_missing(tmp_path: Path) -> None:
    text = page.page([])
    assert text.count("No results are stored") == 2
    stored(tmp_path)
    text = page.page(records.read_all(tmp_path))
    assert text.count("No results are stored") == 1
    assert "**`mobo.default` gains +2.00 points over `finetune`**" in text
    assert "50 % of the distance to `oracle`" in text
    line = next(line for line in text.splitlines() if line.startswith("| greedy"))
    assert "76.52 / 91.84 / 56.47 / 89.87 / 94.36; average 81.81" in line
    assert line.split("|")[3].strip() == "–"  # published, but not run
    # Of `ema` one of two runs is stored: the default is compared with it on that one alone.
    line = next(line for line in text.splitlines() if line.startswith("| ema"))
    gain, runs, _, over, _ = line.split("|")[7:12]
    assert (gain.split()[0], runs.strip()) == ("+3.00", "1")
    assert over.strip() == "-1.00 [-1.00, -1.00] (1 run)"  # the same test rows
    line = next(line for line in text.splitlines() if line.startswith("| try: linear | swa"))
    gain, _, over = line.split("|")[3:6]
    assert gain.startswith(" -1.00 [-2.9")
    assert over.startswith(" -2.00 [-2.00")  # on the same samples: all noise is common
    assert "\nmake --tasks mrpc --seeds 41,42 --methods swa\n" in text


def test_the_page_says_what_the_fusion_adds_to_the_checkpoint(tmp_path: Path) -> None:
    for name, gain in (("finetune", 0.0), ("bomf.default", 0.02), ("bomf.finetune", 0.015)):
        samples = records.encode(gain + np.zeros_like(SAMPLES))
        record(name, gain, samples=samples).write(tmp_path)
    text = page.page(records.read_all(tmp_path))
    assert (
        "`bomf.finetune`, the best checkpoint of the same trainings, gains +1.50 [+1.50, "
        "+1.50]; fusing adds +0.50 [+0.50, +0.50]." in text
    )
    assert "not made yet" not in text
    record("finetune", 0.0, "rte", 44).write(tmp_path)
    assert "Runs: 1, of MRPC; not made yet: RTE 44." in page.page(records.read_all(tmp_path))
    other = {"seed": 43, "samples": records.encode(SAMPLES)}
    record("bomf.default", 0.02, **other).write(tmp_path)  # of a run that has no such row
    assert "the best checkpoint of the same trainings, gains" not in page.page(
        records.read_all(tmp_path)
    )


def test_the_page_shows_the_best_checkpoint_of_a_try_that_trains_otherwise(
    tmp_path: Path,
) -> None:
    stored(tmp_path)
    for attempt, gain, samples in (
        ("rate-half", 0.03, SAMPLES),
        ("evaluations-90", 0.0, np.zeros_like(SAMPLES)),  # the checkpoints of own settings
    ):
        made = record("finetune", gain, attempt=attempt, samples=records.encode(samples))
        made.write(tmp_path)
    text = page.page(records.read_all(tmp_path))
    (line,) = [line for line in text.splitlines() if line.startswith("| try: rate-half |")]
    assert line.split("|")[2].strip() == "finetune"
    assert "| try: evaluations-90 |" not in text


def test_the_page_shows_a_try_of_the_search_on_the_full_model(tmp_path: Path) -> None:
    stored(tmp_path)
    record("bilevel.default", 0.03).write(tmp_path)
    record("bilevel.default", 0.01, attempt="best-trials").write(tmp_path)
    text = page.page(records.read_all(tmp_path))
    (line,) = [line for line in text.splitlines() if line.startswith("| try: best-trials |")]
    row, gain, _, over = (cell.strip() for cell in line.split("|")[2:6])
    assert (row, gain.split()[0], over.split()[0]) == ("bilevel.default", "+1.00", "-2.00")


def test_the_page_in_the_documentation_is_that_of_the_stored_records() -> None:
    found = page.page(
        records.read_all(records.FOLDER),
        rules=page.rules(records.FOLDER),
        transferred=transfers.stored(records.FOLDER),
    )
    assert quality.PAGE.read_text(encoding="utf-8") == found


def test_a_precision_is_named_in_settings_command_and_page(tmp_path: Path) -> None:
    """Rows of a task are compared wherever each was made, so the machine does not choose."""

    def job(*precision: str) -> Job:
        return Job.of("a", "mrpc", 41, ["swa"], tmp_path, "quick", "", *precision)

    assert settings.precision_of(job().overrides) == "bfloat16"
    assert "--precision" not in job().command
    found = job("float32")
    assert found.command == f"{job().command} --precision float32"
    assert found.recipe.model.precision == found.recipe_of("linear").model.precision
    assert found.recipe.model.precision == "float32"
    record("finetune", 0.0, protocol="a", settings=found.overrides).write(tmp_path)
    with pytest.raises(RunError, match=r"made with other settings: .*float32"):
        job().missing(tmp_path)
    assert found.missing(tmp_path) == ["swa"]
    text = page.page(records.read_all(tmp_path))
    assert "the papers' splits\n\nTrained and evaluated in float32.\n" in text


def test_a_row_with_a_training_of_its_own_needs_no_finetune_again(tmp_path: Path) -> None:
    def rows(*methods: str) -> list[str]:
        return to_make(
            Job.of("b", "rte", 41, methods, tmp_path, "quick"), tmp_path / "runs", tmp_path
        )

    (finetune,) = [
        r
        for r in records.read_all(records.FOLDER)
        if (r.protocol, r.attempt, r.task, r.seed, r.method) == ("b", "", "rte", 41, "finetune")
    ]
    finetune.write(tmp_path)
    assert rows("hpbo") == ["finetune", "hpbo"]  # what it said of each row is not kept
    members = tmp_path / LANDSCAPES / "b-rte-41-fixed.npz"
    members.parent.mkdir()
    shutil.copy(records.FOLDER / LANDSCAPES / members.name, members)
    assert rows("hpbo") == ["hpbo"]
    assert rows("hpbo", "swa") == ["finetune", "hpbo", "swa"]  # swa has its members


def test_settings_of_the_protocols() -> None:
    def split(task: str, protocol: str, **options: str) -> Any:
        return settings.recipe(task, protocol, Path("data"), **options)[0].task.split

    for task, rows in (("rte", 500), ("cola", 1500)):
        assert split(task, "b").hold_out == rows
        assert split(task, "a").halve == "validation"
    for task in ("mrpc", "stsb", "sst2"):
        assert split(task, "b") is None
    assert split("sst2", "a").hold_out == 1000
    for task, scale in itertools.product(settings.TASKS, settings.SCALES):
        recipe, _ = settings.recipe(task, "b", Path("data"), scale=scale)
        found = cost(recipe, task, "b", settings.METHODS)
        assert 300 < found.total < (3600 if scale == "quick" else 86_400)
    brier, _ = settings.recipe("mrpc", "b", Path("data"), attempt="brier")
    assert brier.task.metrics == ["f1", "accuracy", "brier"]
    with pytest.raises(RecipeError, match="for classification"):
        settings.recipe("stsb", "b", Path("data"), attempt="brier")
    with pytest.raises(RecipeError, match="did you mean mrpc"):
        settings.recipe("mrcp", "b", Path("data"))


@pytest.mark.parametrize(
    ("task", "sizes"),
    [("rte", (1990, 500, 277)), ("cola", (7051, 1500, 1043)), ("mrpc", (3668, 408, 1725))],
)
def test_the_splits_of_protocol_b(
    shared: Path, tmp_path: Path, task: str, sizes: tuple[int, ...]
) -> None:
    recipe, _ = settings.recipe(task, "b", shared / "data")
    found = Context(recipe, RunFolder(tmp_path), Display(quiet=True)).task.splits
    assert tuple(len(found[name]) for name in ("train", "validation", "test")) == sizes
