from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fusetune.errors import RunError
from fusetune.recipe import Recipe
from fusetune.recipe_file import load, parse
from fusetune.run import RunFolder

RECIPE = """
task: {data: somewhere, text: sentence, metrics: accuracy}
model: {name: minilm}
search: {trials: 0}
"""


def recipe(*overrides: str) -> Recipe:
    return parse(RECIPE, overrides)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.recipe_file.write_text(recipe().to_yaml())
    for stage in ("search", "train", "fuse", "report"):
        run.finish(stage, {"stage": stage})
    return run


def test_the_same_recipe_goes_on(folder: RunFolder) -> None:
    assert folder.check_recipe(recipe(), stage=None, force=False) is None
    assert folder.check_recipe(recipe("executor.kind=serial"), stage=None, force=False) is None


def test_keys_that_an_older_version_did_not_have_are_at_their_defaults(
    folder: RunFolder,
) -> None:
    lines = folder.recipe_file.read_text().splitlines(keepends=True)
    kept = [line for line in lines if "quantization:" not in line]
    assert len(kept) < len(lines)
    folder.recipe_file.write_text("".join(kept))
    assert folder.check_recipe(recipe(), stage=None, force=False) is None
    assert folder.changes(recipe("seed=3")) == {"seed": "41 → 3"}
    folder.recipe_file.write_text("".join([*kept, "gone: 1\n"]))  # of a version that had it
    assert "gone" in folder.changes(recipe())


def test_a_folder_of_an_older_version_goes_on(folder: RunFolder) -> None:
    text = folder.recipe_file.read_text()
    assert "fuse:\n" in text
    old = text.replace("fuse:\n", "fuse:\n  racing: false\n")
    folder.recipe_file.write_text(old.replace("train:\n", "train:\n  judge: promise\n"))
    assert load(folder.recipe_file, of_run=True) == recipe()
    assert folder.check_recipe(recipe(), stage=None, force=False) is None
    folder.recipe_file.write_text(text.replace("fuse:\n", "fuse:\n  racing: true\n"))
    with pytest.raises(RunError, match=r"fuse\.racing: gone since version 0\.2\.0"):
        folder.check_recipe(recipe(), stage=None, force=False)
    assert folder.check_recipe(recipe(), stage=None, force=True) == "fuse"


def test_another_recipe_is_refused_with_what_differs(folder: RunFolder) -> None:
    with pytest.raises(RunError, match=r"fuse\.evaluations: 90 → 30(.|\n)*--force"):
        folder.check_recipe(recipe("fuse.evaluations=30"), stage=None, force=False)


@pytest.mark.parametrize(
    ("override", "first"),
    [("fuse.evaluations=30", "fuse"), ("train.members=5", "train"), ("seed=42", "search")],
)
def test_force_starts_at_the_first_stage_that_differs(
    folder: RunFolder, override: str, first: str
) -> None:
    assert folder.check_recipe(recipe(override), stage=None, force=True) == first


def test_more_methods_join_and_what_others_found_stays(folder: RunFolder) -> None:
    (folder.path / "methods").mkdir()
    more = folder.extension(recipe("fuse.methods=[finetune, bo]"), join=True)
    assert more is not None
    folder.extend(more)
    folder.recipe_file.write_text(more.recipe.to_yaml())
    assert more.recipe.fuse.methods == ["finetune", "swa", "greedy", "mobo", "bo"]
    assert folder.done("fuse") is None
    assert folder.done("report") is None
    assert folder.done("train") == {"stage": "train"}
    assert (folder.path / "methods").is_dir()
    assert folder.check_recipe(more.recipe, stage=None, force=False) is None


def test_fewer_methods_start_nothing_anew(folder: RunFolder) -> None:
    fewer = folder.extension(recipe("fuse.methods=[swa]"), join=True)
    assert fewer is not None
    assert fewer.recipe.fuse.methods == recipe().fuse.methods
    folder.extend(fewer)
    assert folder.done("report") == {"stage": "report"}


def test_methods_do_not_join_another_recipe(folder: RunFolder) -> None:
    assert folder.extension(recipe("fuse.methods=[swa]", "seed=42"), join=True) is None
    assert folder.done("report") == {"stage": "report"}


SEARCH = "search={trials: 4, space: {learning_rate: {low: 1e-5, high: 1e-4}}}"


@pytest.mark.parametrize(
    ("overrides", "stages", "results_stay"),
    [
        (["search.trials=5"], ("search", "report"), True),
        (["fuse.evaluations=91"], ("fuse", "report"), False),
        (["fuse.methods=[finetune, swa, greedy, mobo, bo]"], ("fuse", "report"), True),
        (["search.trials=5", "fuse.evaluations=91"], ("search", "fuse", "report"), False),
    ],
)
def test_more_of_the_same_extends_a_run(
    overrides: list[str], stages: tuple[str, ...], results_stay: bool, folder: RunFolder
) -> None:
    folder.recipe_file.write_text(recipe(SEARCH).to_yaml())
    folder.methods.mkdir()
    (folder.methods / "swa.json").write_text("{}")
    folder.evaluations.mkdir()
    more = folder.extension(recipe(SEARCH, *overrides))
    assert more is not None
    assert more.stages == stages
    folder.extend(more)
    complete = [s for s in ("search", "train", "fuse", "report") if folder.done(s)]
    assert not set(complete) & set(stages)
    assert "train" in complete
    assert (folder.methods / "swa.json").exists() == results_stay
    assert folder.evaluations.is_dir()


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["search.trials=3"],
        ["fuse.evaluations=60"],
        ["fuse.methods=[swa, mobo]"],
        ["fuse.methods=[swa, finetune, greedy, mobo]"],
        ["search.trials=5", "seed=42"],
        ["search.trials=5", "search.space.learning_rate.low=1e-6"],
        ["search.trials=5", "fuse.evaluations=60"],
        ["fuse.evaluations=91", "train.members=5"],
    ],
)
def test_what_is_not_more_of_the_same_is_another_recipe(
    overrides: list[str], folder: RunFolder
) -> None:
    folder.recipe_file.write_text(recipe(SEARCH).to_yaml())
    assert folder.extension(recipe(SEARCH, *overrides)) is None


def test_a_first_search_is_no_extension(folder: RunFolder) -> None:
    folder.recipe_file.write_text(recipe(SEARCH, "search.trials=0").to_yaml())
    assert folder.extension(recipe(SEARCH)) is None


def test_more_evaluations_are_another_inner_search(folder: RunFolder) -> None:
    fused = "search.objective=fused"
    folder.recipe_file.write_text(recipe(SEARCH, fused).to_yaml())
    assert folder.extension(recipe(SEARCH, fused, "fuse.evaluations=91")) is None
    own = [fused, "search.fused_evaluations=20"]
    folder.recipe_file.write_text(recipe(SEARCH, *own).to_yaml())
    assert folder.extension(recipe(SEARCH, *own, "fuse.evaluations=91")) is not None


def test_runs_of_one_name_share_a_storage_without_colliding(tmp_path: Path) -> None:
    first, second = (RunFolder(tmp_path / place / "seed-41") for place in ("a", "b"))
    for run in (first, second):
        run.path.mkdir(parents=True)
    prefix = first.study_prefix([])
    assert prefix.startswith("a/seed-41-")
    assert second.study_prefix([f"{prefix}search"]) != prefix
    assert first.study_prefix([f"{prefix}search"]) == prefix  # its own, kept in a file
    first.path.rename(tmp_path / "moved")
    assert RunFolder(tmp_path / "moved").study_prefix([]) == prefix


def test_studies_of_a_removed_folder_are_not_taken_over(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    prefix = run.study_prefix([])
    shutil.rmtree(run.path)
    run.path.mkdir()
    assert run.study_prefix([f"{prefix}search"]) != prefix


def test_in_a_bilevel_search_everything_concerns_the_search(folder: RunFolder) -> None:
    changed = recipe("search.objective=fused", "fuse.evaluations=30")
    assert folder.check_recipe(changed, stage=None, force=True) == "search"


def test_force_without_a_difference_starts_the_asked_stage(folder: RunFolder) -> None:
    assert folder.check_recipe(recipe(), stage="fuse", force=True) == "fuse"
    assert folder.check_recipe(recipe(), stage=None, force=True) == "search"


def test_a_stage_alone_cannot_hide_an_earlier_change(folder: RunFolder) -> None:
    with pytest.raises(RunError, match="concern the stage search, which comes before fuse"):
        folder.check_recipe(recipe("seed=1"), stage="fuse", force=True)


def test_reset_keeps_what_came_before(folder: RunFolder) -> None:
    folder.members.mkdir()
    folder.fused.mkdir()
    folder.reset("fuse")
    assert folder.members.is_dir()
    assert not folder.fused.exists()
    assert folder.done("train") == {"stage": "train"}
    assert folder.done("fuse") is None
    assert folder.done("report") is None


def test_results_that_are_gone_are_known(folder: RunFolder) -> None:
    assert folder.lost("train") == []  # its members may be removed
    folder.fused.mkdir()
    folder.report.touch()
    assert folder.lost("fuse") == []
    assert folder.lost("report") == [folder.results]


def test_stages_are_opened_again_with_what_they_found(folder: RunFolder) -> None:
    folder.fused.mkdir()
    folder.reopen("fuse", "report")
    assert folder.fused.is_dir()
    assert folder.done("train") == {"stage": "train"}
    assert folder.done("fuse") is None
    assert folder.done("report") is None


def test_a_damaged_record_is_named(folder: RunFolder) -> None:
    (folder.path / "stages/train.json").write_text("{")
    with pytest.raises(RunError, match=r"train\.json cannot be read"):
        folder.done("train")


def test_two_drivers_cannot_share_a_folder(folder: RunFolder) -> None:
    script = (
        "import sys, time; from fusetune.run import RunFolder\n"
        "with RunFolder(sys.argv[1]).claim(): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(folder.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(RunError, match=f"in use by process {other.pid}"),
            folder.claim(),
        ):
            pass
        other.kill()
        other.wait()
    with folder.claim():
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match="cannot be written to"),
        RunFolder(tmp_path / "file/x").claim(),
    ):
        pass
