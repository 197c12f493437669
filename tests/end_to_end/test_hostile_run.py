"""A run whose data, names and storage are those of someone careless, or worse."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml

from fusetune.errors import NoResultError, RunError
from fusetune.pipeline import run
from fusetune.pipeline.display import Display
from fusetune.recipe_file import load, parse
from fusetune.run import RunFolder

SECRET = "s3same-0pen"
EVIL = "<script>alert(1)</script>\x1b[2J\u202e"
SHORT = ["search.trials=0", "train.epochs=1", "train.members=2", "fuse.evaluations=4",
         "fuse.methods=[finetune, mobo]",
         "train.arguments={learning_rate: 1.0e-2}"]  # fmt: skip


def hostile(sentiment: Path, folder: Path) -> Path:
    """The same data with markup and control characters in texts and labels."""
    folder.mkdir()
    for source in sentiment.glob("*.jsonl"):
        rows = [json.loads(line) for line in source.open()]
        for row in rows:
            row["label"] = f"{EVIL}{row['label']}"
            row["text"] = f"{EVIL}{row['text']}\x00"
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / source.name).write_text(lines)
    return folder


def test_no_secret_no_markup_and_no_file_elsewhere(
    tiny_recipe: str,
    sentiment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hub-" + SECRET)
    data = hostile(sentiment, tmp_path / "data")
    database = f"sqlite:///file:{tmp_path}/t.db?mode=rwc&uri=true&password={SECRET}"
    settings = [*SHORT, f"storage={database}", f"task.data={data}"]
    tree = yaml.safe_load(parse(tiny_recipe, settings).to_yaml())
    tree |= {"storage": database, "task": {**tree["task"], "name": f"{EVIL}hub-{SECRET}"}}
    recipe = parse(yaml.safe_dump(tree))
    before = {*tmp_path.rglob("*")}
    folder = run(recipe, tmp_path / "run", display=Display(verbose=True))
    made = {path for path in tmp_path.rglob("*") if path not in before}
    assert all(p.is_relative_to(folder.path) or p.name.startswith("t.db") for p in made)

    told = capfd.readouterr()
    assert SECRET not in told.out + told.err
    assert "\x1b[2J" not in told.out + told.err
    for path in folder.path.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            assert SECRET.encode() not in path.read_bytes(), path
    library = r"<script[^>]*>(?:(?!</script>).){9999,}</script>"
    page = re.sub(library, "", folder.report.read_text())
    assert "alert(1)</script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>" not in (folder.fused / "README.md").read_text()

    # The folder alone does not open the storage again, and what it says is the same recipe.
    assert load(folder.recipe_file).storage == database.replace(SECRET, "***")
    assert not folder.changes(recipe)


def test_a_training_that_diverges_leaves_nothing_half_done(
    tiny_recipe: str, tmp_path: Path
) -> None:
    diverging = "train.arguments={learning_rate: 1.0e+30, max_grad_norm: 0, logging_steps: 1}"
    recipe = parse(tiny_recipe, [*SHORT[:-1], "train.epochs=2", diverging])
    with pytest.raises(NoResultError, match=r"loss became (nan|inf) at step \d+"):
        run(recipe, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert folder.done("train") is None
    assert not folder.fused.exists()
    for member in folder.members.glob("[!.]*"):
        assert (member / "member.json").is_file()
    sound = parse(tiny_recipe, SHORT)
    assert run(sound, tmp_path / "run", force=True).done("report") is not None


def test_a_link_out_of_the_run_folder_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = RunFolder(tmp_path / "run")
    (folder.path / "methods").mkdir(parents=True)
    (folder.path / "inside").symlink_to(folder.path / "methods")
    with folder.claim():
        pass
    (folder.path / "methods" / "models").symlink_to(elsewhere)
    with pytest.raises(RunError, match=r"models is a link that leaves the run folder"), \
            folder.claim():  # fmt: skip
        pass
    os.unlink(folder.path / "methods" / "models")
    (tmp_path / "linked").symlink_to(folder.path)  # the folder itself may be one
    with RunFolder(tmp_path / "linked").claim():
        pass
