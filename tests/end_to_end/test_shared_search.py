"""Two runs, two folders, one search in a database."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from fusetune.errors import RunError
from fusetune.optimization.study import open_storage
from fusetune.pipeline import run
from fusetune.recipe_file import parse


def test_what_one_run_has_searched_another_does_not_search_again(
    tiny_recipe: str, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/trials.db"
    shared = [f"storage={url}", "study=team", "search.pruner=none"]
    first = run(
        parse(tiny_recipe, ["search.trials=2", *shared]), tmp_path / "a", stage="search"
    )
    second = run(
        parse(tiny_recipe, ["search.trials=3", *shared]), tmp_path / "b", stage="search"
    )
    storage = open_storage(url)
    assert optuna.get_all_study_names(storage) == ["team/search"]
    trials = optuna.load_study(study_name="team/search", storage=storage).trials
    assert [t.number for t in trials] == [0, 1, 2]
    assert not first.journal.exists()
    found = second.done("search")
    assert found is not None
    assert found["trainings"] == 3
    assert found["value"] == max(t.value for t in trials)
    other = parse(tiny_recipe, ["search.trials=3", *shared, "seed=7"])
    with pytest.raises(RunError, match="begun with another recipe"):
        run(other, tmp_path / "c", stage="search")
    # Starting anew is a matter of one run; the others' trials stay.
    run(
        parse(tiny_recipe, ["search.trials=3", *shared]),
        second.path,
        stage="search",
        force=True,
    )
    assert len(optuna.load_study(study_name="team/search", storage=storage).trials) == 3
